"""Consistency of the images of a trajectory: losses against the image before, and against the last one.

The paper asks for spatial and semantic consistency of visual states and gives no formula; these are our
choice. Both read the predicted clean image, decoded; both are off in the configs.

B rows, S turn slots, J noised copies of which the first K are read, I latent tokens of an image, N images,
P places that an encoder sees of one, D width of what it sees there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from process_gen.common import ranges
from process_gen.losses.registry import Term, register, register_network
from process_gen.losses.stock import same_trajectory, target_weights
from process_gen.models.autoencoder import to_floats, to_patches
from process_gen.models.outputs import LossError, Outputs
from process_gen.trajectory.batch import Batch

SAME = 4.0
"""Mean difference, in levels of 255, up to which pixels count as the same: decoding and encoding an image
file changes its last bits."""


@register("spatial_consistency", stages=("sketch", "refine"))
def spatial_consistency(
    outputs: Outputs,
    batch: Batch,
    labels: dict,
    key: jax.Array,
    *,
    stage: str,
    field: str = "",
    threshold: float = SAME,
    copies: int = 1,
) -> Term:
    """|decode(x_t - t v) - decode(before)|^2 where a turn must leave the image as it was.

    The mean over the pixels, in [-1, 1], of a latent token. `before` is the visual state that the turn
    starts from: the image of the turn before, or a trajectory's input image. The tokens that must stay are

        with `field`     those whose pixels are all above 0 in that mask of the record
        without `field`  those whose pixels in the target are, on average, within `threshold` levels of
                         255 of those before, and that were not blank (`unchanged`)

    Pixels are compared and not latents, as each latent of an autoencoder depends on the whole image.

    Args:
      field: a name in `config.data.fields`, of the kind `mask`.
      threshold: for the choice of tokens without `field`.
      copies: how many noised copies of an image are decoded.

    Raises:
      LossError, LookupError: an option out of range, or no such field.
    """
    del labels, key
    estimate = decoded(outputs, _first_copies(outputs, copies))
    before = jax.lax.stop_gradient(decoded(outputs, outputs.previous))
    tokens = outputs.clean.shape[-2]
    kept = _marked(batch, field, tokens) if field else unchanged(batch, tokens, threshold)
    error = jnp.square(estimate - before[:, :, None])
    values = jnp.mean(to_patches(error, _side(batch, tokens)), axis=-1)
    weights = kept * target_weights(outputs, batch, stage)[..., None]
    return Term(values, jnp.broadcast_to(weights[:, :, None], values.shape))


@register("semantic_consistency", stages=("sketch", "refine"))
def semantic_consistency(
    outputs: Outputs,
    batch: Batch,
    labels: dict,
    key: jax.Array,
    *,
    stage: str,
    network: str = "random_features",
    copies: int = 1,
) -> Term:
    """How much less a predicted image resembles the final one than the true intermediate image does.

    With f_p the features of a frozen encoder at place p, x the predicted clean image, y the true one, z the
    last image of the trajectory, and cos the cosine of two vectors (|a|^2 raised by |b|^2 / 100, so that the
    gradient is bounded where a is almost 0):

        value    max(0, cos(f_p(y), f_p(z)) - cos(f_p(x), f_p(z)))
        weight   max(0, cos(f_p(y), f_p(z)))

    So what later turns cover or change does not count, and drawing ahead gains nothing. Left out are final
    images themselves, and trajectories whose last image is wrong or is in another row.

    Args:
      network: the encoder, a frozen network: images [N, H, W, 3] around [-1, 1] to [N, ..., D].
      copies: how many noised copies of an image are decoded.

    Raises:
      LossError: an option out of range, or features of another shape.
    """
    del labels, key
    see = outputs.network(network)
    image, final, there = last_images(batch)
    x = decoded(outputs, _first_copies(outputs, copies))
    y = jax.lax.stop_gradient(decoded(outputs, outputs.clean))
    seen, true, last = (_encoded(see, network, pixels) for pixels in (x, y, to_floats(image)))
    wanted = jax.lax.stop_gradient(_agreement(true, last))[:, :, None]
    values = jnp.maximum(wanted - _agreement(seen, last[:, :, None]), 0.0)
    weights = target_weights(outputs, batch, stage) * (there & ~final)
    return Term(values, jnp.broadcast_to(jnp.maximum(wanted, 0) * weights[..., None, None], values.shape))


def unchanged(batch: Batch, tokens: int, threshold: float = SAME) -> jax.Array:
    """[B, S, I] bool: the latent tokens, `tokens` of an image, whose pixels a turn leaves as they were.

    Compares the image that the flow target shows with the one before the turn. False where the context holds
    no such image (none, or one of the model's own), and where it is blank (of one grey). Raises LossError for
    a threshold that is no number of at least 0.
    """
    same, before, _ = _same(batch, tokens, threshold)
    return same & (before.max(-1) > before.min(-1)) & _image_before(batch)[1][:, :, None]


def changed(batch: Batch, tokens: int, threshold: float = SAME) -> jax.Array:
    """[B, S, I] bool: the latent tokens, `tokens` of an image, whose pixels a turn changes.

    Without an image before it, those that are not blank (of one grey) in the target. The image before is the
    teacher's, also where the model was shown one of its own. Raises LossError as `unchanged` does.
    """
    same, _, target = _same(batch, tokens, threshold)
    drawn = target.max(-1) > target.min(-1)
    return jnp.where(_has_image_before(batch)[:, :, None], ~same, drawn) & batch.present[:, :, None]


def _same(batch: Batch, tokens: int, threshold: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[B, S, I] bool, where target and image before are alike; then the patches of both, before first."""
    if not ranges.NOT_NEGATIVE.holds(threshold):
        raise LossError(f"threshold must be {ranges.NOT_NEGATIVE.text}, in levels of 255, got {threshold!r}")
    side, slots = _side(batch, tokens), batch.present.shape[1]
    source = jnp.clip(jnp.arange(slots)[None] + jnp.maximum(batch.target, 0), 0, slots - 1)
    target = to_patches(_taken(batch.image, source), side)
    before = to_patches(_image_before(batch)[0], side)
    difference = jnp.maximum(target, before) - jnp.minimum(target, before)  # of uint8, without overflow
    return jnp.mean(difference, axis=-1, dtype=jnp.float32) <= threshold, before, target


def last_images(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The last image of the trajectory of each turn, [B, S, H, W, 3] uint8.

    Also two [B, S] bool: whether the flow target of the turn shows that same image, and whether that image
    is in this row and correct.
    """
    slots = jnp.arange(batch.present.shape[1])
    same = same_trajectory(batch)
    last = jnp.max(jnp.where(same & batch.has_image[:, None], slots, 0), axis=-1)
    end = jnp.max(jnp.where(same, slots, 0), axis=-1)
    right = (batch.target == 0) & batch.has_image
    there = jnp.take_along_axis(right, last, axis=1) & jnp.take_along_axis(batch.is_last, end, axis=1)
    final = slots[None] + jnp.maximum(batch.target, 0) == last
    return _taken(batch.image, last), final, there & batch.present


def decoded(outputs: Outputs, latents: jax.Array) -> jax.Array:
    """Decodes latent tokens [B, S, ..., I, C] to pixels [B, S, ..., H, W, 3], one slot after the other.

    All at once would need the activations of a decoder for every image of a row.
    """
    return jnp.moveaxis(jax.lax.map(outputs.pixels, jnp.moveaxis(latents, 1, 0)), 0, 1)


def _first_copies(outputs: Outputs, copies: int) -> jax.Array:
    """The clean estimate of the first `copies` noised copies, [B, S, K, I, C]."""
    most = outputs.t.shape[2]
    if not ranges.COUNT.holds(copies) or copies > most:
        raise LossError(f"copies must be a whole number from 1 to the {most} of config.layout.copies")
    return outputs.clean_estimate[:, :, :copies]


def _image_before(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The image that a turn starts from, [B, S, H, W, 3] uint8; [B, S] bool, whether it is in the context.

    It is not where there is none, or where the model's own is shown in its place (`Batch.shown`).
    """
    before, seen = _before(batch.image), _has_image_before(batch)
    if batch.shown is not None:
        other = (batch.shown != batch.image).any((-1, -2, -3))
        seen &= batch.is_first | ~_before(other)
    if batch.prompt_image is None:
        return before, seen
    given = _taken(batch.prompt_image, batch.prompt_index)
    return jnp.where(batch.is_first[:, :, None, None, None], given, before), seen


def _has_image_before(batch: Batch) -> jax.Array:
    """[B, S] bool: the turns with an image before them, of the turn before or of the prompt."""
    if batch.prompt_image is None:
        return ~batch.is_first
    return ~batch.is_first | jnp.take_along_axis(batch.has_prompt_image, batch.prompt_index, axis=1)


def _before(x: jax.Array) -> jax.Array:
    """[B, S, ...] of the turn before; zeros for the first slot."""
    return jnp.pad(x, ((0, 0), (1, 0), *((0, 0),) * (x.ndim - 2)))[:, :-1]


def _taken(images: jax.Array, index: jax.Array) -> jax.Array:
    """Gathers images [B, X, H, W, 3] by `index` [B, S] to [B, S, H, W, 3]."""
    return jnp.take_along_axis(images, index[:, :, None, None, None], axis=1)


def _side(batch: Batch, tokens: int) -> int:
    """The side of a latent token in pixels."""
    return math.isqrt(math.prod(batch.image.shape[2:4]) // tokens)


def _marked(batch: Batch, field: str, tokens: int) -> jax.Array:
    """[B, S, I] bool: tokens whose pixels are all above 0 in a mask of the record."""
    mask = batch.field(field)
    if mask.ndim != 4:
        raise LossError(
            f"the field {field!r} has shape {list(mask.shape[2:])} in a turn, it must be a mask of the "
            f'image: config.data.fields.{field} = "mask"'
        )
    kept = jnp.all(to_patches(mask[..., None], _side(batch, tokens)) > 0, axis=-1)
    return kept & _image_before(batch)[1][:, :, None]


def _encoded(see: Callable[[jax.Array], jax.Array], name: str, pixels: jax.Array) -> jax.Array:
    """The features that an encoder makes of images [B, S, ..., H, W, 3]: [B, S, ..., P, D]."""
    if not callable(see):
        raise LossError(f"the network {name!r} is no encoder of images; register_network adds one")
    leading, flat = pixels.shape[:-3], pixels.reshape(-1, *pixels.shape[-3:])
    features = see(flat)
    if jnp.ndim(features) < 2 or features.shape[0] != flat.shape[0]:
        raise LossError(
            f"the network {name!r} made {list(jnp.shape(features))} of images {list(flat.shape)}: an encoder "
            "returns [N, ..., D], with what it sees of an image in the last axis"
        )
    return features.reshape(*leading, -1, features.shape[-1]).astype(jnp.float32)


def _agreement(a: jax.Array, b: jax.Array) -> jax.Array:
    """The cosine of vectors [..., D], its gradient bounded where `a` is almost 0; 0 where `b` is 0."""
    size = jnp.sum(jnp.square(b), axis=-1)
    squares = (jnp.sum(jnp.square(a), axis=-1) + 0.01 * size) * 1.01 * size
    return jnp.sum(a * b, axis=-1) * jax.lax.rsqrt(squares + 1e-12)


# ------------------------------------------------------------------ an encoder

_WIDTHS = (3, 32, 32, 32)
_STRIDES = (2, 2, 1)


def init_random_features(key: jax.Array) -> dict[str, jax.Array]:
    """Kernels [3, 3, in, out] of three convolutions, normal with the variance of He et al. (2015)."""
    keys = jax.random.split(key, len(_STRIDES))
    shapes = [(3, 3, *pair) for pair in itertools.pairwise(_WIDTHS)]
    return {
        f"layer{number}": jax.random.normal(key, shape) * (2 / (9 * shape[2])) ** 0.5
        for number, (key, shape) in enumerate(zip(keys, shapes, strict=True))
    }


def random_features(kernels: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
    """Images [N, H, W, 3] around [-1, 1] to D = 32 features of each place, [N, H / 4, W / 4, D].

    Convolutions with random weights tell images apart much as trained ones do, texture and shape alike (He,
    Wang and Hopcroft, arXiv 1606.04801). The features of a place depend on 15 x 15 pixels alone.
    """
    x = images.astype(jnp.float32)
    for number, stride in enumerate(_STRIDES):
        x, kernel = jax.nn.relu(x) if number else x, kernels[f"layer{number}"]
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    return x


register_network("random_features", init_random_features, random_features)

"""What an unroll is fed: turns, noised copies for the flow targets, and what conditioning dropout leaves out.

B rows, S turn slots, R trajectories of a row, J noised copies, I latent tokens of an
image, C channels of a latent token, P ViT tokens of an image, U values of a ViT patch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from process_gen.models import autoencoder, flow, vit
from process_gen.models.assembly import token_count
from process_gen.models.turn_io import PromptInputs, TurnInputs
from process_gen.models.unified import UnifiedModel
from process_gen.trajectory.batch import PAD_ID, Batch

ORDERS = ("layers", "scan")


@dataclasses.dataclass(frozen=True)
class UnrollOptions:
    """How turns are unrolled, and what is drawn at random while training.

    What is dropped leaves the sequence, for later tokens too, as in BAGEL's data
    (arXiv 2505.14683): guidance samples with contexts of the same kind.

    Attributes:
      order: of the loops, `layers` or `scan`.
      time_mean, time_std, time_shift: logit-normal timesteps of the flow targets.
      drop_text: probability, per turn, that the newest text before its image is
        left out: the plan or the refine instruction, else the text of the prompt.
      drop_images: probability, per trajectory, that all its images are left out.
      drop_latents, drop_vit: probabilities, per image, that its latents or its ViT
        tokens are left out, independently. Positions go on as if they were there.
      context_noise: largest standard deviation of the Gaussian noise on the
        clean images that later tokens see, in latent units. A model trained on
        perfect context drifts when it sees its own.
      context_noise_share: share of the images that get any.
      sample_latents: whether the latents of an image are drawn from the
        autoencoder's distribution, as the published program trains, instead of
        being its means. Latents that were encoded ahead of time are means.
    """

    order: str = "layers"
    time_mean: float = 0.0
    time_std: float = 1.0
    time_shift: float = 1.0
    drop_text: float = 0.1
    drop_images: float = 0.1
    drop_latents: float = 0.0
    drop_vit: float = 0.0
    context_noise: float = 0.0
    context_noise_share: float = 0.7
    sample_latents: bool = False

    def __post_init__(self):
        if self.order not in ORDERS:
            raise ValueError(f"train.unroll must be one of {', '.join(ORDERS)}, got {self.order!r}")


NO_RANDOM_DROPS = UnrollOptions(drop_text=0.0, drop_images=0.0)


class Inputs(NamedTuple):
    """What an unroll is fed, and what the losses compare with.

    Attributes:
      prompts: [B, R, ...].
      turns: [B, S, ...].
      flows: the fields of `Outputs` that do not depend on parameters.
    """

    prompts: PromptInputs
    turns: TurnInputs
    flows: dict[str, Any]


def _flow_targets(key: jax.Array, clean: jax.Array, copies: int, options: UnrollOptions):
    """x_t [B, S, J, I, C], t [B, S, J] and the true velocity of `clean` [B, S, I, C]."""
    time_key, noise_key = jax.random.split(key)
    b, s = clean.shape[:2]
    t = flow.sample_time(time_key, (b, s, copies), options.time_mean, options.time_std, options.time_shift)
    noise = jax.random.normal(noise_key, (b, s, copies, *clean.shape[2:]))
    x = jnp.broadcast_to(clean[:, :, None], noise.shape)
    return flow.add_noise(x, noise, t), t, noise - x


def _add_context_noise(key: jax.Array, clean: jax.Array, options: UnrollOptions) -> jax.Array:
    """Clean images [B, S, I, C] with noise on a share of them."""
    if not options.context_noise:
        return clean
    share_key, level_key, noise_key = jax.random.split(key, 3)
    chosen = jax.random.bernoulli(share_key, options.context_noise_share, clean.shape[:2])
    level = chosen * jax.random.uniform(level_key, clean.shape[:2], maxval=options.context_noise)
    return clean + level[:, :, None, None] * jax.random.normal(noise_key, clean.shape)


def latents_of(
    model: UnifiedModel, images: jax.Array, frozen: Any, key: jax.Array | None = None
) -> jax.Array:
    """Latent tokens [B, S, I, C] of images [B, S, H, W, 3]; slot by slot where that takes weights.

    They are means, or with a `key` drawn from the autoencoder's distribution.
    """
    if frozen is None:
        return autoencoder.to_tokens(model.config, images)
    slots = jnp.moveaxis(images, 1, 0)
    keys = None if key is None else jax.random.split(key, len(slots))
    latents = jax.lax.map(lambda x: autoencoder.to_tokens(model.config, x[0], frozen, x[1]), (slots, keys))
    return jnp.moveaxis(latents, 0, 1)


def vit_patches(model: UnifiedModel, images: jax.Array, latents: jax.Array) -> jax.Array | None:
    """What the ViT sees of images in context, [B, (S,) P, U]; None where the layout has no room for it.

    Where latents are pixels it sees the `latents` [..., I, C], with the noise
    that they carry, else the images [B, (S,) H, W, 3].
    """
    if not model.layout.vit_tokens:
        return None
    if model.config.autoencoder == "patches":
        return vit.to_patches(model.config, model.layout, latents)
    if images.ndim == 4:
        return vit.patches_of(model.config, model.layout, images)
    slots = jnp.moveaxis(images, 1, 0)  # one at a time: enlarged in float32 they take far more room
    views = jax.lax.map(lambda x: vit.patches_of(model.config, model.layout, x), slots)
    return jnp.moveaxis(views, 0, 1)


_PARTS = ("turns", "latents", "noise", "text", "images", "prompt latents")
"""What draws random numbers, each with a key of its own."""


def _kept(
    model: UnifiedModel,
    key: jax.Array,
    image: str,
    shape: tuple[int, ...],
    hidden: jax.Array,
    options: UnrollOptions,
) -> dict[str, jax.Array]:
    """Bool `shape` by segment of an image: what stays in the sequence; `hidden` images do not."""
    keys, found = jax.random.split(key), {image: ~hidden}
    if options.drop_latents:
        found[image] &= ~jax.random.bernoulli(keys[0], options.drop_latents, shape)
    if model.layout.vit_tokens:
        found[f"{image}_vit"] = ~hidden
        if options.drop_vit:
            found[f"{image}_vit"] &= ~jax.random.bernoulli(keys[1], options.drop_vit, shape)
    return found


def make_inputs(
    model: UnifiedModel, batch: Batch, key: jax.Array, options: UnrollOptions, frozen: Any = None
) -> Inputs:
    """Everything that an unroll is fed; arguments as of `unroll`.

    The flow target of a turn shows its own image, or the one that `batch.target`
    points to; images that the batch holds as latents do not go through the autoencoder.
    """
    keys = dict(zip(_PARTS, jax.random.split(key, len(_PARTS)), strict=True))
    layout, shape = model.layout, batch.present.shape
    drawn = options.sample_latents
    latents = batch.image_latents
    if latents is None:
        latents = latents_of(model, batch.image, frozen, keys["latents"] if drawn else None)
    latents = latents.astype(jnp.float32)
    source = jnp.clip(jnp.arange(shape[1])[None] + jnp.maximum(batch.target, 0), 0, shape[1] - 1)
    clean = jnp.take_along_axis(latents, source[:, :, None, None], axis=1)
    noised, t, velocity = _flow_targets(keys["turns"], clean, layout.copies, options)
    seen = _add_context_noise(keys["noise"], latents, options)

    unseen_images = jax.random.bernoulli(keys["images"], options.drop_images, batch.prompt_tokens.shape[:2])
    hidden = jnp.take_along_axis(unseen_images, batch.prompt_index, axis=1)
    keep = _kept(model, jax.random.fold_in(keys["images"], 1), "image", shape, hidden, options)
    no_text = jax.random.bernoulli(keys["text"], options.drop_text, shape)
    has_before = token_count(batch.before_tokens) > 0
    turns = TurnInputs(
        present=batch.present,
        refines=batch.refines,
        before=jnp.where(no_text[..., None], PAD_ID, batch.before_tokens),
        after=batch.after_tokens,
        image=seen,
        noised=noised,
        t=t,
        vit=vit_patches(model, batch.image, seen),
        keep=keep,
    )
    without_text = no_text & batch.is_first & ~has_before
    prompts, bare = _prompt_inputs(model, batch, keys, options, frozen, without_text, unseen_images)
    unseen = ~functools.reduce(jnp.logical_or, keep.values())
    previous = jnp.pad(latents, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    flows = dict(
        target=velocity,
        x_t=noised,
        t=t,
        has_target=batch.present & (batch.target >= 0),
        previous=jnp.where(batch.is_first[:, :, None, None], 0.0, previous),
        clean=clean,
        # What is not there predicts nothing, and nobody is to judge an image that was not shown.
        masked={"before": no_text, "image_end": unseen, "after": unseen, "prompt_end": bare},
    )
    return Inputs(prompts, turns, flows)


def _prompt_inputs(
    model: UnifiedModel,
    batch: Batch,
    keys: Mapping[str, jax.Array],
    options: UnrollOptions,
    frozen: Any,
    bare: jax.Array,
    hidden: jax.Array,
) -> tuple[PromptInputs, jax.Array]:
    """The prompts of a batch, [B, R, ...], without the newest text of those that `bare` [B, S] turns draw.

    The images of those that are `hidden` [B, R] are left out with those of their turns.

    Returns:
      The prompts, and [B, R] bool, which of them lost their text.
    """
    layout, shape = model.layout, batch.prompt_tokens.shape[:2]
    draws = batch.prompt_index[:, :, None] == jnp.arange(shape[1])[None, None]
    bare = (bare[:, :, None] & draws).any(1)
    text, instruction = batch.prompt_tokens, batch.instruction_tokens
    instructed = jnp.zeros(shape, bool) if instruction is None else token_count(instruction) > 0
    text = jnp.where((bare & ~instructed)[..., None], PAD_ID, text)
    if instruction is not None:
        instruction = jnp.where(bare[..., None], PAD_ID, instruction)
    if not layout.prompt_image:
        return PromptInputs(text, instruction=instruction), bare
    latents = batch.prompt_latents
    if latents is None:
        key = keys["prompt latents"] if options.sample_latents else None
        latents = latents_of(model, batch.prompt_image, frozen, key)
    keep = _kept(model, jax.random.fold_in(keys["images"], 2), "prompt_image", shape, hidden, options)
    patches = vit_patches(model, batch.prompt_image, latents)
    return PromptInputs(text, latents, patches, instruction, batch.has_prompt_image, keep), bare

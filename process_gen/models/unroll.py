"""Training's unroll: teacher-forced turns of packed rows, in either order of the loops.

    layers   the backbone once over the whole row: each layer goes over all turns
             before the next one starts (`UnifiedModel.forward_rows`)
    scan     the definition: `step` scanned over the turn slots

Both compute the same. With `layers` the weights of a layer are needed once in the
forward pass and once in the backward pass; `scan` is what a history needs that
memory does not hold, and what the other one is tested against.

B rows, S turn slots, R trajectories of a row, J noised copies, I latent tokens of an
image, C channels of a latent token, T tokens of a text slot, D width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from process_gen.models import autoencoder, flow, vit
from process_gen.models.assembly import token_count
from process_gen.models.cache import KVCache
from process_gen.models.turn_io import PromptInputs, TurnInputs, TurnOutputs
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


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What losses read.

    Attributes:
      hidden: `before`, `after` [B, S, T, D]; `image_end` [B, S, D]; `noised_end`
        [B, S, J, D]; `prompt_end` [B, R, D].
      velocity, target: [B, S, J, I, C], predicted and true velocity.
      x_t: [B, S, J, I, C], the noised images.
      t: [B, S, J] timesteps.
      has_target: [B, S] bool, whether there is a flow target.
      previous: [B, S, I, C] latents of the visual state that a turn starts from (zeros at the first).
      clean: [B, S, I, C] latents of the image that the flow target shows.
      masked: by name of a hidden state, bool: what has no label, because it was dropped or its image was.
      logits: hidden states [..., D] to logits [..., vocabulary].
      nll: hidden states [B, ..., D] and labels [B, ...] to -log p [B, ...], without
        all logits in memory where `model.logit_chunk` says so.
      in_chunks: whether it does.
      nlls: -log p by name of a hidden state, where `with_nll` has computed it.
    """

    hidden: Mapping[str, jax.Array]
    velocity: jax.Array
    target: jax.Array
    x_t: jax.Array
    t: jax.Array
    has_target: jax.Array
    previous: jax.Array
    clean: jax.Array
    masked: Mapping[str, jax.Array]
    logits: Callable[[jax.Array], jax.Array]
    nll: Callable[[jax.Array, jax.Array], jax.Array]
    in_chunks: bool = False
    nlls: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)

    def cross_entropy(self, name: str, labels: Mapping[str, jax.Array]) -> jax.Array:
        """-log p of `labels[name]` at `hidden[name]`, [B, ...] float32; any number where that is padding."""
        if name in self.nlls:
            return self.nlls[name]
        return self.nll(self.hidden[name], labels[name])

    def with_nll(self, labels: Mapping[str, jax.Array]) -> Outputs:
        """With the labels of all hidden states scored in one loop over the vocabulary, if it is in chunks.

        Several losses read the same tokens, and XLA merges equal products but not equal loops.
        """
        if not self.in_chunks:
            return self
        names = [name for name in self.hidden if name in labels]
        rows, width = labels[names[0]].shape[0], self.hidden[names[0]].shape[-1]
        hidden = jnp.concatenate([self.hidden[name].reshape(rows, -1, width) for name in names], axis=1)
        flat = jnp.concatenate([labels[name].reshape(rows, -1) for name in names], axis=1)
        values, start, nlls = self.nll(hidden, flat), 0, {}
        for name in names:
            length = labels[name].size // rows
            nlls[name] = values[:, start : start + length].reshape(labels[name].shape)
            start += length
        return dataclasses.replace(self, nlls=nlls)

    def labels(self, labels: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The labels of a batch, without those of what was dropped."""
        found = dict(labels)
        for name, masked in self.masked.items():
            if name in found:
                masked = masked.reshape(*masked.shape, *(1,) * (found[name].ndim - masked.ndim))
                found[name] = jnp.where(masked, PAD_ID, found[name])
        return found


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


def scan_turns(
    model: UnifiedModel, params: Any, batch: Batch, prompts: PromptInputs, turns: TurnInputs
) -> tuple[jax.Array, TurnOutputs]:
    """`begin` for every prompt, then `step` scanned over the turn slots: the definition.

    The backward pass keeps the context between turns and computes each turn again
    (`jax.checkpoint`), unless `model.remat` is `none`.

    Returns:
      The hidden state [B, R, D] of each prompt's last token, and outputs [B, S, ...].
    """
    rows, trajectories = batch.prompt_tokens.shape[:2]
    flat = jax.tree.map(lambda x: x.reshape(rows * trajectories, *x.shape[2:]), prompts)
    opened, prompt_end = model.apply({"params": params}, flat, method="begin")

    def by_row(x: jax.Array, axis: int) -> jax.Array:
        return x.reshape(*x.shape[:axis], rows, trajectories, *x.shape[axis + 1 :])

    def of_prompt(x: jax.Array, index: jax.Array, axis: int) -> jax.Array:
        at = index.reshape((1,) * axis + (rows, 1) + (1,) * (x.ndim - axis - 1))
        return jnp.take_along_axis(by_row(x, axis), at, axis=axis + 1).squeeze(axis + 1)

    def body(context, xs):
        is_first, index, turn = xs
        cache = opened.prompt
        prompt = KVCache(
            *(of_prompt(x, index, 1) for x in (cache.k, cache.v)), of_prompt(cache.mask, index, 0)
        )
        context = context.started(is_first, prompt, of_prompt(opened.position, index, 0))
        return model.apply({"params": params}, context, turn, method="step")

    context = model.apply({"params": params}, rows, method="empty_context")
    xs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (batch.is_first, batch.prompt_index, turns))
    body = body if model.config.remat == "none" else jax.checkpoint(body, prevent_cse=False)
    _, outputs = jax.lax.scan(body, context, xs)
    outputs = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), outputs)
    return prompt_end.reshape(rows, trajectories, -1), outputs


def run_turns(
    model: UnifiedModel, params: Any, batch: Batch, prompts: PromptInputs, turns: TurnInputs, order: str
) -> tuple[jax.Array, TurnOutputs]:
    """Turns in either order of the loops; see `scan_turns` for what comes out."""
    if order == "scan":
        return scan_turns(model, params, batch, prompts, turns)
    return model.apply(
        {"params": params}, prompts, turns, batch.prompt_index, batch.is_first, method="forward_rows"
    )


def unroll(
    model: UnifiedModel,
    params: Any,
    batch: Batch,
    key: jax.Array,
    options: UnrollOptions = NO_RANDOM_DROPS,
    frozen: Any = None,
) -> Outputs:
    """Runs a batch of packed rows through the model, teacher-forced.

    Args:
      model: the modules.
      params: their parameters.
      batch: packed rows (see `Batch`).
      key: draws timesteps, noise and conditioning dropout.
      options: how they are drawn, and the order of the loops.
      frozen: weights of an autoencoder that has any.

    Returns:
      What the losses read.
    """
    inputs = make_inputs(model, batch, key, options, frozen)
    prompt_end, outputs = run_turns(model, params, batch, inputs.prompts, inputs.turns, options.order)
    return make_outputs(model, params, prompt_end, outputs, inputs.flows)


def make_outputs(
    model: UnifiedModel, params: Any, prompt_end: jax.Array, outputs: TurnOutputs, flows: Mapping[str, Any]
) -> Outputs:
    """The results of the turns and their flow targets, as losses read them."""
    return Outputs(
        hidden={"prompt_end": prompt_end} | {name: getattr(outputs, name) for name in HIDDEN},
        velocity=outputs.velocity,
        logits=lambda hidden: model.apply({"params": params}, hidden, method="logits"),
        nll=lambda hidden, labels: model.apply({"params": params}, hidden, labels, method="cross_entropy"),
        in_chunks=model.config.logits_in_chunks,
        **flows,
    )


HIDDEN = ("before", "after", "image_end", "noised_end")
"""The hidden states of a turn that losses read, by their names in `TurnOutputs`."""


def blank_outputs(
    model: UnifiedModel, batch: Batch, key: jax.Array, options: UnrollOptions, frozen: Any = None
) -> Outputs:
    """`unroll` with zeros for everything that the model predicts: enough to count targets."""
    flows = make_inputs(model, batch, key, options, frozen).flows
    width, layout = model.config.width, model.layout
    shapes = {
        "before": (layout.before,),
        "after": (layout.after,),
        "image_end": (),
        "noised_end": (layout.copies,),
    }
    hidden = {name: jnp.zeros((*batch.present.shape, *shape, width)) for name, shape in shapes.items()}
    hidden["prompt_end"] = jnp.zeros((*batch.prompt_tokens.shape[:2], width))
    return Outputs(
        hidden=hidden,
        velocity=jnp.zeros_like(flows["target"]),
        logits=lambda hidden: jnp.zeros((*hidden.shape[:-1], model.config.vocab_size)),
        nll=lambda _, labels: jnp.full(labels.shape, jnp.log(float(model.config.vocab_size))),
        **flows,
    )

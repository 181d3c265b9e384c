"""Makes the inputs of an unroll from a batch: prompts, turns, flow targets, conditioning dropout.

B rows, S turn slots, R trajectories of a row, J noised copies, I latent tokens of an
image, C channels of a latent token, H W image height and width.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from process_gen.models import autoencoder, flow, vit
from process_gen.models.config import ModelConfig, UnrollOptions
from process_gen.models.content import ChunkInputs, Named, prompt_inputs, token_count, turn_inputs
from process_gen.models.unified import UnifiedModel
from process_gen.trajectory.batch import PAD_ID, Batch
from process_gen.trajectory.layout import Layout


class Inputs(NamedTuple):
    """The inputs of an unroll, and the flow targets of the losses.

    Attributes:
      prompts: [B, R, ...].
      turns: [B, S, ...].
      flows: the fields of `Outputs` that do not depend on parameters.
    """

    prompts: ChunkInputs
    turns: ChunkInputs
    flows: dict[str, Any]


def _flow_targets(key: jax.Array, clean: jax.Array, copies: int, options: UnrollOptions):
    """Noises `clean` [B, S, I, C]: x_t [B, S, J, I, C], t [B, S, J] and the true velocity, like x_t."""
    time_key, noise_key = jax.random.split(key)
    b, s = clean.shape[:2]
    t = flow.sample_time(time_key, (b, s, copies), options.time_mean, options.time_std, options.time_shift)
    noise = jax.random.normal(noise_key, (b, s, copies, *clean.shape[2:]))
    x = jnp.broadcast_to(clean[:, :, None], noise.shape)
    return flow.add_noise(x, noise, t), t, noise - x


def _add_context_noise(key: jax.Array, clean: jax.Array, options: UnrollOptions) -> jax.Array:
    """Adds noise to a share of the clean images [B, S, I, C]; see `UnrollOptions.context_noise`."""
    if not options.context_noise:
        return clean
    share_key, level_key, noise_key = jax.random.split(key, 3)
    chosen = jax.random.bernoulli(share_key, options.context_noise_share, clean.shape[:2])
    level = chosen * jax.random.uniform(level_key, clean.shape[:2], maxval=options.context_noise)
    return clean + level[:, :, None, None] * jax.random.normal(noise_key, clean.shape)


_PARTS = ("turns", "latents", "noise", "text", "images", "prompt latents")
"""Uses of random numbers, one key each; their order fixes the keys."""


def _latents(config: ModelConfig, images: jax.Array, given: Any, frozen: Any, key: Any) -> jax.Array:
    """Latents [B, S, I, C] of images: `given` ones, else the encoder's means, or samples with a `key`."""
    if given is None:
        given = autoencoder.slots_to_tokens(config, images, frozen, key)
    return given.astype(jnp.float32)


def _kept(layout: Layout, key: jax.Array, image: str, hidden: jax.Array, options: UnrollOptions) -> Named:
    """Draws which segments of an image stay in context, [B, S] bool by name; none of `hidden` [B, S] do."""
    rates = {s.name: options.drop_vit if s.vit else options.drop_latents for s in layout.state_slots(image)}
    found = {}
    for (name, rate), one in zip(rates.items(), jax.random.split(key, len(rates)), strict=True):
        found[name] = ~(hidden | jax.random.bernoulli(one, rate, hidden.shape)) if rate else ~hidden
    return found


def make_inputs(
    model: UnifiedModel, batch: Batch, key: jax.Array, options: UnrollOptions, frozen: Any = None
) -> Inputs:
    """Makes all inputs of an unroll; takes the arguments of `unroll`.

    The flow target of a turn is its own image, or a later one that `batch.target` points
    to. Images that the batch holds as latents are not encoded.
    """
    config, layout, shape = model.config, model.layout, batch.present.shape
    keys = dict(zip(_PARTS, jax.random.split(key, len(_PARTS)), strict=True))
    if not options.sample_latents:
        keys |= {"latents": None, "prompt latents": None}
    latents = _latents(config, batch.image, batch.image_latents, frozen, keys["latents"])
    source = jnp.clip(jnp.arange(shape[1])[None] + jnp.maximum(batch.target, 0), 0, shape[1] - 1)
    clean = jnp.take_along_axis(latents, source[:, :, None, None], axis=1)
    noised, t, velocity = _flow_targets(keys["turns"], clean, layout.copies, options)
    pictures, seen = batch.image, latents  # what later tokens see
    if batch.shown is not None:
        pictures = batch.shown
        seen = _latents(config, pictures, batch.shown_latents, frozen, keys["latents"])
    seen = _add_context_noise(keys["noise"], seen, options)

    unseen_images = jax.random.bernoulli(keys["images"], options.drop_images, batch.prompt_tokens.shape[:2])
    hidden = jnp.take_along_axis(unseen_images, batch.prompt_index, axis=1)
    hidden |= batch.present & ~batch.has_image
    keep = _kept(layout, jax.random.fold_in(keys["images"], 1), "image", hidden, options)
    no_text = jax.random.bernoulli(keys["text"], options.drop_text, shape)
    turns = turn_inputs(
        batch.present,
        jnp.where(no_text[..., None], PAD_ID, batch.before_tokens),
        batch.after_tokens,
        seen,
        noised,
        t,
        vit.views(config, layout, pictures, seen),
        keep=keep,
    )
    without_text = no_text & batch.is_first & (token_count(batch.before_tokens) == 0)
    prompts, bare = _prompts(model, batch, keys, options, frozen, without_text, unseen_images)
    unseen = ~functools.reduce(jnp.logical_or, keep.values())
    unjudged = unseen if batch.unjudged is None else unseen | batch.unjudged
    unplanned = no_text & (token_count(batch.before_tokens) > 0)
    previous = jnp.pad(latents, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    start = _input_latents(batch, prompts.latents["prompt_image"])
    flows = dict(
        target=velocity,
        x_t=noised,
        t=t,
        has_target=batch.present & (batch.target >= 0),
        previous=jnp.where(batch.is_first[:, :, None, None], start, previous),
        clean=clean,
        # Dropped texts have no labels. Neither has what comes after an image that was dropped, whose plan was
        # dropped, or in whose place the model's own is shown: the inspection is about the teacher's image.
        masked={
            "before": no_text,
            "image_end": unjudged | unplanned,
            "after": unjudged | unplanned,
            "prompt_end": bare,
        },
    )
    return Inputs(prompts, turns, flows)


def _input_latents(batch: Batch, latents: jax.Array | None) -> jax.Array | float:
    """Latents [B, S, I, C] of the input image of each turn's prompt, 0 for none; `latents` [B, R, I, C]."""
    if latents is None:
        return 0.0
    there = jnp.where(batch.has_prompt_image[:, :, None, None], latents, 0.0)
    return jnp.take_along_axis(there, batch.prompt_index[:, :, None, None], axis=1)


def _prompts(
    model: UnifiedModel,
    batch: Batch,
    keys: Mapping[str, jax.Array],
    options: UnrollOptions,
    frozen: Any,
    bare: jax.Array,
    hidden: jax.Array,
) -> tuple[ChunkInputs, jax.Array]:
    """Makes the prompts of a batch, [B, R, ...], with conditioning dropout.

    A prompt of any `bare` [B, S] turn loses its newest text: its instruction, or else its first
    text. A `hidden` [B, R] prompt loses its image.

    Returns:
      The prompts, and [B, R] bool, which of them lost a text.
    """
    config, layout = model.config, model.layout
    draws = batch.prompt_index[:, :, None] == jnp.arange(hidden.shape[1])[None, None]
    bare = (bare[:, :, None] & draws).any(1)
    text, instruction, instructed = batch.prompt_tokens, batch.instruction_tokens, jnp.zeros_like(bare)
    if instruction is not None:
        instructed = token_count(instruction) > 0
        instruction = jnp.where(bare[..., None], PAD_ID, instruction)
    text = jnp.where((bare & ~instructed)[..., None], PAD_ID, text)
    if not layout.prompt_image:
        return prompt_inputs(text, instruction=instruction), bare
    images = batch.prompt_image
    latents = _latents(config, images, batch.prompt_latents, frozen, keys["prompt latents"])
    keep = _kept(layout, jax.random.fold_in(keys["images"], 2), "prompt_image", hidden, options)
    patches = vit.views(config, layout, images, latents)
    return prompt_inputs(text, latents, patches, instruction, batch.has_prompt_image, keep), bare

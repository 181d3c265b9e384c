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
from process_gen.models.content import BySegment, ChunkInputs, prompt_inputs, token_count, turn_inputs
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


_KEYS = ("flow", "latents", "context noise", "text", "images", "prompt latents")
"""Uses of random numbers, one key each; their order fixes the keys."""


def _latents(config: ModelConfig, images: jax.Array, encoded: Any, frozen: Any, key: Any) -> jax.Array:
    """Latents [B, S, I, C] of images: those `encoded` ahead of time, else means, or samples with a `key`."""
    if encoded is None:
        encoded = autoencoder.slots_to_tokens(config, images, frozen, key)
    return encoded.astype(jnp.float32)


def _draw_keep(
    key: jax.Array, layout: Layout, image: str, dropped: jax.Array, options: UnrollOptions
) -> BySegment:
    """Draws which segments of an image stay in context, [B, S] bool each; none where `dropped` [B, S]."""
    keep, segments = {}, layout.state_slots(image)
    for s, segment_key in zip(segments, jax.random.split(key, len(segments)), strict=True):
        rate = options.drop_vit if s.vit else options.drop_latents
        drop = dropped | jax.random.bernoulli(segment_key, rate, dropped.shape) if rate else dropped
        keep[s.name] = ~drop
    return keep


def make_inputs(
    model: UnifiedModel, batch: Batch, key: jax.Array, options: UnrollOptions, frozen: Any = None
) -> Inputs:
    """Makes all inputs of an unroll; takes the arguments of `unroll`.

    The flow target of a turn is its own image, or a later one that `batch.target` points
    to. Images that the batch holds as latents are not encoded.
    """
    config, layout, shape = model.config, model.layout, batch.present.shape
    keys = dict(zip(_KEYS, jax.random.split(key, len(_KEYS)), strict=True))
    if not options.sample_latents:
        keys |= {"latents": None, "prompt latents": None}
    latents = _latents(config, batch.image, batch.image_latents, frozen, keys["latents"])
    target_slot = jnp.clip(jnp.arange(shape[1])[None] + jnp.maximum(batch.target, 0), 0, shape[1] - 1)
    clean = jnp.take_along_axis(latents, target_slot[:, :, None, None], axis=1)
    noised, t, velocity = _flow_targets(keys["flow"], clean, layout.copies, options)
    shown, shown_latents = batch.image, latents  # the images that later tokens see
    if batch.shown is not None:
        shown = batch.shown
        shown_latents = _latents(config, shown, batch.shown_latents, frozen, keys["latents"])
    shown_latents = _add_context_noise(keys["context noise"], shown_latents, options)

    drop_images = jax.random.bernoulli(keys["images"], options.drop_images, batch.prompt_tokens.shape[:2])
    no_image = jnp.take_along_axis(drop_images, batch.prompt_index, axis=1)
    no_image |= batch.present & ~batch.has_image
    keep = _draw_keep(jax.random.fold_in(keys["images"], 1), layout, "image", no_image, options)
    drop_text = jax.random.bernoulli(keys["text"], options.drop_text, shape)
    turns = turn_inputs(
        batch.present,
        jnp.where(drop_text[..., None], PAD_ID, batch.before_tokens),
        batch.after_tokens,
        shown_latents,
        noised,
        t,
        vit.views(config, layout, shown, shown_latents),
        keep=keep,
    )
    has_text = token_count(batch.before_tokens) > 0
    drop_prompt = drop_text & batch.is_first & ~has_text
    prompts, dropped_prompt = _prompts(model, batch, keys, options, frozen, drop_prompt, drop_images)
    # The inspection is about the teacher's image, and the plan says what it should show. Neither it nor the
    # decisions after the image have labels where that image or plan was dropped, or another image is shown.
    unjudged = ~functools.reduce(jnp.logical_or, keep.values()) | (drop_text & has_text)
    unjudged = unjudged if batch.unjudged is None else unjudged | batch.unjudged
    previous = jnp.pad(latents, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    start = 0.0
    if layout.prompt_image:
        start = jnp.where(batch.has_prompt_image[:, :, None, None], prompts.latents["prompt_image"], 0.0)
        start = jnp.take_along_axis(start, batch.prompt_index[:, :, None, None], axis=1)
    flows = dict(
        target=velocity,
        x_t=noised,
        t=t,
        has_target=batch.present & (batch.target >= 0),
        previous=jnp.where(batch.is_first[:, :, None, None], start, previous),
        clean=clean,
        masked={"before": drop_text, "image_end": unjudged, "after": unjudged, "prompt_end": dropped_prompt},
    )
    return Inputs(prompts, turns, flows)


def _prompts(
    model: UnifiedModel,
    batch: Batch,
    keys: Mapping[str, jax.Array],
    options: UnrollOptions,
    frozen: Any,
    drop_text: jax.Array,
    drop_image: jax.Array,
) -> tuple[ChunkInputs, jax.Array]:
    """Makes the prompts of a batch, [B, R, ...], and [B, R] bool, which of them lost a text.

    `drop_text` [B, S]: turns whose prompt loses its newest text, the instruction or else the first text.
    `drop_image` [B, R]: prompts that lose their image.
    """
    config, layout = model.config, model.layout
    is_prompt_of = batch.prompt_index[:, :, None] == jnp.arange(drop_image.shape[1])[None, None]
    drop_text = (drop_text[:, :, None] & is_prompt_of).any(1)  # [B, R]
    text, instruction, drop_first = batch.prompt_tokens, batch.instruction_tokens, drop_text
    if instruction is not None:
        drop_first = drop_text & (token_count(instruction) == 0)
        instruction = jnp.where(drop_text[..., None], PAD_ID, instruction)
    text = jnp.where(drop_first[..., None], PAD_ID, text)
    if not layout.prompt_image:
        return prompt_inputs(text, instruction=instruction), drop_text
    images = batch.prompt_image
    latents = _latents(config, images, batch.prompt_latents, frozen, keys["prompt latents"])
    keep = _draw_keep(jax.random.fold_in(keys["images"], 2), layout, "prompt_image", drop_image, options)
    patches = vit.views(config, layout, images, latents)
    return prompt_inputs(text, latents, patches, instruction, batch.has_prompt_image, keep), drop_text

"""Forward passes over one part of a turn after a context: a text, a clean image, or a noised image.

Functions of a bound `UnifiedModel`, for `model.apply(..., method=extend.text)`. For the same content they
give the numbers of `UnifiedModel.step`. The first cache of a `context` is the history. B rows, T tokens of a
text, I latent tokens and P ViT tokens of an image, C channels, U values of a ViT patch, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from process_gen.models.cache import KVCache
from process_gen.models.content import ChunkInputs
from process_gen.models.unified import UnifiedModel
from process_gen.trajectory.layout import Segment
from process_gen.trajectory.visibility import chunk_of


def text(
    model: UnifiedModel, context: Sequence[KVCache], tokens: jax.Array, start: jax.Array
) -> tuple[jax.Array, KVCache]:
    """Runs a text [B, T], padded with `PAD_ID`, from position `start` [B] on.

    Returns its hidden states [B, T, D] and its KV cache.
    """
    chunk = chunk_of((Segment("text", "text", tokens.shape[1]),))
    content = ChunkInputs(jnp.ones(tokens.shape[0], bool), texts={"text": tokens})
    out = model.forward_chunk(chunk, content, context, start)
    return out.hidden["und"], out.cache(chunk.packed("text"))


def image(
    model: UnifiedModel,
    context: Sequence[KVCache],
    latents: jax.Array,
    patches: jax.Array | None,
    start: jax.Array,
) -> tuple[jax.Array, KVCache]:
    """Runs a clean image after a context; returns the hidden state [B, D] of its last token and its KV cache.

    `latents` are [B, I, C]; where the layout has ViT tokens, `patches` [B, P, U] are
    read as well. The image takes `layout.state_positions` positions from `start` [B] on.
    """
    chunk = chunk_of(model.layout.state_slots("image"))
    present = jnp.ones(latents.shape[0], bool)
    content = ChunkInputs(present, latents={"image": latents}, vit={"image_vit": patches})
    out = model.forward_chunk(chunk, content, context, start)
    pieces = chunk.packed(*(s.name for s in chunk.segments))
    return out.hidden["und"][:, chunk.text_tokens - 1], out.cache(pieces)


def velocity(
    model: UnifiedModel, context: Sequence[KVCache], x_t: jax.Array, t: jax.Array, position: jax.Array
) -> jax.Array:
    """The velocity [B, I, C] of a noised image x_t [B, I, C] at `t` [B] after a context, float32."""
    chunk = chunk_of((model.layout.image_slot("image", "noised"),))
    content = ChunkInputs(jnp.ones(x_t.shape[0], bool), latents={"image": x_t}, times={"image": t})
    out = model.forward_chunk(chunk, content, context, position)
    return model.to_velocity(out.hidden["gen"], x_t[:, None], t[:, None])[:, 0]

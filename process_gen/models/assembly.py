"""Chunks filled with content: which tokens are there, and their rotary positions.

B rows, L tokens of a chunk as they stand in memory, T tokens of a text slot, I latent
tokens and P ViT tokens of an image, C channels of a latent token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from process_gen.models.cache import KVCache
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.layout import Segment
from process_gen.trajectory.visibility import Chunk


@dataclasses.dataclass(frozen=True)
class Content:
    """What stands in the segments of a chunk, by the segment's name.

    Attributes:
      present: [B] bool, rows in which anything stands at all.
      texts: [B, T] int32 tokens, padded.
      latents: [B, I, C].
      times: [B], of those latents that are not clean.
      vit: [B, P, values of a patch], what the ViT sees.
      exists: [B] bool, of those image segments that some of the `present` rows lack.
      keep: [B] bool, of those that some rows leave out; they take their positions all the same.
    """

    present: jax.Array
    texts: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    latents: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    times: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    vit: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    exists: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    keep: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)

    def advances(self, segment: Segment) -> jax.Array:
        """[B] bool: the rows in which an image segment takes a position."""
        return self.exists.get(segment.name, True) & self.present

    def holds(self, segment: Segment) -> jax.Array:
        """[B] bool: the rows in which its tokens are there."""
        return self.advances(segment) & self.keep.get(segment.name, True)


def token_count(tokens: jax.Array) -> jax.Array:
    """Tokens of a text slot that are not padding, [...]."""
    return (tokens != PAD_ID).sum(-1, dtype=jnp.int32)


def token_mask(chunk: Chunk, content: Content) -> jax.Array:
    """[B, L] bool as in memory: tokens that are there."""
    mask = []
    for s in chunk.segments:
        if s.kind == "text":
            mask.append((content.texts[s.name] != PAD_ID) & content.present[:, None])
        else:
            mask.append(jnp.broadcast_to(content.holds(s)[:, None], (content.present.shape[0], s.tokens)))
    return in_memory(chunk, mask)


def positions(chunk: Chunk, content: Content, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rotary positions [B, L] as in memory from `start` [B] on, and the position [B] that follows.

    Text counts up; an image has one position, which its noised copies share, and
    its ViT tokens have the next one.
    """
    found = []
    for s in chunk.segments:
        if s.kind == "text":
            found.append(start[:, None] + jnp.arange(s.text)[None])
            start = start + token_count(content.texts[s.name])
        else:
            found.append(jnp.broadcast_to(start[:, None], (start.shape[0], s.tokens)))
            if s.kind == "clean":
                start = start + content.advances(s).astype(jnp.int32)
    return in_memory(chunk, found), start


def in_memory(chunk: Chunk, parts: Sequence[jax.Array]) -> jax.Array:
    """Arrays [B, tokens], one per segment (constant over an image), to [B, L] as in memory."""
    pairs = list(zip(chunk.segments, parts, strict=True))
    blocks = [x[:, : s.text] for s, x in pairs]
    blocks += [x[:, : s.vit] for s, x in pairs if s.vit]
    return jnp.concatenate(blocks + [x[:, : s.latents] for s, x in pairs if s.latents], axis=1)


def taken(pieces: Sequence[slice], k: jax.Array, v: jax.Array, mask: jax.Array) -> KVCache:
    """Some pieces of a chunk's keys and values [Y, B, L, K, H]; `mask` [B, L] says what is there."""
    k, v = (jnp.moveaxis(jnp.concatenate([x[:, :, s] for s in pieces], axis=2), 3, 2) for x in (k, v))
    return KVCache(k, v, jnp.concatenate([mask[:, s] for s in pieces], axis=1))


def at_token(hidden: jax.Array, index: jax.Array) -> jax.Array:
    """hidden [B, T, D] at one token per row, [B, D]; the last one where the index is -1."""
    return jnp.take_along_axis(hidden, index[:, None, None] % hidden.shape[1], axis=1)[:, 0]

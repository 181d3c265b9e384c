"""Chunks filled with content: which tokens are there, and their rotary ids.

B rows, L tokens of a chunk in memory order, T tokens of a text slot, N latent
tokens and P ViT tokens of an image, V values of a latent token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.models.context import Memory
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.layout import Segment
from process_gen.trajectory.visibility import Chunk


@dataclasses.dataclass(frozen=True)
class Content:
    """What stands in the segments of a chunk, by the segment's name.

    Attributes:
      rows: [B] bool, rows in which anything stands at all.
      texts: [B, T] int32 tokens, padded.
      latents: [B, N, V].
      times: [B], of those latents that are not clean.
      views: [B, P, values of a patch], what the ViT sees.
      there: [B] bool, of those image segments that some of the `rows` lack.
    """

    rows: jax.Array
    texts: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    latents: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    times: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    views: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    there: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)

    def holds(self, segment: Segment) -> jax.Array:
        """[B] bool: the rows that have an image segment."""
        return self.there[segment.name] & self.rows if segment.name in self.there else self.rows


def token_count(tokens: jax.Array) -> jax.Array:
    """Tokens of a text slot that are not padding, [...]."""
    return (tokens != PAD_ID).sum(-1, dtype=jnp.int32)


def valid_tokens(chunk: Chunk, content: Content) -> jax.Array:
    """[B, L] bool in memory order: tokens that are there."""
    valid = []
    for s in chunk.segments:
        if s.kind == "text":
            valid.append((content.texts[s.name] != PAD_ID) & content.rows[:, None])
        else:
            valid.append(jnp.broadcast_to(content.holds(s)[:, None], (content.rows.shape[0], s.tokens)))
    return in_memory(chunk, valid)


def rotary_ids(chunk: Chunk, content: Content, next_id: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rotary ids [B, L] in memory order, and the id [B] that follows the chunk.

    Text counts up; an image has one id, which its noised copies share, and its
    ViT tokens have the next one.
    """
    ids = []
    for s in chunk.segments:
        if s.kind == "text":
            ids.append(next_id[:, None] + jnp.arange(s.text)[None])
            next_id = next_id + token_count(content.texts[s.name])
        else:
            ids.append(jnp.broadcast_to(next_id[:, None], (next_id.shape[0], s.tokens)))
            if s.kind == "clean":
                next_id = next_id + content.holds(s).astype(jnp.int32)
    return in_memory(chunk, ids), next_id


def in_memory(chunk: Chunk, parts: Sequence[jax.Array]) -> jax.Array:
    """Arrays [B, tokens], one per segment (constant over an image), to [B, L] in memory order."""
    pairs = list(zip(chunk.segments, parts, strict=True))
    blocks = [x[:, : s.text] for s, x in pairs]
    blocks += [x[:, : s.vit] for s, x in pairs if s.vit]
    return jnp.concatenate(blocks + [x[:, : s.latents] for s, x in pairs if s.latents], axis=1)


def members(chunk: Chunk, segments: Sequence[Segment]) -> np.ndarray:
    """[1, L] bool: the tokens of some segments."""
    found = np.zeros((1, chunk.tokens), bool)
    for piece in chunk.memory(*(s.name for s in segments)):
        found[:, piece] = True
    return found


def slots(chunk: Chunk, segments: Sequence[Segment], k: jax.Array, v: jax.Array, valid: jax.Array) -> Memory:
    """The keys and values of some segments, cut out of a chunk's, in memory order."""
    pieces = chunk.memory(*(s.name for s in segments))
    return Memory.of(
        jnp.concatenate([k[:, :, s] for s in pieces], axis=2),
        jnp.concatenate([v[:, :, s] for s in pieces], axis=2),
        jnp.concatenate([valid[:, s] for s in pieces], axis=1),
    )


def at_token(hidden: jax.Array, index: jax.Array) -> jax.Array:
    """hidden [B, T, D] at one token per row, [B, D]."""
    pick = jax.nn.one_hot(index, hidden.shape[1], dtype=hidden.dtype)
    return jnp.einsum("btd,bt->bd", hidden, pick)

"""From who sees whom in a chunk to attention calls.

B rows, L tokens of a chunk, C tokens of its context, N query heads, K key/value
heads, H head. A maker takes a chunk and what each group of queries may see, and
returns a function of one layer's q [B, L, N, H], k, v [B, L, K, H] and context,
pairs of keys and values [B, K, C, H], that gives [B, L, N * H].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from process_gen.models import kernels
from process_gen.models.config import ModelConfig
from process_gen.models.layers import NEGATIVE, attend, attend_two
from process_gen.models.partition import constrain
from process_gen.trajectory.visibility import Chunk, QueryGroup

Pairs = Sequence[tuple[jax.Array, jax.Array]]
Attention = Callable[[jax.Array, jax.Array, jax.Array, Pairs], jax.Array]


@dataclasses.dataclass(frozen=True)
class Visible:
    """Which keys hold something that may be seen.

    Attributes:
      context: [B, C] bool.
      chunk: [B, L] bool, in memory order.
    """

    context: jax.Array
    chunk: jax.Array


VisibleTo = Callable[[QueryGroup], Visible]
"""What a group of queries may see, on top of the static mask of its chunk."""


def make_attention(config: ModelConfig, chunk: Chunk, visible_to: VisibleTo) -> Attention:
    """What `config.attention` makes of a chunk; all give the same numbers for tokens that are there."""
    if config.attention in _MASKED:
        return _MASKED[config.attention](chunk, visible_to)
    kernel = kernels.choose(config.attention, config.head_dim, config.dtype)
    return attend_kernel(kernel, chunk, visible_to)


def takes_parts(config: ModelConfig) -> bool:
    """Whether the context may come in several pairs of keys and values; else it must be joined into one."""
    return config.attention not in _MASKED


def attend_kernel(kernel: kernels.Kernel, chunk: Chunk, visible_to: VisibleTo) -> Attention:
    """One call of a kernel for every image, and for texts in a row; no scores and no masks in memory."""
    seen = [visible_to(call.group) for call in chunk.calls]
    visible = [
        jnp.concatenate([s.context, *(s.chunk[:, piece] for piece in call.keys)], axis=1)
        for s, call in zip(seen, chunk.calls, strict=True)
    ]

    def attention(q, k, v, context):
        # The calls cut tokens where a mesh does not: each device gets all of them once, and keeps its part.
        q = constrain("queries", q, "rows", None, "heads", None)
        k, v = (constrain("keys and values", x, "rows", None, "kv_heads", None) for x in (k, v))
        q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
        pieces = {}
        for call, keys_visible in zip(chunk.calls, visible, strict=True):
            keys = jnp.concatenate([*(c[0] for c in context), *(k[:, :, s] for s in call.keys)], axis=2)
            values = jnp.concatenate([*(c[1] for c in context), *(v[:, :, s] for s in call.keys)], axis=2)
            queries = jnp.concatenate([q[:, :, s] for s in call.queries], axis=2)
            before = keys.shape[2] - queries.shape[2] if call.causal else None
            out = jnp.moveaxis(kernels.run(kernel, queries, keys, values, keys_visible, before), 1, 2)
            out = constrain("attended", out, "rows", None, "heads", None)
            _keep(pieces, call.queries, out.reshape(*out.shape[:2], -1))
        return jnp.concatenate([pieces[start] for start in sorted(pieces)], axis=1)

    return attention


def _keep(pieces: dict[int, jax.Array], slices: Sequence[slice], out: jax.Array) -> None:
    """Cuts the result of a call back into the pieces that its queries came from."""
    offset = 0
    for piece in slices:
        length = piece.stop - piece.start
        pieces[piece.start] = out[:, offset : offset + length]
        offset += length


def attend_groups(chunk: Chunk, visible_to: VisibleTo) -> Attention:
    """Attention as a handful of calls with explicit masks, one per group of queries."""

    def attention(q, k, v, context):
        (context,) = context
        pieces = {}
        context = tuple(jnp.moveaxis(x, 1, 2) for x in context)
        for group in chunk.groups:
            seen = visible_to(group)
            keys = jnp.concatenate([context[0], *(k[:, s] for s in group.keys)], axis=1)
            values = jnp.concatenate([context[1], *(v[:, s] for s in group.keys)], axis=1)
            inside = jnp.concatenate([seen.chunk[:, s] for s in group.keys], axis=1)
            inside = inside[:, None] & jnp.asarray(group.mask)[None]
            before = jnp.broadcast_to(seen.context[:, None], (*inside.shape[:2], seen.context.shape[1]))
            queries = jnp.concatenate([q[:, s] for s in group.queries], axis=1)
            out = attend(queries, keys, values, jnp.concatenate([before, inside], axis=2))
            _keep(pieces, group.queries, out)
        return jnp.concatenate([pieces[start] for start in sorted(pieces)], axis=1)

    return attention


def attend_dense(chunk: Chunk, visible_to: VisibleTo) -> Attention:
    """Attention as one call with an explicit mask: for chunks of a few hundred tokens.

    On a CPU many small products and the copies between them cost more than the
    scores that a mask throws away.
    """
    before, inside = {}, {}
    for group in chunk.groups:
        seen = visible_to(group)
        for piece in group.queries:
            mask = jnp.asarray(chunk.mask[piece])
            inside[piece.start] = seen.chunk[:, None] & mask[None]
            before[piece.start] = jnp.broadcast_to(
                seen.context[:, None], (*inside[piece.start].shape[:2], seen.context.shape[1])
            )
    return attend_masked(
        *(jnp.concatenate([part[i] for i in sorted(part)], axis=1) for part in (before, inside))
    )


def attend_masked(before: jax.Array, inside: jax.Array) -> Attention:
    """Attention with explicit masks over the context [B, L, C] and the chunk [B, L, L], bool."""
    biases = tuple(jnp.where(mask, 0.0, NEGATIVE)[:, None, None] for mask in (before, inside))

    def attention(q, k, v, context):
        (context,) = context
        return attend_two(q, context, (k, v), *biases)

    return attention


_MASKED = {"dense": attend_dense, "grouped": attend_groups}

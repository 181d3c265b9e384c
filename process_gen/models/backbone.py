"""The Mixture-of-Transformers backbone over one chunk of tokens.

Two dense blocks, one per modality, share attention (BAGEL, arXiv 2505.14683,
section 2). B batch, L tokens of the chunk (T of the understanding side:
vocabulary tokens, then ViT tokens; then G latent tokens), C tokens of the
context, D width, K key/value heads, H head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from process_gen.models.config import ModelConfig
from process_gen.models.layers import NEGATIVE, Expert, RMSNorm, attend, attend_two, rope_angles, stacked
from process_gen.trajectory.visibility import Chunk, QueryGroup


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


class MoTLayer(nn.Module):
    """One layer: two experts around one shared attention."""

    config: ModelConfig

    def setup(self):
        self.und = Expert(self.config)
        self.gen = Expert(self.config)

    def __call__(self, streams, context, ropes, attention):
        """Runs the layer.

        Args:
          streams: {"und": [B T D], "gen": [B G D]}, either may be missing.
          context: keys and values of the context, [B K C H] each.
          ropes: cos and sin per stream.
          attention: maps q, k, v of the chunk and the context to [B L N*H].

        Returns:
          streams, and the chunk's keys and values [B L K H].
        """
        experts = {"und": self.und, "gen": self.gen}
        # In this order, which is the chunk's: a scan hands its carry back with sorted keys.
        names = [name for name in experts if name in streams]
        parts = [experts[name].qkv(streams[name], ropes[name]) for name in names]
        q, k, v = (jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        attended, offset, out = attention(q, k, v, context), 0, {}
        for name in names:
            x = streams[name]
            out[name] = experts[name].residual(x, attended[:, offset : offset + x.shape[1]])
            offset += x.shape[1]
        return out, (k, v)


def attend_groups(chunk: Chunk, visible_to: VisibleTo):
    """Attention as a handful of plain calls, one per group of queries."""

    def call(q, k, v, context):
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
            offset = 0
            for piece in group.queries:
                length = piece.stop - piece.start
                pieces[piece.start] = out[:, offset : offset + length]
                offset += length
        return jnp.concatenate([pieces[start] for start in sorted(pieces)], axis=1)

    return call


def attend_dense(chunk: Chunk, visible_to: VisibleTo):
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


def attend_masked(before: jax.Array, inside: jax.Array):
    """Attention with explicit masks over the context [B, L, C] and the chunk [B, L, L], bool."""
    biases = tuple(jnp.where(mask, 0.0, NEGATIVE)[:, None, None] for mask in (before, inside))

    def call(q, k, v, context):
        return attend_two(q, context, (k, v), *biases)

    return call


ATTENTION = {"dense": attend_dense, "grouped": attend_groups}
"""How `ModelConfig.attention` turns a chunk into attention calls; all give the same numbers."""


class Backbone(nn.Module):
    """Stacked, scanned layers and the final norm of each modality."""

    config: ModelConfig

    def setup(self):
        self.layers = MoTLayer(self.config)
        self.norms = {"und": RMSNorm(self.config), "gen": RMSNorm(self.config)}

    def __call__(
        self,
        streams: Mapping[str, jax.Array],
        ids: Mapping[str, jax.Array],
        places: tuple[jax.Array, jax.Array],
        context: tuple[jax.Array, jax.Array],
        attention: Callable,
    ) -> tuple[dict[str, jax.Array], tuple[jax.Array, jax.Array]]:
        """Runs a chunk over a context.

        Args:
          streams: {"und": [B T D], "gen": [B G D]}; a chunk of one modality names only that one.
          ids: 1-D rotary ids per stream, [B T] and [B G].
          places: row and column of every latent token, [G] each.
          context: keys and values, [layers B K C H] each.
          attention: from `attend_groups` or `attend_masked`.

        Returns:
          Hidden states after the final norms, and the chunk's keys and values
          [layers B L K H].
        """
        c = self.config
        ropes = {}
        for name, x in streams.items():
            rows, columns = places if name == "gen" else (jnp.zeros(x.shape[1]),) * 2
            angles = rope_angles(c, ids[name], rows, columns)
            ropes[name] = (jnp.cos(angles), jnp.sin(angles))

        def body(layer, carry, layer_context):
            return layer(carry, layer_context, ropes, attention)

        hidden, memory = stacked(body, c, c.layers)(self.layers, dict(streams), context)
        return {name: self.norms[name](x) for name, x in hidden.items()}, memory

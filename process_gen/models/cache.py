"""The KV cache of a trajectory: its prompt and a window of earlier turns.

Y layers, B rows, M keys, K key/value heads, H head, W turns of the history (`layout.window`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from process_gen.models.config import ModelConfig
from process_gen.trajectory.layout import Layout, Segment
from process_gen.trajectory.visibility import Chunk, seen_parts


@flax.struct.dataclass
class KVCache:
    """Keys and values of some tokens.

    Attributes:
      k, v: [Y, B, K, M, H], keys already rotated.
      mask: [B, M] bool, the keys that are present and may be seen.
    """

    k: Any
    v: Any
    mask: Any

    @classmethod
    def empty(cls, config: ModelConfig, rows: int, keys: int) -> KVCache:
        """Zeros for `keys` keys in each of `rows` rows, all masked out."""
        shape = (config.layers, rows, config.kv_heads, keys, config.head_dim)
        zeros = jnp.zeros(shape, jnp.dtype(config.dtype))
        return cls(zeros, zeros, jnp.zeros((rows, keys), bool))

    def write(self, new: KVCache, at: jax.Array | int) -> KVCache:
        """Overwrites keys from index `at` on with `new`, at the same place in every row."""

        def update(old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new, at, axis)

        return jax.tree.map(update, self, new, KEYS)

    def slice_keys(self, keys: slice) -> KVCache:
        """The part of the cache in the slice `keys`."""
        return KVCache(self.k[..., keys, :], self.v[..., keys, :], self.mask[:, keys])

    def keep_only(self, mask: jax.Array) -> KVCache:
        """Masks out the keys where `mask`, [B, M] or [B, 1] bool, is False."""
        return self.replace(mask=self.mask & mask)


KEYS, ROWS = KVCache(k=3, v=3, mask=1), KVCache(k=1, v=1, mask=0)
"""The axes that count keys, and rows."""


def joined(caches: Sequence[KVCache], axes: KVCache = KEYS) -> KVCache:
    """Concatenates caches along their keys, or their `ROWS`."""
    return jax.tree.map(lambda axis, *xs: jnp.concatenate(xs, axis), axes, *caches)


def _where(rows: jax.Array, x: KVCache, y: KVCache) -> KVCache:
    """The cache `x` in the rows [B] bool, `y` in the others."""
    pick = rows[None, :, None, None, None]
    mask = jnp.where(rows[:, None], x.mask, y.mask)
    return KVCache(jnp.where(pick, x.k, y.k), jnp.where(pick, x.v, y.v), mask)


@flax.struct.dataclass
class Context:
    """What a turn can attend to: its prompt and the turns before it.

    The history is a sliding window over the last W = `layout.window` turns, the
    newest last, `layout.visible_tokens` keys each.

    Attributes:
      prompt: keys and values of the prompt.
      history: keys and values of the last W turns.
      step: [B, W] int32, the step of each of those turns, counted from 0 in its trajectory.
      refines: [B, W] bool, whether each of them is a refine turn.
      position: [B] int32, the next rotary position.
    """

    prompt: KVCache
    history: KVCache
    step: Any
    refines: Any
    position: Any

    @classmethod
    def empty(cls, config: ModelConfig, layout: Layout, rows: int) -> Context:
        """A context without prompts and turns, at position 0."""
        window = layout.window
        return cls(
            prompt=KVCache.empty(config, rows, layout.prompt_tokens),
            history=KVCache.empty(config, rows, window * layout.visible_tokens),
            step=jnp.full((rows, window), -1, jnp.int32),
            refines=jnp.zeros((rows, window), bool),
            position=jnp.zeros(rows, jnp.int32),
        )

    def seen(self, layout: Layout, refines: jax.Array) -> KVCache:
        """The history, masked to what a turn sees; `refines` [B] bool: whether it is a refine turn."""
        if not layout.window:
            return self.history
        step = self.step[:, -1] + ~refines  # a draft begins a step
        parts = seen_parts(layout.context, self.step, self.refines, step, refines)
        return self.history.keep_only(over_tokens(layout, parts))

    def with_prompts(self, fresh: jax.Array, prompt: KVCache, position: jax.Array) -> Context:
        """Starts new trajectories in the rows `fresh` [B] bool, with new prompts and empty histories."""
        return self.replace(
            prompt=_where(fresh, prompt, self.prompt),
            history=self.history.keep_only(~fresh[:, None]),
            step=jnp.where(fresh[:, None], -1, self.step),
            position=jnp.where(fresh, position, self.position),
        )

    def with_turn(
        self, layout: Layout, turn: KVCache, present: jax.Array, refines: jax.Array, position: jax.Array
    ) -> Context:
        """Appends a turn of `layout.visible_tokens` keys in the rows `present` [B] bool."""
        position = jnp.where(present, position, self.position)
        if not layout.window:
            return self.replace(position=position)

        def shifted(old, new):
            return jnp.concatenate([old[:, 1:], new[:, None]], axis=1)

        history = joined([self.history.slice_keys(slice(layout.visible_tokens, None)), turn])
        step = shifted(self.step, self.step[:, -1] + ~refines)
        return self.replace(
            history=_where(present, history, self.history),
            step=jnp.where(present[:, None], step, self.step),
            refines=jnp.where(present[:, None], shifted(self.refines, refines), self.refines),
            position=position,
        )


def over_tokens(layout: Layout, parts: dict[str, jax.Array]) -> jax.Array:
    """Repeats masks [..., W] of the parts of turns over their tokens, [..., W * layout.visible_tokens]."""
    sizes = {name: sum(s.tokens for s in part) for name, part in layout.visible_parts.items()}
    masks = [jnp.repeat(parts[name][..., None], size, axis=-1) for name, size in sizes.items()]
    mask = jnp.concatenate(masks, axis=-1)
    return mask.reshape(*mask.shape[:-2], -1)


def chunk_slices(chunk: Chunk, parts: Mapping[str, Sequence[Segment]]) -> tuple[slice, ...]:
    """Slices of a chunk's tokens (packed order) that put them in the order of a cache: part by part.

    `parts` are those of a turn (`layout.visible_parts`) or of a prompt (`layout.prompt_parts`).
    """
    return tuple(piece for part in parts.values() for piece in chunk.packed(*(s.name for s in part)))


def part_slices(parts: Mapping[str, Sequence[Segment]]) -> dict[str, slice]:
    """Where the cache of a turn or prompt holds each of its `parts`; see `chunk_slices`."""
    slices, start = {}, 0
    for name, segments in parts.items():
        stop = start + sum(s.tokens for s in segments)
        slices[name], start = slice(start, stop), stop
    return slices

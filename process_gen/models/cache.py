"""Keys and values of what came before: the KV cache of a trajectory.

Y layers, B rows, M keys, K key/value heads, H head, W turns of the history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from process_gen.models.config import ModelConfig
from process_gen.trajectory.layout import Layout, Segment
from process_gen.trajectory.visibility import seen_parts


@flax.struct.dataclass
class KVCache:
    """Keys and values of some tokens.

    Attributes:
      k, v: [Y, B, K, M, H], keys already rotated.
      mask: [B, M] bool, which of them are there and may be seen.
    """

    k: Any
    v: Any
    mask: Any

    @classmethod
    def empty(cls, config: ModelConfig, rows: int, keys: int) -> KVCache:
        shape = (config.layers, rows, config.kv_heads, keys, config.head_dim)
        zeros = jnp.zeros(shape, jnp.dtype(config.dtype))
        return cls(zeros, zeros, jnp.zeros((rows, keys), bool))

    def write(self, new: KVCache, at: jax.Array | int) -> KVCache:
        """Replaces the keys from `at` on, for all rows alike."""

        def update(old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new, at, axis)

        return jax.tree.map(update, self, new, _AXES)

    def cut(self, keys: slice) -> KVCache:
        """Some of the keys alone."""
        return KVCache(self.k[..., keys, :], self.v[..., keys, :], self.mask[:, keys])

    def only(self, mask: jax.Array) -> KVCache:
        """Hides what `mask`, [B, M] or [B, 1] bool, does not hold."""
        return self.replace(mask=self.mask & mask)


KEYS = 3
"""The axis of `k` and `v` along which the keys stand."""
_AXES = KVCache(k=KEYS, v=KEYS, mask=1)


def joined(caches: Sequence[KVCache]) -> KVCache:
    """Caches side by side."""
    return jax.tree.map(lambda axis, *xs: jnp.concatenate(xs, axis), _AXES, *caches)


def where(rows: jax.Array, yes: KVCache, no: KVCache) -> KVCache:
    """Picks a cache per row; `rows` [B] bool."""
    pick = rows[None, :, None, None, None]
    return KVCache(
        jnp.where(pick, yes.k, no.k),
        jnp.where(pick, yes.v, no.v),
        jnp.where(rows[:, None], yes.mask, no.mask),
    )


@flax.struct.dataclass
class Context:
    """Everything that a turn sees of what came before it.

    The history is a window that slides over the turns of a trajectory, the newest
    one last, `layout.visible_tokens` keys each.

    Attributes:
      prompt: the prompt's keys.
      history: those of the last W turns.
      step: [B, W] int32, the number of the step that each of those turns belongs to.
      refines: [B, W] bool, whether it is a refine turn.
      position: [B] int32, the next rotary position.
    """

    prompt: KVCache
    history: KVCache
    step: Any
    refines: Any
    position: Any

    @classmethod
    def empty(cls, config: ModelConfig, layout: Layout, rows: int) -> Context:
        """A context in which nothing has been said yet."""
        window = layout.history
        return cls(
            prompt=KVCache.empty(config, rows, layout.prompt_slots),
            history=KVCache.empty(config, rows, window * layout.visible_tokens),
            step=jnp.full((rows, window), -1, jnp.int32),
            refines=jnp.zeros((rows, window), bool),
            position=jnp.zeros(rows, jnp.int32),
        )

    def seen(self, layout: Layout, refines: jax.Array) -> KVCache:
        """The history as a turn sees it; `refines` [B] bool: whether that is a refine turn."""
        if not layout.history:
            return self.history
        now = self.step[:, -1] + ~refines
        parts = seen_parts(layout.context, self.step, self.refines, now, refines)
        return self.history.only(over_tokens(layout, parts))

    def started(self, fresh: jax.Array, prompt: KVCache, position: jax.Array) -> Context:
        """With new prompts in the rows `fresh` [B] bool, whose history is forgotten."""
        return self.replace(
            prompt=where(fresh, prompt, self.prompt),
            history=self.history.only(~fresh[:, None]),
            step=jnp.where(fresh[:, None], -1, self.step),
            position=jnp.where(fresh, position, self.position),
        )

    def pushed(
        self, layout: Layout, turn: KVCache, present: jax.Array, refines: jax.Array, position: jax.Array
    ) -> Context:
        """After a turn, in the rows that are `present` [B] bool; `turn` has `layout.visible_tokens` keys."""
        position = jnp.where(present, position, self.position)
        if not layout.history:
            return self.replace(position=position)

        def shifted(old, new):
            return jnp.concatenate([old[:, 1:], new[:, None]], axis=1)

        history = joined([self.history.cut(slice(layout.visible_tokens, None)), turn])
        step = shifted(self.step, self.step[:, -1] + ~refines)
        return self.replace(
            history=where(present, history, self.history),
            step=jnp.where(present[:, None], step, self.step),
            refines=jnp.where(present[:, None], shifted(self.refines, refines), self.refines),
            position=position,
        )


def over_tokens(layout: Layout, parts: dict[str, jax.Array]) -> jax.Array:
    """[..., W] bool by part of a turn to [..., W * layout.visible_tokens], as the keys of a history stand."""
    sizes = {name: sum(s.tokens for s in part) for name, part in layout.visible_parts.items()}
    spread = [jnp.repeat(parts[name][..., None], size, axis=-1) for name, size in sizes.items()]
    mask = jnp.concatenate(spread, axis=-1)
    return mask.reshape(*mask.shape[:-2], -1)


def visible_pieces(layout: Layout, chunk) -> tuple[slice, ...]:
    """Where the tokens of a turn that later ones may see stand in a chunk, part by part."""
    parts = [part for part in layout.visible_parts.values() if part]
    return tuple(piece for part in parts for piece in chunk.packed(*(s.name for s in part)))


def part_slices(parts: Mapping[str, Sequence[Segment]]) -> dict[str, slice]:
    """Where the parts of a turn (`layout.visible_parts`), or of a prompt, stand among its keys."""
    found, at = {}, 0
    for name, segments in parts.items():
        size = sum(s.tokens for s in segments)
        found[name], at = slice(at, at + size), at + size
    return found

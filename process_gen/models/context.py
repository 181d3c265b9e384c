"""What later tokens see of earlier ones: keys, values, and which hold something.

Y layers, B rows, M slots, K key/value heads, H head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from process_gen.models.config import ModelConfig
from process_gen.models.partition import constrain
from process_gen.trajectory.layout import Layout

SLOTS = 3
"""The axis of keys and values along which the slots of a memory stand."""


@flax.struct.dataclass
class Memory:
    """Keys and values of some slots.

    Attributes:
      k, v: [Y, B, K, M, H], keys already rotated.
      visible: [B, M] bool.
    """

    k: Any
    v: Any
    visible: Any

    @classmethod
    def empty(cls, config: ModelConfig, rows: int, slots: int) -> Memory:
        shape = (config.layers, rows, config.kv_heads, slots, config.head_dim)
        zeros = jnp.zeros(shape, jnp.dtype(config.dtype))
        return cls(zeros, zeros, jnp.zeros((rows, slots), bool))

    @classmethod
    def of(cls, k: jax.Array, v: jax.Array, visible: jax.Array) -> Memory:
        """From the keys and values of a chunk, [Y, B, M, K, H]: heads go first, as attention reads them."""
        return cls(jnp.moveaxis(k, 3, 2), jnp.moveaxis(v, 3, 2), visible)

    def write(self, new: Memory, at: jax.Array | int) -> Memory:
        """Replaces the slots from `at` on, for all rows alike."""
        update = jax.lax.dynamic_update_slice_in_dim
        return Memory(
            update(self.k, new.k, at, SLOTS),
            update(self.v, new.v, at, SLOTS),
            update(self.visible, new.visible, at, 1),
        )

    def constrained(self) -> Memory:
        """Keys and values split over the mesh by rows and heads."""
        k, v = (constrain("a context", x, None, "rows", "kv_heads", None, None) for x in (self.k, self.v))
        return self.replace(k=k, v=v)

    def only(self, rows: jax.Array) -> Memory:
        """Hides every slot of the rows that are not in `rows` [B] bool."""
        return self.replace(visible=self.visible & rows[:, None])


def joined(memories: Sequence[Memory]) -> Memory:
    """Memories side by side."""
    if len(memories) == 1:
        return memories[0]
    return Memory(
        jnp.concatenate([m.k for m in memories], axis=SLOTS),
        jnp.concatenate([m.v for m in memories], axis=SLOTS),
        jnp.concatenate([m.visible for m in memories], axis=1),
    )


def where(rows: jax.Array, yes: Memory, no: Memory) -> Memory:
    """Picks a memory per row; `rows` [B] bool."""
    pick = rows[None, :, None, None, None]
    return Memory(
        jnp.where(pick, yes.k, no.k),
        jnp.where(pick, yes.v, no.v),
        jnp.where(rows[:, None], yes.visible, no.visible),
    )


@flax.struct.dataclass
class Context:
    """Everything that a step sees of what came before it.

    Attributes:
      prompt: the prompt's slots.
      history: earlier steps' slots, as many as the layout's context policy keeps.
      next_id: [B] int32, the next rotary id.
      slot: [] int32, steps written so far (where `full` history goes next).
    """

    prompt: Memory
    history: Memory
    next_id: Any
    slot: Any

    @property
    def memories(self) -> tuple[Memory, Memory]:
        return self.prompt, self.history


def history_slots(layout: Layout) -> int:
    """Slots of `Context.history`."""
    return sum(s.tokens for s in layout.history_segments)


def image_slots(layout: Layout) -> np.ndarray:
    """[prompt + history] bool: the slots of a context that hold images, ViT tokens included."""
    segments = (*layout.prompt_segments, *layout.history_segments)
    return np.concatenate([np.full(s.tokens, s.kind != "text") for s in segments])


def prompt_slots(layout: Layout) -> dict[str, slice]:
    """Where the parts of a prompt stand in its memory."""
    found, at = {}, 0
    for name, segments in layout.prompt_parts.items():
        size = sum(s.tokens for s in segments)
        found[name], at = slice(at, at + size), at + size
    return found


def newest_prompt_text(layout: Layout, visible: jax.Array) -> jax.Array:
    """[B, M] bool: the slots of the last text of each prompt, in a memory that starts with prompts.

    `visible` [B, M]: the instruction after the image where there is one, else the prompt.
    """
    where, slots = prompt_slots(layout), np.arange(visible.shape[1])

    def of(part):
        return jnp.asarray((slots >= where[part].start) & (slots < where[part].stop))[None]

    if "instruction" not in where:
        return of("prompt")
    instructed = visible[:, where["instruction"]].any(1, keepdims=True)
    return jnp.where(instructed, of("instruction"), of("prompt"))

"""Text out of the model: tokens one by one, keys and values written as they come.

B rows, T tokens of the slot, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from process_gen.models.context import Memory, joined
from process_gen.models.unified import UnifiedModel
from process_gen.trajectory.batch import PAD_ID


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """What the decoding of a stage's text is compiled for.

    Attributes:
      slot: tokens of the text slot.
      prefix: the ids that every text of the stage starts with.
      banned: ids that may not appear after the prefix; `<|im_end|>` always may.
      vocabulary: ids from here on belong to no piece of the tokenizer.
      temperature: 0 is greedy.
    """

    slot: int
    prefix: tuple[int, ...]
    banned: tuple[int, ...]
    vocabulary: int
    temperature: float = 0.0

    def allowed(self, size: int) -> np.ndarray:
        """[size] bool: the ids of a model's vocabulary that may be written."""
        allowed = np.arange(size) < self.vocabulary
        allowed[list(self.banned)] = False
        return allowed


@flax.struct.dataclass
class Text:
    """A decoded text.

    Attributes:
      tokens: [B, T] int32 with its brackets, padded with `PAD_ID`; nothing else in rows that write nothing.
      hidden: [B, T, D] hidden state of every token.
      memory: what later tokens see of it.
    """

    tokens: Any
    hidden: Any
    memory: Memory


Pick = Callable[[jax.Array, jax.Array], jax.Array]
"""(hidden [B, D] of a token, position [] of the next one) -> the next token [B] int32."""


def choose(logits: jax.Array, allowed: np.ndarray, temperature: float, keys: jax.Array) -> jax.Array:
    """One id per row, [B] int32, among those `allowed` [vocabulary] bool.

    `keys` [B] are used above temperature 0 only.
    """
    logits = jnp.where(jnp.asarray(allowed)[None], logits, -jnp.inf)
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, logits / temperature).astype(jnp.int32)


def decode(
    model: UnifiedModel,
    params: Any,
    memory: Memory,
    next_id: jax.Array,
    rows: jax.Array,
    spec: TextSpec,
    pick: Pick,
) -> Text:
    """Writes a text after `memory` in the rows [B] bool, until each has closed it.

    `pick` is asked for every token after the prefix; at the slot's end the
    closing token is forced. The loop ends when the last row has closed its text.
    """
    close, base, slot = model.ids.im_end, memory.visible.shape[1], spec.slot
    prefix = jnp.where(rows[:, None], jnp.asarray(spec.prefix, jnp.int32)[None], PAD_ID)
    start = len(spec.prefix)

    def read(memory, tokens, at):
        variables = {"params": params}
        hidden, new = model.apply(variables, memory, tokens, next_id + at, method="read_text")
        return hidden, memory.write(new, base + at)

    memory = joined([memory, Memory.empty(model.config, rows.shape[0], slot)])
    hidden, memory = read(memory, prefix, 0)
    tokens = jnp.full((rows.shape[0], slot), PAD_ID, jnp.int32).at[:, :start].set(prefix)
    states = jnp.zeros((rows.shape[0], slot, hidden.shape[2]), hidden.dtype).at[:, :start].set(hidden)

    def open_rows(tokens, at):
        newest = jax.lax.dynamic_slice_in_dim(tokens, at - 1, 1, 1)[:, 0]
        return (newest != PAD_ID) & (newest != close)

    def unfinished(state):
        at, tokens, _, _ = state
        return (at < slot) & open_rows(tokens, at).any()

    def body(state):
        at, tokens, states, memory = state
        newest = jax.lax.dynamic_slice_in_dim(states, at - 1, 1, 1)[:, 0]
        token = jnp.where(at == slot - 1, close, pick(newest, at))
        token = jnp.where(open_rows(tokens, at), token, PAD_ID)[:, None]
        hidden, memory = read(memory, token, at)
        update = jax.lax.dynamic_update_slice_in_dim
        return at + 1, update(tokens, token, at, 1), update(states, hidden, at, 1), memory

    state = (jnp.asarray(start, jnp.int32), tokens, states, memory)
    _, tokens, states, memory = jax.lax.while_loop(unfinished, body, state)
    written = Memory(memory.k[:, :, :, base:], memory.v[:, :, :, base:], memory.visible[:, base:])
    return Text(tokens, states, written)

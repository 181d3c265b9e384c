"""Decodes texts token by token with a KV cache.

B rows, T tokens of the slot, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from process_gen.models.cache import KVCache
from process_gen.models.unified import UnifiedModel
from process_gen.sampling import extend
from process_gen.sampling.config import SamplerConfig
from process_gen.trajectory import markup
from process_gen.trajectory.batch import PAD_ID


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """Static settings of the decoding of a text.

    Attributes:
      size: tokens of the slot.
      banned: ids that may not appear after the prefix; `<|im_end|>` always may.
      vocabulary: ids from here on are not the tokenizer's, and never sampled.
      temperature: 0 is greedy.
    """

    size: int
    banned: tuple[int, ...]
    vocabulary: int
    temperature: float = 0.0


def text_specs(model: UnifiedModel, tokenizer: Any, config: SamplerConfig) -> dict[str, TextSpec]:
    """How texts are decoded: `before` and `after` an image, and `answer`."""
    layout = model.layout
    controls = tuple(sorted(tokenizer.reserved))
    marks = tuple(tokenizer.encode(token)[0] for token in markup.MARKUP_TOKENS)

    def spec(size: int, banned: tuple[int, ...] = ()) -> TextSpec:
        return TextSpec(size, controls + banned, tokenizer.vocab_size, config.temperature)

    return {
        "before": spec(layout.before),
        "after": spec(layout.after, marks),
        "answer": spec(config.answer_tokens, marks),
    }


Pick = Callable[[jax.Array, jax.Array], jax.Array]
"""(hidden [B, D] of a token, place [] of the next one) -> the next token [B] int32."""


def sample_token(logits: jax.Array, allowed: jax.Array, temperature: float, keys: jax.Array) -> jax.Array:
    """Samples one column [B] int32 per row of logits [B, C], among those `allowed` [B, C] or [1, C] bool.

    Temperature 0 takes the largest; `keys` [B] are used above it only.
    """
    logits = jnp.where(allowed, logits, -jnp.inf)
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, logits / temperature).astype(jnp.int32)


def decode(
    model: UnifiedModel,
    params: Any,
    context: Sequence[KVCache],
    cache: KVCache,
    place: slice,
    position: jax.Array,
    prefix: jax.Array,
    pick: Pick,
) -> tuple[jax.Array, jax.Array, KVCache]:
    """Decodes a text until every row has closed it; its keys and values go to `place` of `cache`.

    `pick` is asked for every token after the prefix; at the slot's end the
    closing token is forced. The loop ends when the last row has closed its text.

    Args:
      context: what the text sees besides the cache, the history first.
      cache: its earlier contents are seen too.
      place: the keys of the text's slot, T in all.
      position: [B] int32, the first rotary position.
      prefix: [B, P] int32, the tokens that the text starts with; padding in rows that write nothing.
      pick: see `Pick`.

    Returns:
      [B, T] int32 tokens with their brackets, padded with `PAD_ID`; all padding in rows that write nothing.
      [B, T, D] hidden state of every token.
      The cache with the text in it.
    """
    close, slot, (rows, start) = model.ids.im_end, place.stop - place.start, prefix.shape

    def read(cache, tokens, at):
        given = ([*context, cache], tokens, position + at)
        hidden, new = model.apply({"params": params}, *given, method=extend.text)
        return hidden, cache.write(new, place.start + at)

    hidden, cache = read(cache, prefix, 0)
    tokens = jnp.full((rows, slot), PAD_ID, jnp.int32).at[:, :start].set(prefix)
    states = jnp.zeros((rows, slot, hidden.shape[2]), hidden.dtype).at[:, :start].set(hidden)

    def open_rows(tokens, at):
        newest = jax.lax.dynamic_slice_in_dim(tokens, at - 1, 1, 1)[:, 0]
        return (newest != PAD_ID) & (newest != close)

    def unfinished(state):
        at, tokens, _, _ = state
        return (at < slot) & open_rows(tokens, at).any()

    def body(state):
        at, tokens, states, cache = state
        newest = jax.lax.dynamic_slice_in_dim(states, at - 1, 1, 1)[:, 0]
        token = jnp.where(at == slot - 1, close, pick(newest, at))
        token = jnp.where(open_rows(tokens, at), token, PAD_ID)[:, None]
        hidden, cache = read(cache, token, at)
        update = jax.lax.dynamic_update_slice_in_dim
        return at + 1, update(tokens, token, at, 1), update(states, hidden, at, 1), cache

    state = (jnp.asarray(start, jnp.int32), tokens, states, cache)
    _, tokens, states, cache = jax.lax.while_loop(unfinished, body, state)
    return tokens, states, cache

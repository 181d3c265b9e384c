"""Attention under the visibility rules: of one chunk after a context, and of whole rows of turns.

B rows, S turns of a row, R prompts of a row, L tokens of a chunk (Lp of a prompt, Lt of
a turn), T tokens of one stream, M keys of a part of a context, W turns of the history,
N query heads, K key/value heads, H head.

`chunk_attention` and `row_attention` make an `Attention`, a function that every layer calls. It
takes the layer's queries [B, T, N, H], keys and values [B, T, K, H] by stream (`{"und": ..., "gen": ...}`),
and its context, pairs of keys and values [B, K, M, H]. It returns [B, T, N * H] by stream.
The masks are computed once, outside of the layers. A chunk's own keys are those of its own tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.models import kernels, masked
from process_gen.models.cache import chunk_slices, over_tokens
from process_gen.models.config import ModelConfig
from process_gen.models.masked import Keys
from process_gen.models.partition import constrain
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.visibility import Call, Chunk, seen_parts

KVPairs = Sequence[tuple[jax.Array, jax.Array]]
Streams = dict[str, jax.Array]
QKV = tuple[jax.Array, jax.Array, jax.Array]
Attention = Callable[[Streams, Streams, Streams, KVPairs], Streams]


def attend_chunk(
    config: ModelConfig,
    chunk: Chunk,
    own: QKV,
    own_mask: jax.Array,
    history: Keys,
    context: Sequence[Keys],
    block: int,
) -> jax.Array:
    """Attends from the tokens of a chunk to themselves, to a history and to further keys.

    Args:
      config: its `attention` names the implementation; all give the same numbers at present tokens.
      chunk: says which of its tokens see each other.
      own: queries [B, N, L, H], keys and values [B, K, L, H] of the chunk.
      own_mask: [B, L] bool, tokens that are present.
      history: keys of earlier turns, `block` of each, the newest last.
      context: further keys for all tokens of the chunk.

    Returns:
      [B, N, L, H].
    """
    if config.attention == "dense":
        return _dense(chunk, own, own_mask, context, _split_history(history, block))
    kernel = kernels.choose(config.attention, config.head_dim, config.dtype)
    earlier, (q, k, v) = masked.joined([history, *context]), own
    if kernel == "cudnn":  # one call, with an explicit mask
        k, v, mask = masked.joined([earlier, Keys(k, v, own_mask)])
        chunk_mask = np.pad(chunk.mask, ((0, 0), (earlier.k.shape[2], 0)), constant_values=True)
        return kernels.run_masked(q, k, v, mask[:, None] & jnp.asarray(chunk_mask)[None])

    def run(call: Call, q: jax.Array, own: Keys) -> jax.Array:
        keys = masked.joined([earlier, own])
        return kernels.run(kernel, q, *keys, keys.k.shape[2] - q.shape[2] if call.causal else None)

    return _run_calls(chunk.calls, own, own_mask, run)


def _dense(
    chunk: Chunk, own: QKV, own_mask: jax.Array, context: Sequence[Keys], history: masked.History | None
) -> jax.Array:
    """Attention with explicit masks; a large chunk goes call by call, without scores of unseen images."""

    def run(call: Call, q: jax.Array, own: Keys) -> jax.Array:
        chunk_mask = jnp.asarray(chunk.mask[np.r_[call.queries]][:, np.r_[call.keys]])
        own = own._replace(mask=own.mask[:, None] & chunk_mask[None])
        return masked.attend(q, [own, *context], history)

    whole = (slice(0, chunk.tokens),)
    calls = chunk.calls if chunk.tokens > masked.KEYS else (Call(whole, whole, False),)
    return _run_calls(calls, own, own_mask, run)


def _run_calls(
    calls: Sequence[Call], own: QKV, own_mask: jax.Array, run: Callable[[Call, jax.Array, Keys], jax.Array]
) -> jax.Array:
    """Runs `run(call, queries, own keys)` for each call; joins the results in packed order."""
    q, k, v = own
    pieces = {}
    for call in calls:
        queries = jnp.concatenate([q[:, :, s] for s in call.queries], axis=2)
        keys = masked.joined([Keys(k[:, :, s], v[:, :, s], own_mask[:, s]) for s in call.keys])
        out, offset = run(call, queries, keys), 0
        for piece in call.queries:
            pieces[piece.start] = out[:, :, offset : offset + piece.stop - piece.start]
            offset += piece.stop - piece.start
    return jnp.concatenate([pieces[start] for start in sorted(pieces)], axis=2)


def _split_history(history: Keys, block: int) -> masked.History | None:
    """Splits a history into turns of `block` keys, padded in front to whole slices; None if it is empty."""
    if not history.mask.shape[1]:
        return None
    window = history.mask.shape[1] // block
    pad = masked.slots(block, window) - window
    k, v = (_pad_front(x.reshape(*x.shape[:2], window, block, x.shape[-1]), pad, 2) for x in history[:2])
    return masked.History(k, v, _pad_front(history.mask.reshape(-1, window, block), pad, 1), window + pad)


def _pad_front(x: jax.Array, count: int, axis: int) -> jax.Array:
    """Pads an axis in front with `count` zeros."""
    return jnp.pad(x, [(count if i == axis else 0, 0) for i in range(x.ndim)])


# --------------------------------------------------------------- one chunk, whole rows


def chunk_attention(
    config: ModelConfig, chunk: Chunk, own_mask: jax.Array, masks: Sequence[jax.Array], block: int
) -> Attention:
    """Makes the attention of one chunk; see `attend_chunk`.

    The first pair of its context is the history. `masks` are those of the pairs, [B, M] bool each.
    """

    def attention(q: Streams, k: Streams, v: Streams, context: KVPairs) -> Streams:
        own = (jnp.moveaxis(jnp.concatenate(list(x.values()), axis=1), -2, 1) for x in (q, k, v))
        history, *others = (Keys(*kv, mask) for kv, mask in zip(context, masks, strict=True))
        out = attend_chunk(config, chunk, _gather_tokens(*own), own_mask, history, others, block)
        out = jnp.moveaxis(out, 1, 2)
        return by_stream(chunk, out.reshape(*out.shape[:2], -1))

    return attention


def _gather_tokens(q: jax.Array, k: jax.Array, v: jax.Array) -> QKV:
    """Gathers sharded tokens [B, heads, ...] on every device, since calls slice them across shards."""
    none = (None,) * (q.ndim - 2)
    q = constrain("queries", q, "rows", "heads", *none)
    k, v = (constrain("keys and values", x, "rows", "kv_heads", *none) for x in (k, v))
    return q, k, v


def by_stream(chunk: Chunk, x: jax.Array, axis: int = 1) -> Streams:
    """Splits tokens [B, L, ...] of a chunk, in packed order, by stream; an empty stream is left out."""
    parts = zip(chunk.stream_tokens.items(), jnp.split(x, [chunk.und_tokens], axis), strict=True)
    return {name: part for (name, tokens), part in parts if tokens}


def split_slots(layout: Layout, x: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """Splits [B, all tokens, ...] into prompts [B, R, tokens, ...] and turns [B, S, tokens, ...]."""
    cut = layout.trajectories * sizes[0]
    prompts = x[:, :cut].reshape(len(x), layout.trajectories, sizes[0], *x.shape[2:])
    return [prompts, x[:, cut:].reshape(len(x), layout.turns, sizes[1], *x.shape[2:])]


def join_slots(parts: Sequence[jax.Array]) -> jax.Array:
    """Joins prompts [B, R, tokens, ...] and turns [B, S, tokens, ...] into [B, all tokens, ...]."""
    return jnp.concatenate([x.reshape(len(x), -1, *x.shape[3:]) for x in parts], axis=1)


class RowMasks(NamedTuple):
    """Which tokens of packed rows are present, and which prompt each turn belongs to.

    Attributes:
      prompts: [B, R, Lp] bool, tokens of the prompts that are present.
      turns: [B, S, Lt] bool, tokens of the turns that are present.
      prompt_index: [B, S] int32, the prompt of each turn.
      present, refines: [B, S] bool.
    """

    prompts: jax.Array
    turns: jax.Array
    prompt_index: jax.Array
    present: jax.Array
    refines: jax.Array


def row_attention(
    config: ModelConfig, layout: Layout, prompt: Chunk, turn: Chunk, rows: RowMasks
) -> Attention:
    """Makes the attention of packed rows: each prompt by itself, each turn after its prompt and history.

    The streams hold all prompts of a row and then all its turns; the context is empty.
    `dense` is one scan over the turns, which reads history as far back as any row sees it.
    With kernels the loop over turns is unrolled; each gets the keys of at most W turns before it.
    """
    chunks, window, block = (prompt, turn), layout.window, layout.visible_tokens
    pieces = chunk_slices(turn, layout.visible_parts)
    is_prompt_of = rows.prompt_index[:, :, None] == jnp.arange(layout.trajectories)[None, None]  # [B, S, R]
    prompt_masks = (rows.prompts[:, None] & is_prompt_of[..., None]).any(2)
    history_masks = _history_masks(layout, rows, pieces)

    def heads_first(x: Streams) -> list[jax.Array]:
        """Streams [B, T, heads, H] to prompts [B, heads, R, Lp, H] and turns [B, heads, S, Lt, H]."""
        parts = (split_slots(layout, y, [c.stream_tokens[name] for c in chunks]) for name, y in x.items())
        return [jnp.moveaxis(jnp.concatenate(part, axis=2), 3, 1) for part in zip(*parts, strict=True)]

    def attention(q: Streams, k: Streams, v: Streams, context: KVPairs) -> Streams:
        del context
        prompts, turns = (_gather_tokens(*part) for part in zip(*map(heads_first, (q, k, v)), strict=True))
        prompts_out = _attend_prompts(config, prompt, prompts, rows.prompts)
        weights = is_prompt_of.astype(prompts[1].dtype)  # a gather, as a product that shards well
        prompt_kv = [jnp.einsum("bkrmh,bsr->bksmh", x, weights, precision="highest") for x in prompts[1:]]
        visible_kv = [jnp.concatenate([x[:, :, :, s] for s in pieces], axis=3) for x in turns[1:]]
        if config.attention == "dense":
            slots = masked.slots(block, window)  # the window in whole slices
            padded_kv = [_pad_front(x, slots, 2) for x in visible_kv]
            masks = history_masks.reshape(*history_masks.shape[:2], window, block)
            masks = _pad_front(masks, slots - window, 2)

            def body(_, s):
                at = functools.partial(jax.lax.dynamic_index_in_dim, index=s, keepdims=False)
                own, kv = (tuple(at(x, axis=2) for x in xs) for xs in (turns, prompt_kv))
                context = [Keys(*kv, at(prompt_masks, axis=1))]
                history = masked.History(*padded_kv, at(masks, axis=1), s + slots) if slots else None
                return None, _dense(turn, own, at(rows.turns, axis=1), context, history)

            # Unrolled for small turns: in a loop, XLA's CPU backend runs one operation at a time.
            unroll = turn.tokens <= masked.KEYS
            _, turns_out = jax.lax.scan(body, None, jnp.arange(layout.turns), unroll=unroll)
        else:
            turns_out = []
            for s in range(layout.turns):
                at = functools.partial(jax.lax.index_in_dim, index=s, keepdims=False)
                own, kv = (tuple(at(x, axis=2) for x in xs) for xs in (turns, prompt_kv))
                count = min(s, window)
                past = (jax.lax.slice_in_dim(x, s - count, s, axis=2) for x in visible_kv)
                past = (x.reshape(*x.shape[:2], count * block, x.shape[-1]) for x in past)
                history = Keys(*past, history_masks[:, s, (window - count) * block :])
                context = [Keys(*kv, prompt_masks[:, s])]
                turns_out.append(attend_chunk(config, turn, own, rows.turns[:, s], history, context, block))
            turns_out = jnp.stack(turns_out)
        streams: dict[str, list[jax.Array]] = {name: [] for name in q}
        for chunk, x in zip(chunks, (prompts_out, jnp.moveaxis(turns_out, 0, 2)), strict=True):
            x = jnp.moveaxis(x, 1, 3)
            x = x.reshape(*x.shape[:3], -1)
            for name, part in by_stream(chunk, x, axis=2).items():
                streams[name].append(part)
        return {name: join_slots(parts) for name, parts in streams.items()}

    return attention


def _attend_prompts(config: ModelConfig, chunk: Chunk, own: QKV, mask: jax.Array) -> jax.Array:
    """Attention inside each prompt, [B, heads, R, Lp, H] to [B, N, R, Lp, H]; `mask` [B, R, Lp] of tokens."""
    q, k, v = (jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], *x.shape[3:]) for x in own)
    flat = mask.reshape(-1, mask.shape[-1])
    no_history = Keys(k[:, :, :0], v[:, :, :0], flat[:, :0])
    out = attend_chunk(config, chunk, (q, k, v), flat, no_history, (), 1)
    return jnp.moveaxis(out.reshape(*mask.shape[:2], *out.shape[1:]), 1, 2)


def _history_masks(layout: Layout, rows: RowMasks, pieces: Sequence[slice]) -> jax.Array:
    """[B, S, W * block] bool, which keys of earlier turns a turn sees; `pieces` of a turn go into them."""
    window, slots = layout.window, rows.present.shape[1]
    visible = jnp.concatenate([rows.turns[:, :, s] for s in pieces], axis=2)
    if not window:
        return visible[:, :, :0]

    def earlier(x):
        """[B, S, ...] of turns, to [B, S, W, ...] of the turns before each."""
        padded = jnp.pad(x, ((0, 0), (window, 0), *((0, 0),) * (x.ndim - 2)))
        return jnp.stack([padded[:, i : i + slots] for i in range(window)], axis=2)

    step = jnp.cumsum(~rows.refines & rows.present, axis=1)
    parts = seen_parts(layout.context, earlier(step), earlier(rows.refines), step, rows.refines)
    same_trajectory = earlier(rows.prompt_index) == rows.prompt_index[:, :, None]
    same_trajectory &= earlier(rows.present) & rows.present[:, :, None]
    mask = earlier(visible) & same_trajectory[..., None]
    return mask.reshape(*mask.shape[:2], -1) & over_tokens(layout, parts)

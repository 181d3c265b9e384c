"""From who sees whom to attention calls, for one chunk after a context and for whole rows of turns.

B rows, S turns of a row, R prompts of a row, L tokens of a chunk, M keys of a part of
a context, N query heads, K key/value heads, H head.

An attention is a function of one layer's queries, keys and values by stream,
`{"und": [B, T, N, H], "gen": ...}`, and of its context, pairs of keys and values
[B, K, M, H], that gives what was attended, [B, T, N * H] by stream. Masks are made
outside of the layers, once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.models import kernels, masked
from process_gen.models.cache import over_tokens, visible_pieces
from process_gen.models.config import ModelConfig
from process_gen.models.partition import constrain
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.visibility import Call, Chunk, seen_parts

Pairs = Sequence[tuple[jax.Array, jax.Array]]
Streams = dict[str, jax.Array]
QKV = tuple[jax.Array, jax.Array, jax.Array]
Attention = Callable[[Streams, Streams, Streams, Pairs], Streams]


def is_masked(config: ModelConfig) -> bool:
    """Whether attention has scores and an explicit mask in memory, instead of a kernel."""
    return config.attention == "dense"


def attend_chunk(
    config: ModelConfig,
    chunk: Chunk,
    own: QKV,
    own_mask: jax.Array,
    history: tuple[jax.Array, jax.Array],
    history_mask: jax.Array,
    context: Pairs,
    context_mask: jax.Array,
    block: int,
) -> jax.Array:
    """One chunk after a context.

    Args:
      config: says how; all ways give the same numbers for tokens that are there.
      chunk: its static mask.
      own: queries [B, N, L, H], keys and values [B, K, L, H] of the chunk.
      own_mask: [B, L] bool, tokens that are there.
      history, history_mask: keys and values of earlier turns [B, K, W * block, H], the newest last, and
        [B, W * block] bool, which of them are seen.
      context: further keys and values, [B, K, M, H] each.
      context_mask: [B, M] bool, of all of these together.
      block: keys of one turn of the history.

    Returns:
      [B, N, L, H].
    """
    if is_masked(config):
        return _by_scores(
            chunk, own, own_mask, _near(context, context_mask), _turns(history, history_mask, block)
        )
    kernel = kernels.choose(config.attention, config.head_dim, config.dtype)
    pairs, mask = [history, *context], jnp.concatenate([history_mask, context_mask], axis=1)
    if kernel.name == "cudnn":
        return _by_mask(chunk, own, own_mask, pairs, mask)
    return _by_kernel(kernel, chunk, own, own_mask, pairs, mask)


def _by_scores(
    chunk: Chunk, own: QKV, own_mask: jax.Array, near: list[masked.Near], history: masked.History | None
) -> jax.Array:
    """Scores and a mask, for a large chunk call by call: then no image has scores for another one."""

    def run(call: Call, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        inside = jnp.asarray(chunk.mask[_places(call.queries)][:, _places(call.keys)])
        return masked.attend(q, [masked.Near(k, v, mask[:, None] & inside[None]), *near], history)

    whole = (slice(0, chunk.tokens),)
    calls = chunk.calls if chunk.tokens > masked.KEYS else (Call(whole, whole, False),)
    return _in_calls(calls, own, own_mask, run)


def _places(pieces: Sequence[slice]) -> np.ndarray:
    return np.concatenate([np.arange(piece.start, piece.stop) for piece in pieces])


def _in_calls(
    calls: Sequence[Call], own: QKV, own_mask: jax.Array, run: Callable[..., jax.Array]
) -> jax.Array:
    """`run(call, queries, keys, values, mask)` of a chunk's own tokens for each call, in order of memory."""
    q, k, v = own
    pieces = {}
    for call in calls:
        queries = jnp.concatenate([q[:, :, s] for s in call.queries], axis=2)
        keys, values = (jnp.concatenate([x[:, :, s] for s in call.keys], axis=2) for x in (k, v))
        mask = jnp.concatenate([own_mask[:, s] for s in call.keys], axis=1)
        out, offset = run(call, queries, keys, values, mask), 0
        for piece in call.queries:
            pieces[piece.start] = out[:, :, offset : offset + piece.stop - piece.start]
            offset += piece.stop - piece.start
    return jnp.concatenate([pieces[start] for start in sorted(pieces)], axis=2)


def _near(pairs: Pairs, mask: jax.Array) -> list[masked.Near]:
    """Keys and values with their parts of `mask`, of all of them together."""
    ends = np.cumsum([k.shape[2] for k, _ in pairs], dtype=int)
    return [
        masked.Near(k, v, mask[:, end - k.shape[2] : end]) for (k, v), end in zip(pairs, ends, strict=True)
    ]


def _turns(history: tuple[jax.Array, jax.Array], mask: jax.Array, block: int) -> masked.History | None:
    """A history of whole turns, the newest last; None where it has none."""
    if not mask.shape[1]:
        return None
    window = mask.shape[1] // block
    ahead = masked.slots(block, window) - window
    k, v = (_ahead(x.reshape(*x.shape[:2], window, block, x.shape[-1]), ahead, 2) for x in history)
    return masked.History(k, v, _ahead(mask.reshape(-1, window, block), ahead, 1), window + ahead)


def _ahead(x: jax.Array, count: int, axis: int) -> jax.Array:
    """Empty slots before the first one."""
    return jnp.pad(x, [(count if i == axis else 0, 0) for i in range(x.ndim)])


def _by_mask(chunk: Chunk, own: QKV, own_mask: jax.Array, pairs: Pairs, pairs_mask: jax.Array) -> jax.Array:
    """One call of a kernel that takes an explicit mask."""
    q, k, v = own
    inside = own_mask[:, None] & jnp.asarray(chunk.mask)[None]
    before = jnp.broadcast_to(pairs_mask[:, None], (*inside.shape[:2], pairs_mask.shape[1]))
    keys, values = (jnp.concatenate([*xs, x], axis=2) for xs, x in zip(_columns(pairs), (k, v), strict=True))
    return kernels.run_masked(q, keys, values, jnp.concatenate([before, inside], axis=2))


def _columns(pairs: Pairs) -> tuple[list[jax.Array], list[jax.Array]]:
    return [k for k, _ in pairs], [v for _, v in pairs]


def _by_kernel(
    kernel: kernels.Kernel,
    chunk: Chunk,
    own: QKV,
    own_mask: jax.Array,
    pairs: Pairs,
    pairs_mask: jax.Array,
) -> jax.Array:
    """One call of a kernel for every image, and for texts in a row; no scores and no masks in memory."""

    def run(call: Call, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        keys, values = (
            jnp.concatenate([*before, x], axis=2) for before, x in zip(_columns(pairs), (k, v), strict=True)
        )
        seen = jnp.concatenate([pairs_mask, mask], axis=1)
        return kernels.run(kernel, q, keys, values, seen, keys.shape[2] - q.shape[2] if call.causal else None)

    return _in_calls(chunk.calls, own, own_mask, run)


# --------------------------------------------------------------- one chunk, whole rows


def of_chunk(
    config: ModelConfig,
    chunk: Chunk,
    own_mask: jax.Array,
    history_mask: jax.Array,
    block: int,
    context_mask: jax.Array,
) -> Attention:
    """Attention of one chunk; the first pair of its context is its history. See `attend_chunk`."""

    def attention(q: Streams, k: Streams, v: Streams, context: Pairs) -> Streams:
        own = _whole(tuple(_heads_first(jnp.concatenate(list(x.values()), axis=1)) for x in (q, k, v)))
        out = attend_chunk(
            config, chunk, own, own_mask, context[0], history_mask, context[1:], context_mask, block
        )
        out = jnp.moveaxis(out, 1, 2)
        return _by_stream(q, out.reshape(*out.shape[:2], -1), axis=1)

    return attention


def _heads_first(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, -2, 1)


def _whole(own: QKV) -> QKV:
    """Calls cut tokens where a mesh does not: each device gets all of them once, and keeps its part."""
    none = (None,) * (own[0].ndim - 2)
    q = constrain("queries", own[0], "rows", "heads", *none)
    k, v = (constrain("keys and values", x, "rows", "kv_heads", *none) for x in own[1:])
    return q, k, v


def _by_stream(like: Streams, x: jax.Array, axis: int) -> Streams:
    """Tokens in memory order, cut into streams again."""
    found, at = {}, 0
    for name, part in like.items():
        found[name] = jax.lax.slice_in_dim(x, at, at + part.shape[axis], axis=axis)
        at += part.shape[axis]
    return found


@dataclasses.dataclass(frozen=True)
class RowMasks:
    """What is there in rows of turns, and who belongs to whom.

    Attributes:
      prompts: [B, R, Lp] bool, tokens of the prompts that are there.
      turns: [B, S, Lt] bool, of the turns.
      prompt_index: [B, S] int32.
      present, refines: [B, S] bool.
    """

    prompts: jax.Array
    turns: jax.Array
    prompt_index: jax.Array
    present: jax.Array
    refines: jax.Array


def of_rows(config: ModelConfig, layout: Layout, prompt: Chunk, turn: Chunk, rows: RowMasks) -> Attention:
    """Attention of rows of prompts and turns, turn by turn, each with as much history as it may have.

    The streams hold all prompts of a row and then all its turns; there is no context.
    Masked attention is one loop over the turns, which reads history as far back as any row
    sees; kernels are unrolled, each with the keys of the turns before it and no more.
    """
    window = layout.history
    pieces, block = visible_pieces(layout, turn), layout.visible_tokens
    picked = rows.prompt_index[:, :, None] == jnp.arange(layout.trajectories)[None, None]
    prompt_mask = (rows.prompts[:, None] & picked[..., None]).any(2)
    seen = _history_masks(layout, rows, jnp.concatenate([rows.turns[:, :, s] for s in pieces], axis=2))

    def one(own, own_mask, history, history_mask, pair, pair_mask):
        return attend_chunk(config, turn, own, own_mask, history, history_mask, [pair], pair_mask, block)

    def attention(q: Streams, k: Streams, v: Streams, context: Pairs) -> Streams:
        del context
        parts = [_parts(layout, prompt, turn, x) for x in (q, k, v)]
        prompts, turns = (_whole(tuple(part[i] for part in parts)) for i in range(2))
        of_prompts = _of_prompts(config, prompt, prompts, rows.prompts)
        weights = picked.astype(prompts[1].dtype)  # a gather that splits over devices as products do
        chosen = [jnp.einsum("bkrmh,bsr->bksmh", x, weights, precision="highest") for x in prompts[1:]]
        earlier = [jnp.concatenate([x[:, :, :, s] for s in pieces], axis=3) for x in turns[1:]]

        def history(s, first, count):
            keys = (jax.lax.dynamic_slice_in_dim(x, first, count, 2) for x in s)
            return tuple(x.reshape(*x.shape[:2], -1, x.shape[-1]) for x in keys)

        if is_masked(config):
            slots = masked.slots(block, window)
            padded = [_ahead(x, slots, 2) for x in earlier]
            masks = _ahead(seen.reshape(*seen.shape[:2], window, block), slots - window, 2)

            def body(s):
                at = functools.partial(jax.lax.dynamic_index_in_dim, index=s, keepdims=False)
                own, pair = (tuple(at(x, axis=2) for x in xs) for xs in (turns, chosen))
                near = [masked.Near(*pair, at(prompt_mask, axis=1))]
                past = masked.History(*padded, at(masks, axis=1), s + slots) if slots else None
                return _by_scores(turn, own, at(rows.turns, axis=1), near, past)

            # Small turns one after the other: a loop of XLA's CPU backend runs one operation at a time.
            unroll = turn.tokens <= masked.KEYS
            _, of_turns = jax.lax.scan(
                lambda _, s: (None, body(s)), None, jnp.arange(rows.present.shape[1]), unroll=unroll
            )
        else:
            each = []
            for s in range(rows.present.shape[1]):
                count = min(s, window)
                masks = (rows.turns[:, s], seen[:, s, (window - count) * block :], prompt_mask[:, s])
                pairs = (history(earlier, s - count, count), _at(chosen, s, 2))
                each.append(one(_at(turns, s, 2), masks[0], pairs[0], masks[1], pairs[1], masks[2]))
            of_turns = jnp.stack(each)
        return _joined(q, prompt, turn, of_prompts, jnp.moveaxis(of_turns, 0, 2))

    return attention


def _at(parts: Sequence[jax.Array], index: int, axis: int) -> tuple[jax.Array, ...]:
    return tuple(jax.lax.index_in_dim(x, index, axis, keepdims=False) for x in parts)


def _of_prompts(config: ModelConfig, chunk: Chunk, own: QKV, mask: jax.Array) -> jax.Array:
    """Prompts [B, heads, R, Lp, H], each by itself, which `mask` [B, R, Lp] are there: [B, N, R, Lp, H]."""

    def folded(x):
        x = jnp.moveaxis(x, 2, 1)
        return x.reshape(-1, *x.shape[2:])

    q, k, v = (folded(x) for x in own)
    flat = mask.reshape(-1, mask.shape[-1])
    nothing, none = (k[:, :, :0], v[:, :, :0]), flat[:, :0]
    out = attend_chunk(config, chunk, (q, k, v), flat, nothing, none, (), none, 1)
    return jnp.moveaxis(out.reshape(*mask.shape[:2], *out.shape[1:]), 1, 2)


def _parts(layout: Layout, prompt: Chunk, turn: Chunk, x: Streams) -> tuple[jax.Array, jax.Array]:
    """Streams [B, T, heads, H] to prompts [B, heads, R, Lp, H] and turns [B, heads, S, Lt, H]."""
    found: tuple[list[jax.Array], list[jax.Array]] = ([], [])
    for name, tokens in x.items():
        sizes = [_stream_tokens(chunk, name) for chunk in (prompt, turn)]
        cut = layout.trajectories * sizes[0]
        for part, slots, size, piece in (
            (found[0], layout.trajectories, sizes[0], tokens[:, :cut]),
            (found[1], layout.turns, sizes[1], tokens[:, cut:]),
        ):
            part.append(piece.reshape(piece.shape[0], slots, size, *piece.shape[2:]))
    return tuple(jnp.moveaxis(jnp.concatenate(part, axis=2), 3, 1) for part in found)


def _stream_tokens(chunk: Chunk, stream: str) -> int:
    return chunk.und_tokens if stream == "und" else chunk.latent_tokens


def _history_masks(layout: Layout, rows: RowMasks, visible: jax.Array) -> jax.Array:
    """[B, S, W * block] bool, what turns see of the W before them; `visible` [B, S, block] is there."""
    window, slots = layout.history, rows.present.shape[1]
    step = jnp.cumsum(~rows.refines & rows.present, axis=1)

    def earlier(x):
        """[B, S, ...] of turns, to [B, S, W, ...] of the turns before each."""
        padded = jnp.pad(x, ((0, 0), (window, 0), *((0, 0),) * (x.ndim - 2)))
        return jnp.stack([padded[:, i : i + slots] for i in range(window)], axis=2)

    if not window:
        return visible[:, :, :0]
    parts = seen_parts(layout.context, earlier(step), earlier(rows.refines), step, rows.refines)
    same = earlier(rows.prompt_index) == rows.prompt_index[:, :, None]
    same &= earlier(rows.present) & rows.present[:, :, None]
    there = earlier(visible) & same[..., None]
    return there.reshape(*there.shape[:2], -1) & over_tokens(layout, parts)


def _joined(like: Streams, prompt: Chunk, turn: Chunk, prompts: jax.Array, turns: jax.Array) -> Streams:
    """What prompts [B, N, R, Lp, H] and turns [B, N, S, Lt, H] attended, as streams [B, T, N * H]."""
    chunks = [(prompt, jnp.moveaxis(prompts, 1, 3)), (turn, jnp.moveaxis(turns, 1, 3))]
    found = {}
    for name in like:
        pieces = []
        for chunk, x in chunks:
            tokens = x[:, :, : chunk.und_tokens] if name == "und" else x[:, :, chunk.und_tokens :]
            size = x.shape[1] * _stream_tokens(chunk, name)
            pieces.append(tokens.reshape(x.shape[0], size, x.shape[3] * x.shape[4]))
        found[name] = jnp.concatenate(pieces, axis=1)
    return found

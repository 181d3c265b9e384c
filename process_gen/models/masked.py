"""Attention with explicit masks over near keys and a history, read from the newest turn back.

Only the scores of some keys are in memory at a time. The backward pass computes them again
from the log-sum-exp of the softmax, as FlashAttention does (arXiv 2205.14135), so no array of
the size of the scores is kept. History before the oldest turn that any row sees costs nothing.

B rows, N query heads, K key/value heads, G = N / K, L queries, M keys, W turns of a
history, V of them that may be seen, C keys of one turn, H head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from process_gen.models.layers import NEGATIVE

Attended = tuple[jax.Array, jax.Array]
"""The output of attention [B, K, G, L, H], float32, and the log-sum-exp of its scores [B, K, G, L]."""

KEYS = 512
"""Keys of a history that are scored at a time (a slice): whole turns, at least one."""


class Keys(NamedTuple):
    """Keys and values.

    Attributes:
      k, v: [B, K, M, H].
      mask: [B, L, M] bool, what queries see; or [B, M], the same for all of them.
    """

    k: jax.Array
    v: jax.Array
    mask: jax.Array


class History(NamedTuple):
    """Keys and values of turns, of which the V turns before `end` may be seen (V: see `slots`).

    Attributes:
      k, v: [B, K, W, C, H], with at least V turns before `end`.
      mask: [B, V, C] bool, of the turns before `end`, the newest last.
      end: [] int32, the turn that follows the newest one.
    """

    k: jax.Array
    v: jax.Array
    mask: jax.Array
    end: jax.Array


def attend(q: jax.Array, near: Sequence[Keys], history: History | None = None) -> jax.Array:
    """Grouped-query attention, softmax in float32.

    Args:
      q: [B, N, L, H].
      near: keys that are always scored, together.
      history: further keys, a few turns at a time, as far back as any row sees.

    Returns:
      [B, N, L, H]; zeros where a query sees nothing.
    """
    grouped = q.reshape(q.shape[0], near[0].k.shape[1], -1, *q.shape[2:])
    return _attend(grouped, tuple(near), history).reshape(q.shape)


def turns_together(keys: int, window: int) -> int:
    """How many turns of `keys` keys each make a slice, in a history of `window` turns."""
    return min(window, max(1, KEYS // max(1, keys)))


def slots(keys: int, window: int) -> int:
    """`window`, the turns of a history, rounded up to whole slices."""
    return window + -window % turns_together(keys, window) if window else 0


def _size(history: History) -> int:
    """Turns of a slice."""
    window, keys = history.mask.shape[1:]
    return turns_together(keys, window)


def _count(history: History) -> jax.Array:
    """How many slices back from the newest turn hold something that is seen."""
    seen = history.mask.any((0, 2))
    far = jnp.where(seen.any(), seen.size - jnp.argmax(seen), 0)
    return -(-far // _size(history))


def _slice(history: History, index: Any) -> Keys:
    """The slice that lies `index` slices before the newest one."""
    together = _size(history)
    end = history.end - index * together
    k, v = (
        x.reshape(*x.shape[:2], -1, x.shape[-1])
        for x in (jax.lax.dynamic_slice_in_dim(y, end - together, together, 2) for y in history[:2])
    )
    first = history.mask.shape[1] - (index + 1) * together
    mask = jax.lax.dynamic_slice_in_dim(history.mask, first, together, 1)
    return Keys(k, v, mask.reshape(mask.shape[0], 1, -1))


def joined(parts: Sequence[Keys]) -> Keys:
    """Concatenates keys; their masks must have the same axes."""
    k, v = (jnp.concatenate([x[i] for x in parts], axis=2) for i in range(2))
    return Keys(k, v, jnp.concatenate([x.mask for x in parts], axis=-1))


def _scores(q: jax.Array, part: Keys) -> jax.Array:
    """[B, K, G, L, M] float32; the mask has an axis L."""
    scores = jnp.einsum(
        "bkglh,bkmh->bkglm", q * q.shape[-1] ** -0.5, part.k, preferred_element_type=jnp.float32
    )
    return scores + jnp.where(part.mask, 0.0, NEGATIVE)[:, None, None]


def _part(q: jax.Array, part: Keys) -> Attended:
    """Attention over some keys alone."""
    scores = _scores(q, part)
    top = scores.max(-1)
    weights = jnp.exp(scores - top[..., None])
    total = weights.sum(-1)
    out = jnp.einsum(
        "bkglm,bkmh->bkglh", weights.astype(part.v.dtype), part.v, preferred_element_type=jnp.float32
    )
    return out / total[..., None], top + jnp.log(total)


def _merge(a: Attended, b: Attended) -> Attended:
    """Attention over two sets of keys, from that over each."""
    log = jnp.logaddexp(a[1], b[1])
    shares = (jnp.exp(x - log)[..., None] for x in (a[1], b[1]))
    return sum(share * out for share, (out, _) in zip(shares, (a, b), strict=True)), log


@jax.custom_vjp
def _attend(q: jax.Array, near: tuple[Keys, ...], history: History | None) -> jax.Array:
    return _forward(q, near, history)[0]


def _forward(q, near, history):
    found = _part(q, _first(q, near, history))
    if not _is_whole(history):
        found = jax.lax.fori_loop(
            0, _count(history), lambda i, found: _merge(found, _part(q, _slice(history, i))), found
        )
    out, log = found
    seen = log > NEGATIVE / 2
    out = jnp.where(seen[..., None], out, 0).astype(q.dtype)
    return out, (q, near, history, out, jnp.where(seen, log, 0.0))


def _is_whole(history: History | None) -> bool:
    """Whether the history is a single slice, scored together with the near keys, or there is none."""
    return history is None or _size(history) == history.mask.shape[1]


def _first(q: jax.Array, near: tuple[Keys, ...], history: History | None) -> Keys:
    """The keys that are always scored: the near ones, and a history of a single slice."""
    if history is not None and _is_whole(history):
        near = (*near, _slice(history, 0))
    masks = [x.mask if x.mask.ndim == 3 else x.mask[:, None] for x in near]
    masks = [jnp.broadcast_to(x, (x.shape[0], q.shape[3], x.shape[2])) for x in masks]
    return joined([x._replace(mask=mask) for x, mask in zip(near, masks, strict=True)])


def _backward(kept, given):
    q, near, history, out, log = kept
    delta = jnp.einsum("bkglh,bkglh->bkgl", given, out, preferred_element_type=jnp.float32)

    def part(some: Keys):
        weights = jnp.exp(_scores(q, some) - log[..., None])
        # Results come out transposed: otherwise XLA would transpose the arrays of scores.
        dv = jnp.einsum("bkglh,bkglm->bkhm", given, weights.astype(given.dtype))
        d_weights = jnp.einsum("bkglh,bkmh->bkglm", given, some.v, preferred_element_type=jnp.float32)
        d_scores = (weights * (d_weights - delta[..., None])).astype(q.dtype)
        dq = jnp.einsum("bkglm,bkmh->bkglh", d_scores, some.k, preferred_element_type=jnp.float32)
        dk = jnp.einsum("bkglh,bkglm->bkhm", q, d_scores) * q.shape[-1] ** -0.5
        return dq, jnp.swapaxes(dk, 2, 3), jnp.swapaxes(dv, 2, 3)

    dq, dk, dv = part(_first(q, near, history))
    d_near, at = [], 0
    for one in near:
        size = one.k.shape[2]
        d_near.append(Keys(dk[:, :, at : at + size], dv[:, :, at : at + size], None))
        at += size
    d_history = None
    if history is not None:
        size = _size(history)

        def put(grads, index, dk, dv):
            end = history.end - index * size
            shape = (*dk.shape[:2], size, -1, dk.shape[-1])
            return tuple(
                jax.lax.dynamic_update_slice_in_dim(x, y.reshape(shape).astype(x.dtype), end - size, 2)
                for x, y in zip(grads, (dk, dv), strict=True)
            )

        grads = tuple(jnp.zeros_like(x) for x in history[:2])
        if _is_whole(history):
            grads = put(grads, 0, dk[:, :, at:], dv[:, :, at:])
        else:

            def body(index, carry):
                dq, *grads = carry
                more, dk, dv = part(_slice(history, index))
                return dq + more, *put(grads, index, dk, dv)

            dq, *grads = jax.lax.fori_loop(0, _count(history), body, (dq, *grads))
        d_history = History(*grads, None, None)
    return (dq * q.shape[-1] ** -0.5).astype(q.dtype), tuple(d_near), d_history


_attend.defvjp(_forward, _backward)

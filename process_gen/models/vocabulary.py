"""Cross-entropy and embedding look-up of a large vocabulary, the logits whole or in chunks of words.

Whole, the logits of the 7B take 152,064 floats a token. In chunks, a loop over
parts of the vocabulary keeps a running maximum and sum (the online softmax of
Milakov and Gimelshein, arXiv 1805.02867), and the backward pass computes each
chunk's logits again. The loop goes over words and not over tokens because the
head may be sharded: so each part of it is gathered once a pass and its gradient
reduced once, and no device holds the whole of either.

The gradient of a look-up is a scatter-add into a table of the whole vocabulary. If the table
is sharded, XLA sums whole tables on every device. Computed as products with one-hot vectors,
some words at a time, the gradient is reduced like that of any other matrix.

B rows, L tokens of a row, D width, V vocabulary, C words of a chunk.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log p(label), logits [..., vocabulary] float32, labels [...]; where those are padding, any number."""
    picked = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def chunked_cross_entropy(hidden: jax.Array, kernel: jax.Array, labels: jax.Array, chunk: int) -> jax.Array:
    """`cross_entropy(hidden @ kernel, labels)` with the logits of `chunk` words at a time.

    Args:
      hidden: [B, L, D] in the dtype of the products, whose sums are float32.
      kernel: [D, V].
      labels: [B, L]; where negative, any number comes out.
      chunk: words at a time, a divisor of V.

    Returns:
      [B, L] float32.
    """
    return _forward(hidden, kernel, labels, chunk)[0]


def _chunks(kernel: jax.Array, chunk: int) -> jax.Array:
    """[V / C, D, C]: chunk i has every (V / C)-th word from the i-th on, so as many of each shard."""
    width, words = kernel.shape
    return jnp.moveaxis(kernel.reshape(width, chunk, words // chunk), 2, 0)


def _logits(hidden: jax.Array, part: jax.Array) -> jax.Array:
    return jnp.einsum("bld,dc->blc", hidden, part.astype(hidden.dtype), preferred_element_type=jnp.float32)


def is_label(labels: jax.Array, i: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """[B, L, C] bool: which word of chunk `i` is the label; `shape` is (chunks, words of a chunk)."""
    chunks, words = shape
    here = (labels % chunks == i)[..., None]
    return here & ((labels // chunks)[..., None] == jnp.arange(words)[None, None])


def _forward(hidden, kernel, labels, chunk):
    parts, wanted = _chunks(kernel, chunk), jnp.maximum(labels, 0)
    shape = (parts.shape[0], chunk)

    def body(carry, xs):
        top, total, picked = carry
        part, i = xs
        logits = _logits(hidden, part)
        higher = jnp.maximum(top, logits.max(-1))
        total = total * jnp.exp(top - higher) + jnp.exp(logits - higher[..., None]).sum(-1)
        picked += jnp.where(is_label(wanted, i, shape), logits, 0.0).sum(-1)
        return (higher, total, picked), None

    zeros = jnp.zeros(labels.shape, jnp.float32)
    start = (jnp.full_like(zeros, -jnp.inf), zeros, zeros)
    (top, total, picked), _ = jax.lax.scan(body, start, (parts, jnp.arange(shape[0])))
    normalizer = top + jnp.log(total)
    return normalizer - picked, (hidden, kernel, wanted, normalizer)


def _backward(chunk, kept, given):
    hidden, kernel, wanted, normalizer = kept
    parts = _chunks(kernel, chunk)
    shape = (parts.shape[0], chunk)

    def body(total, xs):
        part, i = xs
        softmax = jnp.exp(_logits(hidden, part) - normalizer[..., None])
        slope = ((softmax - is_label(wanted, i, shape)) * given[..., None]).astype(hidden.dtype)
        of_hidden = jnp.einsum(
            "blc,dc->bld", slope, part.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        of_part = jnp.einsum("bld,blc->dc", hidden, slope, preferred_element_type=jnp.float32)
        return total + of_hidden, of_part.astype(kernel.dtype)

    start = jnp.zeros(hidden.shape, jnp.float32)
    of_hidden, of_parts = jax.lax.scan(body, start, (parts, jnp.arange(shape[0])))
    of_kernel = jnp.moveaxis(of_parts, 0, 2).reshape(kernel.shape)
    return of_hidden.astype(hidden.dtype), of_kernel, None


chunked_cross_entropy.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def lookup(table: jax.Array, tokens: jax.Array, chunk: int, dtype: str) -> jax.Array:
    """Rows `tokens` [B, L] int32, none negative, of a table [V, D]: [B, L, D] in `dtype`.

    `chunk` is the number of words whose gradient is computed at a time, a divisor of V; sums are float32.
    """
    return jnp.take(table, tokens, axis=0).astype(jnp.dtype(dtype))


def _lookup_forward(table, tokens, chunk, dtype):
    return lookup(table, tokens, chunk, dtype), (tokens, jnp.zeros((table.shape[0], 0), table.dtype))


def _lookup_backward(chunk, dtype, kept, given):
    del dtype
    tokens, like = kept
    chunks = like.shape[0] // chunk

    def body(_, i):
        one_hot = is_label(tokens, i, (chunks, chunk)).astype(given.dtype)
        # The width first, since matrices are sharded by rows.
        return None, jnp.einsum("bld,blc->dc", given, one_hot, preferred_element_type=jnp.float32)

    _, parts = jax.lax.scan(body, None, jnp.arange(chunks))  # [V / C, D, C]
    gradient = jnp.moveaxis(parts, (0, 1, 2), (1, 2, 0)).reshape(-1, parts.shape[1])
    return gradient.astype(like.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)

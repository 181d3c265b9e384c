"""Words in: rows of a table, whose gradient is a product where the vocabulary is large.

The gradient of a look-up adds rows into a table of the whole vocabulary, and where the
table is split over devices XLA sums such tables whole, on every device. As products with
one-hot vectors, some words at a time, it is reduced like that of any other matrix.

B rows, L tokens of a row, D width, V vocabulary, C words of a chunk.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from process_gen.models.likelihood import is_label


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def lookup(table: jax.Array, tokens: jax.Array, chunk: int, dtype: str) -> jax.Array:
    """Rows `tokens` [B, L] int32, none negative, of a table [V, D]: [B, L, D] in `dtype`.

    `chunk` is the number of words whose gradient is computed at a time, a divisor of V; sums are float32.
    """
    return jnp.take(table, tokens, axis=0).astype(jnp.dtype(dtype))


def _forward(table, tokens, chunk, dtype):
    return lookup(table, tokens, chunk, dtype), (tokens, jnp.zeros((table.shape[0], 0), table.dtype))


def _backward(chunk, dtype, kept, given):
    del dtype
    tokens, like = kept
    chunks = like.shape[0] // chunk

    def body(_, i):
        one_hot = is_label(tokens, i, (chunks, chunk)).astype(given.dtype)
        # The width first: rows are what devices split a matrix by.
        return None, jnp.einsum("bld,blc->dc", given, one_hot, preferred_element_type=jnp.float32)

    _, parts = jax.lax.scan(body, None, jnp.arange(chunks))  # [V / C, D, C]
    gradient = jnp.moveaxis(parts, (0, 1, 2), (1, 2, 0)).reshape(-1, parts.shape[1])
    return gradient.astype(like.dtype), None


lookup.defvjp(_forward, _backward)

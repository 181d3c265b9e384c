"""The look-up of words whose gradient is made of products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.models.embedding import lookup


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("chunk", [4, 12, 24])
def test_rows_and_gradients_are_those_of_a_plain_lookup(chunk, dtype):
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.standard_normal((24, 5)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, 24, (3, 40)), jnp.int32)  # words come again and again
    slopes = jnp.asarray(rng.standard_normal((3, 40, 5)), jnp.dtype(dtype))

    def loss(table, look):
        return (look(table) * slopes).astype(jnp.float32).sum()

    def plain(table):
        return jnp.take(table, tokens, axis=0).astype(jnp.dtype(dtype))

    def ours(table):
        return lookup(table, tokens, chunk, dtype)

    np.testing.assert_array_equal(ours(table), plain(table))
    wanted, found = (jax.jit(jax.grad(loss), static_argnums=1)(table, look) for look in (plain, ours))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)

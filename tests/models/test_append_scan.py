"""The scan over a growing history equals the plain scan, and keeps one history instead of one per step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.models.append_scan import append_scan

STEPS, SIZE, WIDTH = 4, 3, 5


def body(weights, carry, history, x):
    """Writes what it makes of its input and of the slots that were written before."""
    matrix, offset = weights
    value, shift = x
    seen = jnp.arange(STEPS * SIZE)[:, None] < carry * SIZE
    total = jnp.where(seen, history, 0.0).sum(0)
    made = jnp.tanh(value @ matrix + (total + offset[shift])[None])
    return carry + 1, made, {"y": made.sum(0) * total, "step": carry}


def plain(weights, carry, history, xs):
    def one(state, x):
        carry, history = state
        after, written, y = body(weights, carry, history, x)
        return (after, jax.lax.dynamic_update_slice_in_dim(history, written, carry * SIZE, 0)), y

    (carry, history), ys = jax.lax.scan(one, (carry, history), xs)
    return carry, history, ys


def problem(rng):
    weights = (rng.standard_normal((WIDTH, WIDTH)) / 3, rng.standard_normal((2, WIDTH)))
    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weights)
    xs = (jnp.asarray(rng.standard_normal((STEPS, SIZE, WIDTH)), jnp.float32), jnp.asarray([0, 1, 1, 0]))
    return weights, jnp.zeros((), jnp.int32), jnp.zeros((STEPS * SIZE, WIDTH)), xs


def test_values_and_gradients_equal_those_of_a_plain_scan(rng):
    weights, carry, history, xs = problem(rng)

    def loss(scan):
        def of(weights, history, values):
            end, history, ys = scan(weights, carry, history, (values, xs[1]))
            return jnp.sin(history).sum() + (ys["y"] ** 2).sum(), (end, history, ys)

        return jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2), has_aux=True))

    appended = loss(lambda w, c, h, x: append_scan(body, w, c, h, x, axis=0))(weights, history, xs[0])
    expected = loss(plain)(weights, history, xs[0])
    for a, b in zip(jax.tree.leaves(appended), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_backward_pass_holds_no_stack_of_histories(rng):
    weights, carry, history, xs = problem(rng)

    def largest(scan):
        def loss(weights):
            _, history_after, ys = scan(weights, carry, history, xs)
            return history_after.sum() + ys["y"].sum()

        saved = jax.tree.leaves(jax.eval_shape(lambda w: jax.vjp(loss, w)[1], weights))
        return max(x.size for x in saved)

    def checkpointed(weights, carry, history, xs):
        def one(state, x):
            return jax.checkpoint(lambda s: plain(weights, *s, jax.tree.map(lambda a: a[None], x))[:2])(
                state
            ), 0

        (carry, history), _ = jax.lax.scan(one, (carry, history), xs)
        return carry, history, {"y": history}

    assert largest(checkpointed) >= STEPS * history.size
    assert largest(lambda w, c, h, x: append_scan(body, w, c, h, x, axis=0)) == history.size

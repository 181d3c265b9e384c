"""A scan over a history that only grows, of which the backward pass keeps one copy.

`jax.lax.scan` saves its carry before every step for the backward pass: S whole
histories for S steps, of which each holds all the ones before it. What a step
writes is never written again, so the last history holds them all: a step sees
in it what it saw then, if it does not look at what came later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any
Body = Callable[[Tree, Tree, Tree, Tree], tuple[Tree, Tree, Tree]]


def append_scan(
    body: Body, weights: Tree, carry: Tree, history: Tree, xs: Tree, axis: int
) -> tuple[Tree, Tree, Tree]:
    """Scans `body`, which is recomputed in the backward pass.

    Args:
      body: (weights, carry, history, x) -> (carry, written, y). What it gives must not depend on the slots
        of the history that later steps write. No gradient flows through the carry.
      weights: arrays that all steps share.
      carry: what goes from step to step besides the history.
      history: arrays with room along `axis` for what all steps write.
      xs: inputs of the steps, stacked.
      axis: of the history's arrays.

    Returns:
      The last carry, the whole history, and stacked ys.
    """
    weights, of_weights = _floats(weights)
    xs, of_xs = _floats(xs)
    steps = jnp.arange(jax.tree.leaves(xs)[0].shape[0])

    def forward(weights, history, xs, others):
        def one(state, inputs):
            step, x, rest = inputs
            before, history = state
            after, written, y = body(of_weights(weights, others[0]), before, history, of_xs(x, rest))
            return (after, _write(history, written, step, axis)), (y, before)

        (carry_after, history), (ys, carries) = jax.lax.scan(
            one, (others[2], history), (steps, xs, others[1])
        )
        return (carry_after, history, ys), (weights, history, xs, others, carries)

    def backward(saved, cotangents):
        weights, history, xs, others, carries = saved
        _, d_history, d_ys = cotangents

        def one(state, inputs):
            d_weights, d_history = state
            step, x, rest, carry, d_y = inputs

            def again(weights, history, x):
                _, written, y = body(of_weights(weights, others[0]), carry, history, of_xs(x, rest))
                return written, _floats(y)[0]

            (written, _), pull = jax.vjp(again, weights, history, x)
            d_written, d_history = _take(d_history, written, step, axis)
            *found, d_x = pull((d_written, d_y))
            return jax.tree.map(jnp.add, (d_weights, d_history), tuple(found)), d_x

        start = (jax.tree.map(jnp.zeros_like, weights), d_history)
        inputs = (steps, xs, others[1], carries, _floats(d_ys)[0])
        (d_weights, d_history), d_xs = jax.lax.scan(one, start, inputs, reverse=True)
        return d_weights, d_history, d_xs, None

    run = jax.custom_vjp(lambda *args: forward(*args)[0])
    run.defvjp(forward, backward)
    return run(weights, history, xs, (of_weights.rest, of_xs.rest, carry))


class _Joined:
    """Puts the floats of a tree back beside its other leaves."""

    def __init__(self, tree: Tree):
        leaves, self.structure = jax.tree.flatten(tree)
        self.is_float = [_is_float(x) for x in leaves]
        self.rest = [x for x, is_float in zip(leaves, self.is_float, strict=True) if not is_float]

    def __call__(self, floats: list[jax.Array], rest: list[jax.Array]) -> Tree:
        floats, rest = iter(floats), iter(rest)
        return jax.tree.unflatten(self.structure, [next(floats if f else rest) for f in self.is_float])


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _floats(tree: Tree) -> tuple[list[jax.Array], _Joined]:
    """The leaves that have gradients, and how to put them back."""
    return [x for x in jax.tree.leaves(tree) if _is_float(x)], _Joined(tree)


def _write(history: Tree, written: Tree, step: jax.Array, axis: int) -> Tree:
    def one(all_slots, new):
        return jax.lax.dynamic_update_slice_in_dim(all_slots, new, step * new.shape[axis], axis)

    return jax.tree.map(one, history, written)


def _take(history: Tree, written: Tree, step: jax.Array, axis: int) -> tuple[Tree, Tree]:
    """The slots that a step wrote, and the history with zeros in their place."""

    def one(all_slots, new):
        return jax.lax.dynamic_slice_in_dim(all_slots, step * new.shape[axis], new.shape[axis], axis)

    taken = jax.tree.map(one, history, written)
    return taken, _write(history, jax.tree.map(jnp.zeros_like, taken), step, axis)

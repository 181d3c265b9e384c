"""Computes the losses of a batch, for training and validation: unroll, frozen networks, loss table."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp

from process_gen.losses.registry import fold_in_name, get_network
from process_gen.models.autoencoder import random_weights
from process_gen.models.outputs import REFERENCE, Outputs
from process_gen.models.partition import constrain
from process_gen.models.unroll import blank_outputs, unroll
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.controls import labels

if TYPE_CHECKING:
    from process_gen.training.step import Recipe

LOSSES = 16
"""Folded into a step's key for its losses. Smaller numbers are left to the draws of the model's inputs."""


@flax.struct.dataclass
class Given:
    """What the losses of a batch need besides the model's parameters.

    Attributes:
      step: [] int32, batches seen before this one.
      autoencoder: weights of the autoencoder; None where it has none.
      networks: weights of the frozen networks by name; None where no loss reads one.
    """

    step: Any
    autoencoder: Any = None
    networks: Any = None


def init_networks(names: Sequence[str], params: Any, key: jax.Array) -> dict[str, Any] | None:
    """Initial weights of the frozen networks by name; None without any.

    `reference` gets the model's `params`. `key` is the one that the whole state is initialized with; a
    network's own key depends on its name alone, not on which others there are.
    """
    if not names:
        return None
    key = jax.random.fold_in(jax.random.split(key)[0], 2)  # 1 makes the autoencoder's key
    return {
        name: params if name == REFERENCE else get_network(name).init(fold_in_name(key, name))
        for name in names
    }


def score(recipe: Recipe, params: Any, given: Given, batch: Batch, key: jax.Array) -> tuple[dict, dict]:
    """Sums and counts of the losses of a batch, {name: []} each; `key` is that of its step.

    With `params` None the model does not run: the same counts, and the sums for predictions of zero.
    """
    outputs = seen(recipe, params, given, batch, key)
    key = jax.random.fold_in(key, LOSSES)
    return recipe.losses.terms(outputs, batch, labels(batch, recipe.model.ids), key)


def score_in_parts(
    recipe: Recipe, params: Any, given: Given, batch: Batch, key: jax.Array
) -> tuple[dict, dict]:
    """`score` of a whole batch, a micro-batch of the recipe at a time."""
    if recipe.accumulate == 1:
        return score(recipe, params, given, batch, key)

    def add(total, micro):
        return jax.tree.map(jnp.add, total, score(recipe, params, given, *micro)), None

    micro = micro_batches(recipe, batch, key)
    return jax.lax.scan(add, zero_sums(recipe, given, micro), micro)[0]


def micro_batches(recipe: Recipe, batch: Batch, key: jax.Array) -> tuple[Batch, jax.Array]:
    """The micro-batches of a batch, stacked, and a key for each.

    Each takes every `accumulate`-th row, so that no row moves to another device.
    """
    parts = recipe.accumulate

    def split_rows(x: jax.Array) -> jax.Array:
        """[B, ...] to [parts, B / parts, ...]."""
        x = jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)
        return constrain("micro-batches", x, None, "rows", *(None,) * (x.ndim - 2))

    return jax.tree.map(split_rows, batch), jax.random.split(key, parts)


def zero_sums(recipe: Recipe, given: Given, micro: tuple[Batch, jax.Array]) -> tuple[dict, dict]:
    """Zeros with the structure of `score`'s result, to add that of each of the stacked `micro` to."""
    first = jax.tree.map(lambda x: x[0], micro)
    shapes = jax.eval_shape(functools.partial(score, recipe, None), given, *first)
    return jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)


def seen(recipe: Recipe, params: Any, given: Given, batch: Batch, key: jax.Array) -> Outputs:
    """Unrolls the model over a batch for the losses; with `params` None all predictions are zeros."""
    weights, model = given.networks or {}, recipe.model
    if params is None:
        outputs = blank_outputs(model, batch, key, recipe.options, given.autoencoder)
    else:
        reference = weights.get(REFERENCE)
        outputs = unroll(model, params, batch, key, recipe.options, given.autoencoder, reference)
    weights = jax.lax.stop_gradient(weights)
    networks = {
        name: outputs.networks[name]
        if name == REFERENCE
        else functools.partial(get_network(name).apply, weights[name])
        for name in weights
    }
    return dataclasses.replace(outputs, step=given.step, networks=networks)


def check(recipe: Recipe, spec: Batch) -> None:
    """Traces every loss on shapes alone, to raise its errors before the long compilation.

    Raises:
      LossError: a loss that returns wrong shapes, or asks for a field or a network that is not there.
    """

    def given(key: jax.Array) -> Given:
        networks = init_networks(recipe.losses.networks, {}, key)  # the blank reference has no parameters
        return Given(jnp.zeros((), jnp.int32), random_weights(recipe.model.config, key), networks)

    traced = functools.partial(score, recipe, None)
    jax.eval_shape(traced, jax.eval_shape(given, jax.random.key(0)), spec, jax.random.key(0))

"""Where losses plug in.

A loss is a pure module-level function

    @losses.register("my_loss")
    def my_loss(outputs, batch, labels, key, *, stage): -> Term(values, weights)

with values and weights of one shape [B, S, ...] (B rows, S turn slots), unreduced: the
table sums both and divides once by the global weight. Weights come from the batch alone, never from
predictions, so that they can be counted before the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from process_gen.common.names import check_name


class Term(NamedTuple):
    """Unreduced values of a loss and their weights, arrays of one shape [B, S, ...]."""

    values: jax.Array
    weights: jax.Array


LossFunction = Callable[..., Term]

_LOSSES: dict[str, LossFunction] = {}


def register(name: str) -> Callable[[LossFunction], LossFunction]:
    """Adds a loss to the registry under `name`; registering a name again replaces it."""

    def add(function: LossFunction) -> LossFunction:
        _LOSSES[name] = function
        return function

    return add


def get_loss(name: str) -> LossFunction:
    """The loss called `name`; KeyError with the nearest names otherwise."""
    return _LOSSES[check_name(name, _LOSSES, "loss", KeyError)]

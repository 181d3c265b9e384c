"""Where losses plug in.

A loss is a pure module-level function

    @losses.register("my_loss")
    def my_loss(outputs, batch, labels, key, *, stage): -> Term(values, weights)

with values and weights of one shape [B, S, ...] (B rows, S turn slots), unreduced: the
table sums both and divides once by the global weight. Weights come from the batch alone,
never from predictions, so that they can be counted before the forward pass.

A loss that reads no pixels (`batch.image`) may say so, `register("my_loss", pixels=False)`:
where all of them do, images that were encoded ahead of time need not be decoded.
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
_PIXELS: dict[str, bool] = {}


def register(name: str, pixels: bool = True) -> Callable[[LossFunction], LossFunction]:
    """Adds a loss to the registry under `name`; registering a name again replaces it.

    `pixels` says whether it reads the pixels of the batch.
    """

    def add(function: LossFunction) -> LossFunction:
        _LOSSES[name], _PIXELS[name] = function, pixels
        return function

    return add


def reads_pixels(name: str) -> bool:
    """Whether the loss called `name` reads the pixels of the batch."""
    return _PIXELS[name]


def get_loss(name: str) -> LossFunction:
    """The loss called `name`; KeyError with the nearest names otherwise."""
    return _LOSSES[check_name(name, _LOSSES, "loss", KeyError)]

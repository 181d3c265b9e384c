"""Makes and combines lists of settings; a sweep file gets this module as `get_hyper(hyper)`.

    def get_hyper(hyper):
        return hyper.product([
            hyper.sweep("config.seed", range(3)),
            hyper.zipit([hyper.sweep("config.train.steps", [9, 20]), hyper.sweep("config.name", ["a", "b"])]),
        ])

Each function returns a list of dicts, key -> value, one for each cell. The names are those of the
`ml_collections` world.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

Value = bool | int | float | str | tuple
Settings = dict[str, Value]


class SweepError(ValueError):
    """A sweep that cannot be run as it is written; the message is fit for a user."""


def sweep(key: str, values: Iterable[Value]) -> list[Settings]:
    """A cell for each value of one key.

    Raises:
      SweepError: there is no value, or one that is no plain Python value.
    """
    if isinstance(values, str):
        raise SweepError(f"sweep({key!r}, ...) takes a list of values, got the text {values!r}")
    found = [{key: _plain(key, value)} for value in values]
    if not found:
        raise SweepError(f"sweep({key!r}, ...) has no values")
    return found


def fixed(key: str, value: Value, length: int = 1) -> list[Settings]:
    """`length` cells that set one key, as `zipit` needs them beside a sweep; SweepError for less than one."""
    return sweep(key, [value] * length)


def product(sweeps: Sequence[list[Settings]]) -> list[Settings]:
    """Every combination; the last sweep changes fastest. SweepError where two of them set one key."""
    return [_joined(cells) for cells in itertools.product(*sweeps)]


def zipit(sweeps: Sequence[list[Settings]]) -> list[Settings]:
    """The first cells of all sweeps together, then the second ones, ...

    Raises:
      SweepError: they have different numbers of cells, or set one key twice.
    """
    if len({len(one) for one in sweeps}) > 1:
        raise SweepError(f"zipit() of sweeps with {' and '.join(str(len(one)) for one in sweeps)} cells")
    return [_joined(cells) for cells in zip(*sweeps, strict=True)]


def chainit(sweeps: Iterable[list[Settings]]) -> list[Settings]:
    """The cells of one sweep after those of another."""
    return list(itertools.chain.from_iterable(sweeps))


def _joined(cells: Sequence[Settings]) -> Settings:
    keys = [key for cell in cells for key in cell]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise SweepError(f"{', '.join(twice)} is set twice in one cell")
    return {key: value for cell in cells for key, value in cell.items()}


def _plain(key: str, value: Value) -> Value:
    """A value that a command line can hold and that reads back as the same; NumPy's as Python's."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, tuple):
        return tuple(_plain(key, one) for one in value)
    finite = not isinstance(value, float) or math.isfinite(value)
    if type(value) not in (bool, int, float, str) or not finite:
        raise SweepError(
            f"{key} takes finite numbers, texts, True, False and tuples of these; got {value!r}, "
            f"a {type(value).__name__}"
        )
    return value

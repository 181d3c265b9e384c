"""Rules that move weights between a published layout and ours, both ways.

A rule pairs a published name with one of ours and says how the array is transformed. `{layer}` in a published
name stands for every layer: our layers are stacked, so such a tensor is one index of the first axis of ours.
`expand` makes one `Move` per published tensor from a table and the shapes of a model, and raises where no
rule fills an array of ours; `check` finds tensors that are missing or left over.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from process_gen.checkpoints import arrays
from process_gen.checkpoints.errors import CheckpointMismatch

Shape = tuple[int, ...]
Spec = Mapping[str, Shape]
"""Names and shapes."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """A transform between a published tensor and an array of ours.

    Attributes:
      ours: published -> ours, of any block of rows (axis 0) of the published tensor.
      theirs: ours -> published, of such a block; takes the shape of the whole published tensor too.
      shape: shape of ours -> published shape.
      rows: the axis of ours that axis 0 of the published tensor becomes.
    """

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray, Shape], np.ndarray]
    shape: Callable[[Shape], Shape]
    rows: int


AS_IS = Turn(lambda x: x, lambda x, _: x, lambda s: s, 0)
"""Biases, norms, embeddings."""

LINEAR = Turn(lambda x: x.T, lambda x, _: x.T, lambda s: s[::-1], -1)
"""[out, in] to [in, out]."""

CONV = Turn(
    lambda x: x.transpose(2, 3, 1, 0),
    lambda x, _: x.transpose(3, 2, 0, 1),
    lambda s: (s[3], s[2], s[0], s[1]),
    -1,
)
"""[out, in, row, column] to [row, column, in, out]."""


def _as_matrix(shape: Callable[[Shape], Shape]) -> Turn:
    """A convolution, [out, in, row, column], to a matrix over (row, column, in)."""
    return Turn(
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
        lambda x, s: x.reshape(s[2], s[3], s[1], -1).transpose(3, 2, 0, 1),
        shape,
        -1,
    )


POINTWISE = _as_matrix(lambda s: (s[1], s[0], 1, 1))
"""A 1 x 1 convolution, to a matrix [in, out]."""

PATCHES = _as_matrix(lambda s: (s[1], 3, math.isqrt(s[0] // 3), math.isqrt(s[0] // 3)))
"""A convolution over patches of an image of 3 channels, to a matrix [row * column * 3, out]."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A published name, ours (`a/b/c`), and the transform between them."""

    theirs: str
    ours: str
    turn: Turn = AS_IS


@dataclasses.dataclass(frozen=True)
class Move:
    """One published tensor, its shape, our array and its layer there (None where that is not stacked)."""

    theirs: str
    shape: Shape
    ours: str
    layer: int | None
    turn: Turn


def expand(rules: Iterable[Rule], ours: Spec) -> list[Move]:
    """The moves that fill arrays of these names and shapes.

    A rule whose array is not among `ours` belongs to a part that the model does not have, and is skipped.
    """
    moves = []
    for rule in rules:
        if rule.ours not in ours:
            continue
        shape = ours[rule.ours]
        if "{layer}" not in rule.theirs:
            moves.append(Move(rule.theirs, rule.turn.shape(shape), rule.ours, None, rule.turn))
            continue
        for layer in range(shape[0]):
            name = rule.theirs.replace("{layer}", str(layer))
            moves.append(Move(name, rule.turn.shape(shape[1:]), rule.ours, layer, rule.turn))
    if unfilled := sorted(ours.keys() - {move.ours for move in moves}):
        raise CheckpointMismatch(
            f"the published layout has no tensors for {arrays.shorten(unfilled)} of this model: its sizes or "
            "flags are not those of the published one"
        )
    return moves


def check(moves: Sequence[Move], found: Spec, where: Any, ignored: Sequence[str] = ()) -> None:
    """Compares the tensors of a checkpoint with those that the moves ask for; see `arrays.check`."""
    wanted = {move.theirs: move.shape for move in moves}
    arrays.check(found, wanted, f"{where} does not hold this model", ignored)

"""Arrays of ours, put together from published tensors, whole or piece by piece.

A piece is a box of one array. Reading it takes the rows of the tensors that it needs, a few megabytes at a
time, so that nothing is ever held twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.checkpoints import arrays
from process_gen.checkpoints.errors import CheckpointMismatch
from process_gen.checkpoints.published.rules import Move, Spec
from process_gen.checkpoints.published.sources import BLOCK, Box
from process_gen.checkpoints.published.tensors import Tensors

Progress = Callable[[int], None]
"""Is told how many bytes of our arrays have been made since it was last told."""


class Pieces:
    """The arrays that some moves make of the tensors of a checkpoint: a `sources.Source`.

    Args:
      moves: they fill every array of `spec`.
      tensors: what they read; checked by the caller.
      spec: our names and shapes.
      dtype: of our arrays; None leaves them as they are stored.
    """

    def __init__(self, moves: Sequence[Move], tensors: Tensors, spec: Spec, dtype: str | None = "float32"):
        self.tensors, self.spec = tensors, dict(spec)
        self._moves: dict[str, list[Move]] = {}
        for move in moves:
            self._moves.setdefault(move.ours, []).append(move)
        self.dtypes = {name: self._dtype(name, dtype) for name in self.spec}

    def _dtype(self, name: str, dtype: str | None) -> np.dtype:
        found = {self.tensors[move.theirs].dtype for move in self._moves[name]}
        if odd := [x for x in found if not jnp.issubdtype(x, jnp.floating)]:
            raise CheckpointMismatch(
                f"{self.tensors.place}: {name} is made of {odd[0]} numbers, not of weights"
            )
        return jnp.dtype(dtype) if dtype else functools.reduce(jnp.promote_types, sorted(found, key=str))

    def nbytes(self) -> int:
        """Of all arrays."""
        return sum(int(np.prod(s)) * self.dtypes[name].itemsize for name, s in self.spec.items())

    def axis(self, name: str) -> int:
        """Where the rows of the published tensors lie."""
        move = self._moves[name][0]
        return move.turn.rows % max(1, len(self.spec[name]) - (move.layer is not None))

    def read(self, name: str, box: Box = ()) -> np.ndarray:
        """A box of an array; all of it by default."""
        shape = self.spec[name]
        box = tuple(box) + (slice(None),) * (len(shape) - len(box))
        ranges = [range(*part.indices(size)) for part, size in zip(box, shape, strict=True)]
        out = np.empty([len(r) for r in ranges], self.dtypes[name])
        for move in self._moves[name]:
            if move.layer is None:
                self._fill(out, move, ranges)
            elif move.layer in ranges[0]:
                self._fill(out[ranges[0].index(move.layer)], move, ranges[1:])
        return out

    def _fill(self, out: np.ndarray, move: Move, ranges: list[range]) -> None:
        """Writes a box of one tensor into `out`."""
        if not ranges:
            out[...] = move.take(self.tensors.read(move.theirs))
            return
        axis = move.turn.rows % len(ranges)
        rows = ranges[axis]
        rest = (
            tuple(slice(r.start, r.stop) for r in ranges[:axis]),
            tuple(slice(r.start, r.stop) for r in ranges[axis + 1 :]),
        )
        step = self.block_rows(move)
        for at in range(rows.start, rows.stop, step):
            stop = min(at + step, rows.stop)
            part = move.take(self.tensors.read(move.theirs, at, stop))
            here = (slice(None),) * axis + (slice(at - rows.start, stop - rows.start),)
            out[here] = part[(*rest[0], slice(None), *rest[1])]

    def block_rows(self, move: Move) -> int:
        """Rows of a tensor that are read at a time."""
        entry = self.tensors[move.theirs]
        return max(1, BLOCK // max(1, entry.nbytes // max(1, entry.shape[0])))


def to_host(pieces: Pieces, progress: Progress | None = None) -> dict[str, Any]:
    """All arrays as a nested dict of NumPy arrays."""
    made = {}
    for name in pieces.spec:
        made[name] = pieces.read(name)
        _tell(progress, made[name].nbytes)
    return arrays.nested(made)


def to_devices(
    pieces: Pieces, shardings: Mapping[str, Any], progress: Progress | None = None
) -> dict[str, Any]:
    """All arrays as a nested dict of `jax.Array`, array by array; a host reads only what its devices hold.

    Args:
      pieces: the source.
      shardings: by name of the array.
      progress: see `Progress`.
    """
    made = {}
    for name, shape in pieces.spec.items():
        made[name] = jax.make_array_from_callback(
            shape, shardings[name], lambda box, name=name: pieces.read(name, box)
        )
        made[name].block_until_ready()  # so that only one array's numbers are on the host at a time
        _tell(progress, made[name].nbytes)
    return arrays.nested(made)


def _tell(progress: Progress | None, count: int) -> None:
    if progress is not None:
        progress(count)

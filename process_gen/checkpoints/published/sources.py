"""Reads named arrays box by box, from memory, a checkpoint or published files; a box is a tuple of slices.

`items` goes the other way, from our arrays to published tensors. Reading a box reads only those rows of the
tensors that it needs, so that no array is held twice in memory.
"""

from __future__ import annotations

import copy
import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from etils import epath

from process_gen.checkpoints import arrays, manifest
from process_gen.checkpoints.errors import CheckpointMismatch
from process_gen.checkpoints.published.rules import Move, Shape, Spec, check
from process_gen.checkpoints.published.tensors import Item, Tensors
from process_gen.common import files

Box = tuple[slice, ...]
BLOCK = 64 << 20
"""Bytes that are read at a time."""


class Source:
    """Named arrays that are read box by box; `spec` has their shapes, `dtypes` what they are read as."""

    spec: Spec
    dtypes: Mapping[str, np.dtype]

    @property
    def nbytes(self) -> int:
        return sum(math.prod(shape) * self.dtypes[name].itemsize for name, shape in self.spec.items())

    def read(self, name: str, box: Box = ()) -> np.ndarray:
        """Reads a box of an array; trailing axes that it leaves out are whole."""
        return self._read(name, box).astype(self.dtypes[name], copy=False)

    def _read(self, name: str, box: Box) -> np.ndarray:
        """A box in any dtype that holds its numbers."""
        raise NotImplementedError

    def in_dtype(self, dtype: str | None) -> Source:
        """The same arrays, read in another dtype; None leaves it."""
        if dtype is None:
            return self
        other = copy.copy(self)
        other.dtypes = dict.fromkeys(self.spec, jnp.dtype(dtype))
        return other

    def axis(self, name: str) -> int:
        """The axis along which parts of an array (of one layer, where it is stacked) are cheapest to read."""
        return 0


def shapes_of(params: Any) -> dict[str, Shape]:
    """Name -> shape of the arrays of a tree, in Flax's boxes of logical axes or not."""
    return {name: tuple(x.shape) for name, x in arrays.flatten(nn.meta.unbox(params)).items()}


def tree(source: Source) -> dict[str, Any]:
    """All arrays of a source, as a nested dict of NumPy arrays."""
    return arrays.unflatten({name: source.read(name) for name in source.spec})


def source_of(params: Any) -> Source:
    """A tree as a source; a source as it is."""
    return params if isinstance(params, Source) else TreeArrays(nn.meta.unbox(params))


def check_shapes(source: Source, wanted: Spec, what: str) -> None:
    """Compares parameters with what the sizes of `what` say; see `arrays.check`."""
    arrays.check(source.spec, wanted, f"the parameters of {what} do not fit its sizes")


class TreeArrays(Source):
    """Arrays of a tree in memory, on the host or on devices."""

    def __init__(self, params: Any):
        self._arrays = arrays.flatten(params)
        self.spec = shapes_of(params)
        self.dtypes = {name: np.dtype(x.dtype) for name, x in self._arrays.items()}

    def _read(self, name: str, box: Box) -> np.ndarray:
        return np.asarray(self._arrays[name][box] if box else self._arrays[name])


class StoredArrays(Source):
    """Arrays of one item of a checkpoint's step on disk; its manifest is checked by the caller."""

    def __init__(self, step_dir: epath.Path, item: str):
        folder = step_dir / item
        try:
            description = files.read_json(folder / "_METADATA")
            driver = "zarr3" if description.get("use_zarr3") else "zarr"
            self._stores = {}
            for leaf in description["tree_metadata"].values():
                keys = [key["key"] for key in leaf["key_metadata"]]
                place: Any = kvstore(folder / ".".join(keys))
                if description.get("use_ocdbt", True):
                    place = {"driver": "ocdbt", "base": kvstore(folder), "path": f"{'.'.join(keys)}/"}
                spec = {"driver": driver, "kvstore": place}
                self._stores["/".join(keys)] = ts.open(spec, read=True).result()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise manifest.corrupt(step_dir, f"{item} cannot be read ({error})") from error
        self.spec = {name: tuple(store.shape) for name, store in self._stores.items()}
        self.dtypes = {name: np.dtype(store.dtype.numpy_dtype) for name, store in self._stores.items()}

    def _read(self, name: str, box: Box) -> np.ndarray:
        return np.asarray(self._stores[name][box or ...].read().result())


class Pieces(Source):
    """The arrays of `spec`, which moves make of published tensors; of these only rows in the box are read.

    `ignored` are regular expressions of the names of tensors that may be there besides.

    Raises:
      CheckpointMismatch: names or shapes of the tensors differ, or a tensor is not floating-point.
    """

    def __init__(self, moves: Sequence[Move], tensors: Tensors, spec: Spec, ignored: Sequence[str] = ()):
        check(moves, tensors.shapes, tensors.place, ignored)
        self._tensors, self.spec = tensors, dict(spec)
        self._moves: dict[str, list[Move]] = {}
        for move in moves:
            self._moves.setdefault(move.ours, []).append(move)
        self.dtypes = {name: self._dtype(name) for name in self.spec}

    def _dtype(self, name: str) -> np.dtype:
        found = {self._tensors[move.theirs].dtype for move in self._moves[name]}
        if odd := [x for x in found if not jnp.issubdtype(x, jnp.floating)]:
            raise CheckpointMismatch(
                f"{self._tensors.place}: {name} is made of {odd[0]} numbers, not of weights"
            )
        return functools.reduce(jnp.promote_types, sorted(found, key=str))

    def axis(self, name: str) -> int:
        move = self._moves[name][0]
        return move.turn.rows % (len(self.spec[name]) - (move.layer is not None))

    def _read(self, name: str, box: Box) -> np.ndarray:
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

    def _fill(self, out: np.ndarray, move: Move, ranges: Sequence[range]) -> None:
        """Reads the rows of a tensor that are in `ranges`, block by block."""
        axis, entry = move.turn.rows % len(ranges), self._tensors[move.theirs]
        rows, cut = ranges[axis], [slice(r.start, r.stop) for r in ranges]
        cut[axis] = slice(None)
        step = max(1, BLOCK // max(1, entry.nbytes // max(1, entry.shape[0])))
        for at in range(rows.start, rows.stop, step):
            part = move.turn.ours(self._tensors.read(move.theirs, at, min(at + step, rows.stop)))
            into = np.moveaxis(out, axis, 0)[at - rows.start :][:step]
            into[...] = np.moveaxis(part[tuple(cut)], axis, 0)


class Joined(Source):
    """Several sources as one; an array that several have is that of the first."""

    def __init__(self, *parts: Source):
        self._of = {name: part for part in reversed(parts) for name in part.spec}
        self.spec = {name: part.spec[name] for name, part in self._of.items()}
        self.dtypes = {name: part.dtypes[name] for name, part in self._of.items()}

    def _read(self, name: str, box: Box) -> np.ndarray:
        return self._of[name].read(name, box)

    def axis(self, name: str) -> int:
        return self._of[name].axis(name)


class Replaced(Joined):
    """A source with some rows or columns of matrices replaced: name -> (axis, index along it -> values)."""

    def __init__(self, source: Source, lines: Mapping[str, tuple[int, Mapping[int, np.ndarray]]]):
        super().__init__(source)
        self._lines = lines

    def _read(self, name: str, box: Box) -> np.ndarray:
        found = super()._read(name, box)
        if name not in self._lines:
            return found
        axis, lines = self._lines[name]
        box = (*box, *(slice(None),) * (2 - len(box)))
        inside = range(*box[axis].indices(self.spec[name][axis]))
        here = [index for index in lines if index in inside]
        found = found.copy() if here else found
        for index in here:
            at = inside.index(index)
            found[(at, slice(None)) if axis == 0 else (slice(None), at)] = lines[index][box[1 - axis]]
        return found


def kvstore(folder: epath.Path) -> str:
    """The URL by which TensorStore opens a folder."""
    text = str(folder)
    return f"{text}/" if "://" in text else f"file://{os.path.abspath(text)}/"


def items(moves: Sequence[Move], source: Source) -> list[Item]:
    """The published tensors made of our arrays; of moves to one name the first."""
    made: dict[str, Item] = {}
    for move in moves:
        blocks = functools.partial(_rows, move, source)
        made.setdefault(move.theirs, Item(move.theirs, source.dtypes[move.ours], move.shape, blocks))
    return list(made.values())


def _rows(move: Move, source: Source) -> Iterator[np.ndarray]:
    """Yields a published tensor in blocks of rows."""
    shape = source.spec[move.ours]
    layer: Box = () if move.layer is None else (slice(move.layer, move.layer + 1),)
    inside = shape[len(layer) :]
    axis, rows = move.turn.rows % len(inside), move.shape[0]
    per_row = int(np.prod(inside)) // max(1, rows) * source.dtypes[move.ours].itemsize
    step = max(1, BLOCK // max(1, per_row))
    for at in range(0, rows, step):
        box = (*layer, *(slice(None),) * axis, slice(at, min(at + step, rows)))
        part = source.read(move.ours, box)
        yield move.turn.theirs(part[0] if layer else part, move.shape)

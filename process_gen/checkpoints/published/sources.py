"""Arrays of ours that can be read box by box, wherever they are, and the published tensors that they make."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from etils import epath

from process_gen.checkpoints import arrays, manifest
from process_gen.checkpoints.published.rules import Move, Spec
from process_gen.checkpoints.published.writing import Item
from process_gen.common import files

Box = tuple[slice, ...]
BLOCK = 64 << 20
"""Bytes that are read at a time."""


class Source(Protocol):
    """Named arrays that are read box by box.

    Attributes:
      spec: names and shapes.
      dtypes: by name.
    """

    spec: Spec
    dtypes: Mapping[str, np.dtype]

    def read(self, name: str, box: Box = ()) -> np.ndarray:
        """A box of an array; axes that it leaves out are whole."""
        ...

    def axis(self, name: str) -> int:
        """The axis along which parts of an array (of one layer, where it is stacked) are cheapest to read."""
        ...


class TreeArrays:
    """Arrays of a tree in memory, on the host or on devices."""

    def __init__(self, tree: Any):
        self._arrays = arrays.named(tree)
        self.spec = {name: tuple(x.shape) for name, x in self._arrays.items()}
        self.dtypes = {name: np.dtype(x.dtype) for name, x in self._arrays.items()}

    def read(self, name: str, box: Box = ()) -> np.ndarray:
        return np.asarray(self._arrays[name][box] if box else self._arrays[name])

    def axis(self, name: str) -> int:
        return 0


class StoredArrays:
    """Arrays of one item of a checkpoint's step on disk; its manifest is checked by the caller."""

    def __init__(self, step_dir: epath.Path, item: str):
        folder = step_dir / item
        try:
            description = files.read_json(folder / "_METADATA")
            names = [
                [key["key"] for key in leaf["key_metadata"]] for leaf in description["tree_metadata"].values()
            ]
            driver = "zarr3" if description.get("use_zarr3") else "zarr"
            self._stores = {"/".join(n): _open(folder, ".".join(n), driver, description) for n in names}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise manifest.corrupt(step_dir, f"{item} cannot be read ({error})") from error
        self.spec = {name: tuple(store.shape) for name, store in self._stores.items()}
        self.dtypes = {name: np.dtype(store.dtype.numpy_dtype) for name, store in self._stores.items()}

    def read(self, name: str, box: Box = ()) -> np.ndarray:
        return np.asarray(self._stores[name][box or ...].read().result())

    def axis(self, name: str) -> int:
        return 0


class Joined:
    """Several sources as one; no name is in two."""

    def __init__(self, parts: Sequence[Source]):
        self._of = {name: part for part in parts for name in part.spec}
        self.spec = {name: part.spec[name] for name, part in self._of.items()}
        self.dtypes = {name: part.dtypes[name] for name, part in self._of.items()}

    def read(self, name: str, box: Box = ()) -> np.ndarray:
        return self._of[name].read(name, box)

    def axis(self, name: str) -> int:
        return self._of[name].axis(name)


class Replaced:
    """A source with other numbers in some lines of some matrices.

    Args:
      source: all else.
      lines: by name of a matrix: the axis that counts its lines, and the numbers of those replaced.
    """

    def __init__(self, source: Source, lines: Mapping[str, tuple[int, Mapping[int, np.ndarray]]]):
        self._source, self._lines = source, lines
        self.spec, self.dtypes = source.spec, source.dtypes

    def read(self, name: str, box: Box = ()) -> np.ndarray:
        found = self._source.read(name, box)
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

    def axis(self, name: str) -> int:
        return self._source.axis(name)


def _open(folder: epath.Path, name: str, driver: str, description: Mapping[str, Any]) -> ts.TensorStore:
    base = str(folder)
    base = base if "://" in base else f"file://{os.path.abspath(base)}"
    if description.get("use_ocdbt", True):
        kvstore: Any = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    else:
        kvstore = f"{base}/{name}/"
    return ts.open({"driver": driver, "kvstore": kvstore}, open=True, read=True).result()


def items(moves: Sequence[Move], source: Source, dtype: str | None = None) -> list[Item]:
    """The published tensors that some arrays of ours make, to be written.

    Args:
      moves: from `rules.expand`; where two make the same tensor, the first does.
      source: the arrays.
      dtype: of the tensors; None leaves them as they are.
    """
    made: dict[str, Item] = {}
    for move in moves:
        if move.theirs not in made:
            kind = jnp.dtype(dtype) if dtype else source.dtypes[move.ours]
            made[move.theirs] = Item(move.theirs, kind, move.shape, lambda m=move: _rows(m, source))
    return list(made.values())


def _rows(move: Move, source: Source) -> Iterator[np.ndarray]:
    """The rows of a published tensor, some at a time."""
    shape = source.spec[move.ours]
    layer: Box = () if move.layer is None else (slice(move.layer, move.layer + 1),)
    inside = shape[len(layer) :]
    axis, rows = move.turn.rows % len(inside), move.shape[0]
    per_row = int(np.prod(inside)) // max(1, rows) * source.dtypes[move.ours].itemsize
    step = max(1, BLOCK // max(1, per_row))
    for at in range(0, rows, step):
        box = (*layer, *(slice(None),) * axis, slice(at, min(at + step, rows)))
        part = source.read(move.ours, box)
        yield move.give(part[0] if layer else part)

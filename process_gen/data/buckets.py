"""Buckets by aspect ratio: every batch has images of one size, and the buckets take turns.

A trajectory goes to the bucket whose aspect ratio is nearest to that of its last image, so that cropping cuts
off little. Each bucket has a stream of batches of its own. The bucket that has given the fewest batches for
the turns that it holds gives the next one, so all buckets go through their epochs at about the same speed.
The order depends on those counts alone: it is the same on every host and after every restart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import logging

from process_gen.data.loader import Loader, Source
from process_gen.data.packing import check_identity

Size = tuple[int, int]


def size_of(images: np.ndarray) -> Size:
    """(H, W), in pixels, of images [..., H, W, 3]."""
    return images.shape[-3:-1]


def nearest(shape: Size, sizes: Sequence[Size]) -> int:
    """Returns the index of the size in `sizes` whose height : width is nearest to that of `shape`, in log."""
    ratio = math.log(shape[0] / shape[1])
    return min(range(len(sizes)), key=lambda index: abs(math.log(sizes[index][0] / sizes[index][1]) - ratio))


def split_into_buckets(source: Source, sizes: Sequence[Size]) -> dict[Size, Source]:
    """Splits a source into buckets: image size -> its trajectories; sizes without any are left out.

    Trajectories whose image cannot be read go to the bucket with most trajectories, where the loader's policy
    handles them.

    Raises ValueError: no trajectories, or there are several sizes and the source has images of one size only.
    """
    if not len(source):
        raise ValueError("the source has no trajectories")
    if len(sizes) == 1:
        return {sizes[0]: source}
    if not hasattr(source, "of_shape"):
        raise ValueError(
            "config.data.buckets is for sources that know the shapes of their images, as "
            "config.data.source='folder' does: leave it empty"
        )
    shapes = source.shapes()
    indices: dict[Size, list[int]] = {size: [] for size in sizes}
    for index, shape in enumerate(shapes):
        if shape is not None:
            indices[sizes[nearest(shape, sizes)]].append(index)
    largest = max(sizes, key=lambda size: len(indices[size]))
    unread = [index for index, shape in enumerate(shapes) if shape is None]
    indices[largest] = sorted(indices[largest] + unread)
    for size, found in indices.items():
        logging.info("images of %d x %d: %d trajectories", *size, len(found))
    return {size: source.of_shape(size, found) for size, found in indices.items() if found}


def merge_buckets(loaders: Mapping[Size, Loader], buckets: Mapping[Size, Any]) -> Loader:
    """Merges the loaders of several buckets, by image size; shapes tell which bucket a batch is of.

    Of several buckets (`split_into_buckets`), batches are in proportion to `turns()` of each.
    """
    first = next(iter(loaders.values()))
    if len(loaders) == 1:
        return first
    dataset = _InTurn(
        {f"{h}x{w}": loader.dataset for (h, w), loader in loaders.items()},
        {f"{h}x{w}": buckets[h, w].turns() for h, w in loaders},
    )
    return dataclasses.replace(first, dataset=dataset)


@dataclasses.dataclass(eq=False)
class _InTurn(grain.IterDataset):
    """Interleaves the batches of several datasets by name, in proportion to `turns`."""

    parts: dict[str, grain.IterDataset]
    turns: dict[str, float]

    def __post_init__(self):
        super().__init__()

    def __iter__(self) -> _InTurnIterator:
        return _InTurnIterator(self)


class _InTurnIterator(grain.DatasetIterator):
    """See the module's docstring for the order."""

    def __init__(self, dataset: _InTurn):
        super().__init__()
        self._iterators = {name: iter(part) for name, part in dataset.parts.items()}
        self._turns, self._given = dataset.turns, dict.fromkeys(dataset.parts, 0)

    def __next__(self) -> dict[str, np.ndarray]:
        due = min(self._given, key=lambda name: (self._given[name] + 0.5) / self._turns[name])
        batch = next(self._iterators[due])
        self._given[due] += 1
        return batch

    def close(self) -> None:
        for iterator in self._iterators.values():
            iterator.close()

    def get_state(self) -> dict[str, Any]:
        """`rows` ("bucket/row" -> its state), `identity`, and how many batches each bucket has `given`."""
        states = {name: iterator.get_state() for name, iterator in self._iterators.items()}
        return {
            "rows": {
                f"{name}/{row}": one for name, state in states.items() for row, one in state["rows"].items()
            },
            "identity": _named(states),
            "given": dict(self._given),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores as `PackedBatchesIterator.set_state`; raises ValueError for a state of other buckets."""
        states = {name: iterator.get_state() for name, iterator in self._iterators.items()}
        check_identity(state["identity"], _named(states))
        for name, iterator in self._iterators.items():
            prefix, rows = f"{name}/", state["rows"].items()
            rows = {key.removeprefix(prefix): one for key, one in rows if key.startswith(prefix)}
            iterator.set_state({**states[name], "rows": rows})
        self._given = {name: state["given"][name] for name in self._given}


def _named(states: dict[str, Any]) -> dict[str, str]:
    """Merges the identities of all buckets; keys get the bucket's name as a prefix."""
    parts = {name: state["identity"] for name, state in states.items()}
    return {f"{name}: {key}": text for name, part in parts.items() for key, text in part.items()}

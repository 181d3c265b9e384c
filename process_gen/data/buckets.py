"""Training at several image shapes: every batch has one of them, and batches of all shapes take turns.

A trajectory goes to the bucket whose shape is nearest to the shape of the image that it ends with, so little
of an image is cut off. Each bucket has a loader of its own. Which of them gives the next batch follows from
how many each has given, in proportion to what it holds: the same on every host and after every restart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from absl import logging

from process_gen.data.loader import Loader, Source
from process_gen.data.packing import check_identity

Size = tuple[int, int]


def nearest(shape: Size, sizes: Sequence[Size]) -> int:
    """Which of some image sizes has the shape nearest to another one, by the ratio of height to width."""
    ratio = math.log(shape[0] / shape[1])
    return min(range(len(sizes)), key=lambda index: abs(math.log(sizes[index][0] / sizes[index][1]) - ratio))


def deal(source: Source, sizes: Sequence[Size]) -> dict[Size, Source]:
    """The trajectories of a source by the image size that suits them; sizes that suit none are left out.

    Images that cannot be read go to the first size, for the loader's policy to find them.

    Raises:
      ValueError: the source has images of one size only.
    """
    if len(sizes) == 1:
        return {sizes[0]: source}
    if not hasattr(source, "of_shape"):
        raise ValueError(
            "config.data.buckets is for images of several shapes, which only "
            "config.data.source='folder' has: leave it empty"
        )
    indices: dict[Size, list[int]] = {size: [] for size in sizes}
    for index, shape in enumerate(source.shapes()):
        indices[sizes[0] if shape is None else sizes[nearest(shape, sizes)]].append(index)
    for size, found in indices.items():
        logging.info("images of %d x %d: %d trajectories", *size, len(found))
    return {size: source.of_shape(size, found) for size, found in indices.items() if found}


@dataclasses.dataclass(frozen=True)
class BucketLoader:
    """The batches of several loaders in turn.

    Attributes:
      loaders: by image size.
    """

    loaders: dict[Size, Loader]

    def __iter__(self) -> BucketIterator:
        return BucketIterator(self.loaders)

    def report(self) -> str:
        """The padding in the first batches of every bucket."""
        return "\n".join(f"{h} x {w}: {loader.report()}" for (h, w), loader in self.loaders.items())


class BucketIterator(grain.DatasetIterator):
    """Iterates over batches of several buckets; see the module's docstring for their order."""

    def __init__(self, loaders: dict[Size, Loader]):
        super().__init__()
        self._iterators = {f"{h}x{w}": iter(loader) for (h, w), loader in loaders.items()}
        self._shares = {f"{h}x{w}": loader.trajectories for (h, w), loader in loaders.items()}
        self._given = dict.fromkeys(self._iterators, 0)

    def __next__(self) -> dict[str, np.ndarray]:
        due = min(self._given, key=lambda name: (self._given[name] + 0.5) / self._shares[name])
        batch = next(self._iterators[due])
        self._given[due] += 1
        return batch

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
        """Continues where `state` was taken; it may hold more rows than this host reads.

        Raises:
          ValueError: it belongs to other data or other buckets.
        """
        states = {name: iterator.get_state() for name, iterator in self._iterators.items()}
        check_identity(state["identity"], _named(states))
        for name, iterator in self._iterators.items():
            rows = {key: one for key, one in state["rows"].items() if key.startswith(f"{name}/")}
            rows = {key.removeprefix(f"{name}/"): one for key, one in rows.items()}
            iterator.set_state({**states[name], "rows": rows})
        self._given = {name: state["given"][name] for name in self._given}

    def close(self) -> None:
        """Ends the prefetching of every bucket."""
        for iterator in self._iterators.values():
            iterator.close()


def _named(states: dict[str, Any]) -> dict[str, str]:
    """What all buckets depend on, each with its name before it."""
    return {
        f"{name}: {key}": text for name, state in states.items() for key, text in state["identity"].items()
    }

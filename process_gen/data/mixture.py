"""Mixtures of several sources in one run, and the part of a source that is held out for validation.

A mixture draws from each of its sources by weight: every `WINDOW` consecutive trajectories hold each source's
share as exactly as whole trajectories allow, and each source has epochs of its own. The order depends on the
seed alone, so it is resumed like that of one source.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import grain
import numpy as np

from process_gen.data.buckets import Size
from process_gen.data.loader import Source, name_of, stream_of
from process_gen.trajectory.stages import Stage, Trajectory

WINDOW = 64
"""Length in trajectories of the windows in which the order of the mixed stream is shuffled."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A source of a mixture.

    Attributes:
      weight: how often it is drawn, relative to the other weights.
      stages: those that have losses.
      place: its number in the mixture, which becomes `Trajectory.source`.
    """

    source: Source
    weight: float = 1.0
    stages: frozenset[Stage] = frozenset(Stage)
    place: int = 0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Trajectory:
        return dataclasses.replace(self.source[index], source=self.place, supervised=self.stages)


class Mixture:
    """A source that indexes the trajectories of several sources, one source after the other.

    `stream` has them in the order of training instead, interleaved by weight.
    """

    def __init__(self, parts: Mapping[str, Part]):
        """Raises ValueError where a weight is not above 0."""
        for name, part in parts.items():
            if not part.weight > 0:
                raise ValueError(f"the weight of source {name!r} must be above 0, got {part.weight}")
        self.parts = dict(parts)
        self._ends = [*itertools.accumulate(len(part) for part in parts.values())]
        told = (
            f"{part.weight:g} of {name} ({name_of(part.source)}, {len(part)} trajectories, "
            f"{'+'.join(sorted(part.stages))})"
            for name, part in parts.items()
        )
        self.name = f"{'; '.join(told)}, in turn among {WINDOW}"

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Trajectory:
        part, own = self._find(index)
        return part[own]

    def _find(self, index: int) -> tuple[Part, int]:
        at = bisect.bisect_right(self._ends, index)
        part = [*self.parts.values()][at]
        return part, index - (self._ends[at] - len(part))

    def stream(self, seed: int, shuffle: bool, epochs: int | None) -> grain.MapDataset:
        """Returns the trajectories in the order of training; with finite `epochs`, until one source ends.

        Endless streams are shuffled inside windows of `WINDOW`. Grain's `mix` interleaves the sources in a
        fixed period, and each of B rows reads every B-th trajectory. Without the shuffle, two sources of
        equal weight and an even B would leave each row with one source alone.
        """
        parts = [part for part in self.parts.values() if len(part)]
        streams = [stream_of(part, seed + part.place, shuffle, epochs) for part in parts]
        mixed = grain.MapDataset.mix(streams, [part.weight for part in parts])
        if epochs is not None:
            return mixed
        return grain.experimental.WindowShuffleMapDataset(mixed, window_size=WINDOW, seed=seed % 2**31)

    def map(self, change: Callable[[str, Source], Source]) -> Mixture:
        """Returns the mixture with each source replaced by `change(name, source)`."""
        parts = self.parts.items()
        return Mixture(
            {name: dataclasses.replace(part, source=change(name, part.source)) for name, part in parts}
        )

    # ------------------------------------------------ images of several shapes

    def shapes(self) -> list[Size | None]:
        """Height and width of the image that each trajectory ends with; None where it cannot be read.

        Raises ValueError: a source does not know the shapes of its images.
        """
        for name, part in self.parts.items():
            if not hasattr(part.source, "shapes"):
                raise ValueError(
                    f"config.data.buckets is for sources that know the shapes of their images, and source "
                    f"{name!r} of the mixture does not: leave the buckets empty, or that source out"
                )
        return [shape for part in self.parts.values() for shape in part.source.shapes()]

    def of_shape(self, image_size: Size, indices: Sequence[int]) -> Mixture:
        """Returns the trajectories `indices` with images of another size; weights shrink to what is left."""
        chosen: dict[int, list[int]] = {part.place: [] for part in self.parts.values()}
        for index in indices:
            part, own = self._find(index)
            chosen[part.place].append(own)
        return Mixture(
            {
                name: dataclasses.replace(
                    part,
                    source=part.source.of_shape(image_size, chosen[part.place]),
                    weight=part.weight * len(chosen[part.place]) / len(part),
                )
                for name, part in self.parts.items()
                if chosen[part.place]
            }
        )

    def turns(self) -> float:
        """Sum over sources of weight * mean turns per trajectory: the bucket's share of the batches."""
        return sum(part.weight * part.source.turns() / len(part) for part in self.parts.values())


class Subset:
    """Some trajectories of a source."""

    def __init__(self, source: Source, indices: Sequence[int], name: str):
        self.source, self.indices, self.name = source, indices, name

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Trajectory:
        return self.source[int(self.indices[index])]


def hold_out(source: Source, share: float | Mapping[str, float], split: str) -> Source:
    """Returns one side of a source that is split in two, for `train` and `validation`.

    `validation` gets the `share`, rounded to whole trajectories; which ones depends on it and on how many
    there are. Trajectories of one row, such as several captions of an image, stay together. Of a mixture,
    every source is split, by a share of its own or by one for all. A source that has splits of its own (its
    `own_splits` is true) is returned as it is.
    """
    if isinstance(source, Mixture):
        shares = share if isinstance(share, Mapping) else dict.fromkeys(source.parts, share)
        return source.map(lambda name, one: hold_out(one, shares[name], split))
    if getattr(source, "own_splits", False):
        return source
    count = round(share * len(source))
    if split == "train" and not count:
        return source
    rows = (
        source.rows_of_trajectories() if hasattr(source, "rows_of_trajectories") else np.arange(len(source))
    )
    _, rows, sizes = np.unique(rows, return_inverse=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(sizes))
    chosen = order[: np.searchsorted(np.cumsum(sizes[order]), count) + 1][: len(order) - 1]  # one row trains
    held = np.isin(rows, chosen) if count else np.zeros(len(rows), np.bool_)
    indices = np.flatnonzero(held if split == "validation" else ~held)
    told = f"{held.sum()} of it held out" + (" by rows" if len(sizes) < len(rows) else "")
    return Subset(source, indices, f"{split} of {name_of(source)}, {told}")

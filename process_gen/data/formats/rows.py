"""The interface of all stored sets: `Rows` of fields, and a `Form` that makes trajectories of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO

from process_gen.data.errors import BadTrajectory
from process_gen.data.formats.places import Place
from process_gen.trajectory.record import RecordError

Row = Mapping[str, Any]
Unit = tuple[tuple[int, ...], int]
"""Indices of the rows that make a trajectory, and its number among the trajectories of those rows."""


class Rows:
    """Random access to the rows of a set, from several threads, or in another process after pickling.

    Attributes:
      name: identifies the content (by a digest), wherever the set lies.
      title: names the set in messages.
      what: what a row is called, in the plural: `lines`, `rows`, `samples`.
      place: the folder that it lies in.
    """

    name: str
    title: str
    what: str
    place: Place

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Row:
        """Returns the fields of a row; raises BadTrajectory for broken content, OSError for I/O errors."""
        raise NotImplementedError

    def text(self, index: int) -> Row:
        """Returns the same row; where that is cheaper, `PRESENT` stands for its binary values."""
        return self[index]

    def where(self, index: int) -> str:
        """Returns where a row lies, for messages, as `file, line 3`."""
        raise NotImplementedError

    def uid(self, index: int) -> str:
        """Names a row that has no name of its own: `folder:3`."""
        return f"{self.place.name}:{index}"

    def open(self, index: int, path: str) -> BinaryIO:
        """Opens a file that a row names, relative to the set; raises OSError.

        The caller refuses paths that leave the set (`places.escapes`).
        """
        del index
        return self.place.open(path)


PRESENT = b"\0present"
"""Stands for bytes that were not read."""


@dataclasses.dataclass(frozen=True)
class Form:
    """Maps rows to trajectories; an importer is a reader of rows and a form.

    Attributes:
      name: for messages and data identity; raise a number in it when the mapping changes.
      read: returns the object of a trajectory (`trajectory.record`), from its row, or with `units` from the
        list of its rows and its number among theirs. Raises `RecordError`, whose message begins with a field.
      units: finds the trajectories of a set; None where each row is one.
      cheap: whether all rows are to be read and checked each time a set is opened.
    """

    name: str
    read: Callable[..., dict[str, Any]]
    units: Callable[[Rows], Sequence[Unit]] | None = None
    cheap: bool = False


def units_of(keys: Iterable[Any], count: Callable[[Any], int]) -> list[Unit]:
    """`count(key)` trajectories for the key of each row, at least one; one where that raises: `read` will."""
    units: list[Unit] = []
    for index, key in enumerate(keys):
        try:
            parts = max(1, count(key))
        except (RecordError, BadTrajectory):
            parts = 1
        units += [((index,), part) for part in range(parts)]
    return units


def _json_member(row: Row) -> dict[str, Any]:
    if "json" not in row:
        raise RecordError(f"json is missing, there are {', '.join(sorted(row))}")
    return row["json"]


TRAJECTORIES = Form("trajectories", dict, cheap=True)
"""Rows that are trajectories as they are."""
SHARDED = Form("trajectories", _json_member, cheap=True)
"""Samples of tar shards whose `json` is a trajectory, and names the other members as its images."""

"""The one view of a stored set: rows of fields, each with a place to name in messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

from process_gen.data.formats.places import Place
from process_gen.trajectory.record import RecordError

Row = Mapping[str, Any]
Unit = tuple[tuple[int, ...], int]
"""The rows that a trajectory is made of, and which of their trajectories it is."""


class Rows:
    """Random access to the rows of a set, from several threads, or in another process after pickling.

    Attributes:
      name: says what the content is, wherever it lies.
      title: what messages call the set.
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
        """The fields of a row; raises `BadTrajectory` where they are broken, OSError where a file is."""
        raise NotImplementedError

    def text(self, index: int) -> Row:
        """The same, where it is cheaper with `PRESENT` in the place of binary values."""
        return self[index]

    def where(self, index: int) -> str:
        """`file, line 3`."""
        raise NotImplementedError

    def uid(self, index: int) -> str:
        """Names a row that has no name of its own: `folder:3`."""
        return f"{self.place.name}:{index}"

    def open(self, index: int, path: str) -> BinaryIO:
        """A file that a row names, relative to the set; raises OSError.

        Paths that leave the set (`places.escapes`) are the caller's to refuse.
        """
        del index
        return self.place.open(path)


PRESENT = b"\0present"
"""Stands for bytes that were not read."""


@dataclasses.dataclass(frozen=True)
class Form:
    """How rows are trajectories: what an importer is.

    Attributes:
      name: for messages and data identity; raise a number in it when the mapping changes.
      read: makes the object of a trajectory, as `trajectory.record` has it, of its row, or with `units` of
        its rows and which of theirs it is. Raises `RecordError`, whose message begins with a field.
      units: finds the trajectories of a set; None where each row is one.
      cheap: whether all rows may be looked at each time a set is opened.
    """

    name: str
    read: Callable[..., dict[str, Any]]
    units: Callable[[Rows], Sequence[Unit]] | None = None
    cheap: bool = False


def _json_member(row: Row) -> dict[str, Any]:
    if "json" not in row:
        raise RecordError(f"json is missing, there are {', '.join(sorted(row))}")
    return row["json"]


TRAJECTORIES = Form("trajectories", dict, cheap=True)
"""Rows that are trajectories as they are."""
SHARDED = Form("trajectories", _json_member, cheap=True)
"""Samples of tar shards whose `json` is a trajectory, and names the other members as its images."""

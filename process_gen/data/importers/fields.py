"""What all importers share: fields of a row, each with its own message, and texts with marks of images."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from process_gen.common.names import hint
from process_gen.data.formats.opening import open_rows
from process_gen.data.formats.rows import Form, Row, Rows
from process_gen.trajectory.record import RecordError

IMAGE_MARK = re.compile(r"<image_start>\s*\[([^\]]+)\]\s*<image_end>")
"""Where a text shows an image, and which one."""


@dataclasses.dataclass(frozen=True)
class Importer:
    """How the set of another project is read.

    Attributes:
      form: how its rows are trajectories.
      open: gives the rows of a path.
    """

    form: Form
    open: Callable[[str | os.PathLike[str]], Rows] = open_rows


def get(row: Mapping[str, Any], name: str) -> Any:
    """A field; raises RecordError where it is missing or null."""
    if row.get(name) is None:
        raise RecordError(f"{name} is missing; {hint(name, row)}" if row else f"{name} is missing")
    return row[name]


def text(row: Mapping[str, Any], name: str) -> str:
    """A field that is text and not empty."""
    return check_text(get(row, name), name)


def check_text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RecordError(f"{name} is {'empty' if isinstance(value, str) else 'not text'}")
    return value.strip()


def items(row: Mapping[str, Any], name: str, count: int | None = None) -> list[Any]:
    """A field that is a list, of so many values."""
    found = get(row, name)
    if not isinstance(found, list):
        raise RecordError(f"{name} is not a list")
    if count is not None and len(found) != count:
        raise RecordError(f"{name} has {len(found)} values, and {count} are due")
    return found


def image(value: Any, name: str) -> Any:
    """An image as a record may have it: a path, bytes, or `{"bytes", "path"}`; lists of one are read."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if isinstance(value, str) and value or isinstance(value, Mapping) and value:
        return value
    raise RecordError(f"{name} is missing" if value is None else f"{name} is no image: {str(value)[:40]!r}")


def plan(instruction: str) -> dict[str, str]:
    """The plan of a step that describes no more than the step itself."""
    return {"instruction": instruction, "description": ""}


def marked(value: str) -> tuple[list[str], list[str]]:
    """The texts before, between and behind the images that a text shows, and the names of those."""
    parts = IMAGE_MARK.split(value)
    return [part.strip() for part in parts[::2]], parts[1::2]


def same(one: Any, other: Any) -> bool:
    """Whether two images are the same: by their bytes where both have some, else by what names them."""
    found = [image.get("bytes") if isinstance(image, Mapping) else None for image in (one, other)]
    return found[0] == found[1] if None not in found else one == other


def one_row(read: Callable[[Row], dict[str, Any]]) -> Callable[[Sequence[Row], int], dict[str, Any]]:
    """A `Form.read` of rows that are one trajectory each."""
    return functools.partial(_read_first, read)


def _read_first(read: Callable[[Row], dict[str, Any]], rows: Sequence[Row], part: int) -> dict[str, Any]:
    del part
    return read(rows[0])

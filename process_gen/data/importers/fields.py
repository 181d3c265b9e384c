"""Reads and checks fields of a row, for all importers; each raises RecordError that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from process_gen.common import files
from process_gen.common.names import hint
from process_gen.trajectory.record import RecordError


def get(row: Mapping[str, Any], name: str) -> Any:
    """Returns a field; raises RecordError where it is missing or null."""
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
    """Returns a field that is a list, of `count` values where that is given."""
    found = get(row, name)
    if not isinstance(found, list):
        raise RecordError(f"{name} is not a list")
    if count is not None and len(found) != count:
        raise RecordError(f"{name} has {len(found)} values, expected {count}")
    return found


def parsed(row: Mapping[str, Any], name: str) -> Any:
    """Returns a field, parsed where it is a JSON text."""
    found = get(row, name)
    try:
        return files.from_json(found) if isinstance(found, str) else found
    except ValueError as error:
        raise RecordError(f"{name} is not JSON: {error}") from None


def image(row: Mapping[str, Any], name: str) -> Any:
    """A field that is an image."""
    return check_image(get(row, name), name)


def images(row: Mapping[str, Any], name: str) -> list[Any]:
    """A field that is a list of images."""
    return [check_image(one, f"{name}[{place}]") for place, one in enumerate(items(row, name))]


def check_image(value: Any, name: str) -> Any:
    """Returns an image as a path or as `{"bytes", "path"}`; takes bytes and lists of one image too."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if isinstance(value, str) and value or isinstance(value, Mapping) and value:
        return value
    raise RecordError(f"{name} is missing" if value is None else f"{name} is no image: {str(value)[:40]!r}")


def plan(instruction: str) -> dict[str, str]:
    """Returns the fields of a plan with an instruction and an empty description."""
    return {"instruction": instruction, "description": ""}


def same(one: Any, other: Any) -> bool:
    """Returns whether two images are the same: by bytes where both have them, else by path."""
    found = [image.get("bytes") if isinstance(image, Mapping) else None for image in (one, other)]
    return found[0] == found[1] if None not in found else one == other

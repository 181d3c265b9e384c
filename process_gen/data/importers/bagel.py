"""BAGEL's training data: Parquet of captioned images and of chains of edits.

Text to image: `image` (bytes) and `captions`, a JSON object; every caption is a trajectory of its own.
Edits: `image_list` (bytes) and `instruction_list`, for each edit a list of alternative wordings. A chain is
one trajectory: the first image and instruction are the prompt, later instructions are plans without loss.
With at most k wordings of an edit there are k trajectories. BAGEL cuts a chain at random; here it is whole.

The path is a folder, a file, a pattern, or the JSON file that a dataset info names (`parquet_info_path`):
`{"part.parquet": {"num_row_groups": 1, "num_rows": 100}}`, with which the parts must agree.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from typing import Any

from process_gen.common import files
from process_gen.data.formats.parquet import ParquetRows
from process_gen.data.formats.places import split_path
from process_gen.data.formats.rows import Form, Row, Rows, Unit, units_of
from process_gen.data.importers import fields
from process_gen.trajectory.record import RecordError


def open_parts(path: str | os.PathLike[str]) -> ParquetRows:
    """Opens the rows of the parts that a path names.

    Raises:
      ValueError: the info file is malformed, or its counts are not those of the parts.
      FileNotFoundError, BadTrajectory: as `ParquetRows`.
    """
    if not os.fspath(path).endswith(".json"):
        return ParquetRows(path)
    place, name = split_path(path)
    with place.open(name) as file:
        info = files.from_json(file.read())
    if not isinstance(info, dict) or not info or not all(isinstance(one, dict) for one in info.values()):
        raise ValueError(f"{path} says nothing of parts: it must hold {{name: {{num_row_groups, num_rows}}}}")
    folder, names = place.root, list(info)
    if absolute := [name for name in names if os.path.isabs(name)]:
        if len(absolute) < len(names):
            raise ValueError(f"{path} names some parts by absolute paths and others not: make them all alike")
        folder = os.path.commonpath([os.path.dirname(name) for name in names])
        names = [posixpath.relpath(name, folder) for name in names]
    rows = ParquetRows(folder, names)
    for (part, said), sizes in zip(info.items(), rows.sizes(), strict=True):
        stated = (said.get("num_row_groups"), said.get("num_rows"))
        if stated != sizes:
            raise ValueError(
                f"{path} says that {part} has {stated[0]} row groups of {stated[1]} rows, and it has "
                f"{sizes[0]} of {sizes[1]}: make the file anew, or name the folder"
            )
    return rows


def _captions(row: Row) -> dict[str, str]:
    found = fields.parsed(row, "captions")
    if not isinstance(found, dict) or not found:
        raise RecordError("captions is not an object of texts")
    return found


def _by_caption(rows: Rows) -> list[Unit]:
    return units_of(rows.column("captions"), lambda value: len(_captions({"captions": value})))


def _read_captioned(rows: Sequence[Row], part: int) -> dict[str, Any]:
    (row,) = rows
    name, caption = list(_captions(row).items())[part]
    return {
        "prompt": fields.check_text(caption, f"captions.{name}"),
        "turns": [{"image": fields.image(row, "image")}],
        "metadata": {"caption": name},
    }


def _by_wording(rows: Rows) -> list[Unit]:
    """As many trajectories of a row as the edit with most wordings has."""

    def count(value: Any) -> int:
        said = fields.items({"instruction_list": value}, "instruction_list")
        return max((len(one) for one in said if isinstance(one, list)), default=1)

    return units_of(rows.column("instruction_list"), count)


def _read_edits(rows: Sequence[Row], part: int) -> dict[str, Any]:
    (row,) = rows
    images = fields.images(row, "image_list")
    if len(images) < 2:
        raise RecordError("image_list has no image behind the first one, there is no edit")
    said, words = fields.items(row, "instruction_list", len(images) - 1), []
    for place, ways in enumerate(said):
        name = f"instruction_list[{place}]"
        if not isinstance(ways, list) or not ways:
            raise RecordError(f"{name} is not a list of texts")
        words.append(fields.check_text(ways[part % len(ways)], name))
    turns: list[dict[str, Any]] = [{"image": images[1]}]
    for image, instruction in zip(images[2:], words[1:], strict=True):
        turns.append({**fields.plan(instruction), "before_weight": 0.0, "image": image})
    return {"image": images[0], "instruction": words[0], "turns": turns}


T2I = open_parts, Form("BAGEL t2i 1", _read_captioned, _by_caption)
EDIT = open_parts, Form("BAGEL edit 1", _read_edits, _by_wording)

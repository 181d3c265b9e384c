"""MagicBrush: chains of real edits, Parquet of one edit a row, each with a mask.

Columns `img_id, turn_index, source_img, mask_img, instruction, target_img`. The rows of an `img_id` are one
trajectory in the order of `turn_index`: the first source and instruction are the prompt, later
instructions are plans without loss. Masks are the field `mask` of each turn, for `data.fields`.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

from process_gen.data.formats.parquet import ParquetRows
from process_gen.data.formats.rows import Form, Row, Rows, Unit
from process_gen.data.importers import fields
from process_gen.trajectory.record import RecordError


def _units(rows: Rows) -> list[Unit]:
    """Groups the rows by image, each group in the order of `turn_index`; one trajectory for each."""
    groups: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
    numbers = zip(rows.column("img_id"), rows.column("turn_index"), strict=True)
    for index, (name, turn) in enumerate(numbers):
        groups[str(name)].append((turn if isinstance(turn, int) else 0, index))
    return [(tuple(index for _, index in sorted(group)), 0) for group in groups.values()]


def _read(rows: Sequence[Row], part: int) -> dict[str, Any]:
    del part
    turns: list[dict[str, Any]] = []
    for place, row in enumerate(rows, start=1):
        if row.get("turn_index") != place:
            raise RecordError(f"turn_index is {row.get('turn_index')}, and turn {place} of the image is due")
        source, target = (fields.image(row, name) for name in ("source_img", "target_img"))
        if turns and not fields.same(source, turns[-1]["image"]):
            raise RecordError(f"source_img of turn {place} is not target_img of the turn before")
        turn: dict[str, Any] = {"image": target}
        if "mask_img" in row:
            turn["mask"] = fields.image(row, "mask_img")
        if turns:
            turn |= fields.plan(fields.text(row, "instruction")) | {"before_weight": 0.0}
        turns.append(turn)
    return {
        "uid": str(fields.get(rows[0], "img_id")),
        "image": fields.image(rows[0], "source_img"),
        "instruction": fields.text(rows[0], "instruction"),
        "turns": turns,
        "source": "MagicBrush",
        "licence": "CC-BY-4.0",
        "author": "human",
    }


MAGICBRUSH = ParquetRows, Form("MagicBrush 1", _read, _units)

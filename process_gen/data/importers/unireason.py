"""UniReason: JSON listings of three kinds, which the fields of a row tell apart.

    text to image  `type: T2I_SFT, txt, image_path`
    edit           `instruction, input_image, output_image`
    think, refine  `prompt, explanation, "Text Reasoning Trace", img_path`, and images under the names
                   that the trace shows as `<image_start>[name]<image_end>`

Of the third kind only the trace and its images are learned: draft and explanation are given. The text
before an image is its correction, the one behind the last image an inspection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from process_gen.data.formats.jsonl import JsonRows
from process_gen.data.formats.rows import Form
from process_gen.data.importers import fields
from process_gen.trajectory.record import RecordError

TRACE = "Text Reasoning Trace"
_THOUGHT = re.compile(r"THOUGHT\s*\d+:\s*")


def _read(row: Mapping[str, Any]) -> dict[str, Any]:
    if TRACE in row:
        found = _refined(row)
    elif "instruction" in row:
        found = {
            "image": fields.image(fields.get(row, "input_image"), "input_image"),
            "instruction": fields.text(row, "instruction"),
            "turns": [{"image": fields.image(fields.get(row, "output_image"), "output_image")}],
        }
    elif row.get("type") == "T2I_SFT":
        shown = fields.image(fields.get(row, "image_path"), "image_path")
        found = {"prompt": fields.text(row, "txt"), "turns": [{"image": shown}]}
    else:
        raise RecordError(
            f"line is of no kind that is known: neither {TRACE!r}, nor instruction, nor type T2I_SFT"
        )
    return found | {"source": "UniReason", "author": "model"}


def _refined(row: Mapping[str, Any]) -> dict[str, Any]:
    if "input_image" in row:
        raise RecordError("input_image: a correction of an edit has no place")
    texts, names = fields.marked(_THOUGHT.sub("", fields.text(row, TRACE)))
    draft: dict[str, Any] = {
        "image": fields.image(fields.get(row, "img_path"), "img_path"),
        "image_weight": 0.0,
    }
    if str(row.get("explanation") or "").strip():
        draft |= fields.plan(fields.text(row, "explanation")) | {"before_weight": 0.0}
    turns = [draft]
    for said, name in zip(texts, names, strict=False):
        shown = fields.image(fields.get(row, name), name)
        turns.append({"refine": fields.check_text(said, f"{TRACE} before {name}"), "image": shown})
    if texts[-1]:
        turns[-1]["inspect"] = texts[-1]
    return {"prompt": fields.text(row, "prompt"), "turns": turns}


UNIREASON = fields.Importer(Form("UniReason 1", fields.one_row(_read)), JsonRows)

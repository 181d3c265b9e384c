"""Zebra-CoT: reasoning in words and pictures, Parquet with one folder a domain.

Columns `Question, "Text Reasoning Trace", "Final Answer", problem_image_N, reasoning_image_N`; texts show
an image as `<image_start>[reasoning_image_1]<image_end>`. The question is the prompt, with one image at
most; the text before each picture of the trace is its plan; the text behind the last one, and the
answer, stand behind it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from process_gen.data.formats.rows import Form
from process_gen.data.importers import fields
from process_gen.trajectory.record import RecordError

TRACE = "Text Reasoning Trace"
_THOUGHT = re.compile(r"THOUGHT\s*\d+:\s*")


def _read(row: Mapping[str, Any]) -> dict[str, Any]:
    asked, given = fields.marked(fields.text(row, "Question"))
    if len(given) > 1:
        raise RecordError(f"Question shows {len(given)} images, a prompt has room for one")
    texts, names = fields.marked(_THOUGHT.sub("", fields.text(row, TRACE)))
    if not names:
        raise RecordError(f"{TRACE} shows no image, there is nothing to draw")
    turns = []
    for said, name in zip(texts, names, strict=False):
        turn = {"image": fields.image(fields.get(row, name), name)}
        turns.append(turn | fields.plan(said) if said else turn)
    turns[-1]["inspect"] = "\n".join(filter(None, (texts[-1], fields.text(row, "Final Answer"))))
    found = {"turns": turns, "source": "Zebra-CoT", "licence": "CC-BY-NC-4.0"}
    if asked[0] or not given:
        found["prompt"] = asked[0]
    if given:
        found["image"] = fields.image(fields.get(row, given[0]), given[0])
        found |= {"instruction": asked[1]} if asked[1] else {}
    return found


ZEBRA_COT = fields.Importer(Form("Zebra-CoT 1", fields.one_row(_read)))

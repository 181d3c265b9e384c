"""UniCoT: chains of corrections until none is needed, and plans of up to three parts.

Self-reflection: `data_id, prompt, input_image[], output_image[], edit[], eval[], eval_summary[]`. Turn i
shows `input_image[i]`; its inspection is `eval_summary[i]` or, where that is empty, `eval[i]`. The correction
`edit[i]` makes `output_image[i]`, the image of turn i + 1. The last edit says that none is needed.

Breakdown: `data_id, prompt, subtasks[3], subtask_images[3]`, unused places null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from process_gen.data.formats.opening import open_rows
from process_gen.data.formats.rows import Form
from process_gen.data.importers import fields
from process_gen.trajectory.record import RecordError

DONE = "everything is good. no editing needed."
WHOLE = "no breakdown needed."


def _said(value: Any) -> str:
    return " ".join(value.split()).casefold() if isinstance(value, str) else ""


def _reflection(row: Mapping[str, Any]) -> dict[str, Any]:
    states = fields.items(row, "input_image")
    if not states:
        raise RecordError("input_image is empty")
    outputs, edits, evals, summaries = (
        fields.items(row, name, len(states)) for name in ("output_image", "edit", "eval", "eval_summary")
    )
    if outputs[-1] is not None or None in outputs[:-1]:
        raise RecordError("output_image must be null at its end, and nowhere else")
    if _said(edits[-1]) != DONE:
        raise RecordError(
            f"edit[{len(edits) - 1}] does not say that no editing is needed: {str(edits[-1])[:60]!r}"
        )
    turns = []
    for place, state in enumerate(states):
        turn: dict[str, Any] = {"image": fields.check_image(state, f"input_image[{place}]")}
        if place:
            if _said(edits[place - 1]) == DONE:
                raise RecordError(f"edit[{place - 1}] says that no editing is needed, and an image follows")
            if not fields.same(outputs[place - 1], state):
                raise RecordError(f"output_image[{place - 1}] is not input_image[{place}]")
            turn["refine"] = fields.check_text(edits[place - 1], f"edit[{place - 1}]")
        names = (f"eval_summary[{place}]", f"eval[{place}]")
        empty = not isinstance(summaries[place], str) or not summaries[place].strip()
        turn["inspect"] = fields.check_text((evals if empty else summaries)[place], names[empty])
        turns.append(turn)
    return _found(row, turns, "UniCoT-Self-Reflection")


def _breakdown(row: Mapping[str, Any]) -> dict[str, Any]:
    tasks = fields.items(row, "subtasks")
    shown = fields.items(row, "subtask_images", len(tasks))
    if tasks and _said(tasks[0]) == WHOLE:
        raise RecordError("subtasks needs no breakdown, so the row has no image")
    used = next((place for place, task in enumerate(tasks) if task is None), len(tasks))
    if not used:
        raise RecordError("subtasks is empty")
    if any(value is not None for value in (*tasks[used:], *shown[used:])):
        raise RecordError(f"subtasks or subtask_images go on behind subtasks[{used}], which is null")
    turns = [
        {
            **fields.plan(fields.check_text(tasks[place], f"subtasks[{place}]")),
            "image": fields.check_image(shown[place], f"subtask_images[{place}]"),
        }
        for place in range(used)
    ]
    return _found(row, turns, "UniCoT-Breakdown")


def _found(row: Mapping[str, Any], turns: list[dict[str, Any]], source: str) -> dict[str, Any]:
    return {
        "uid": str(fields.get(row, "data_id")),
        "prompt": fields.text(row, "prompt"),
        "turns": turns,
        "source": source,
        "author": "model",
    }


REFLECTION = open_rows, Form("UniCoT self-reflection 1", _reflection)
BREAKDOWN = open_rows, Form("UniCoT breakdown 1", _breakdown)

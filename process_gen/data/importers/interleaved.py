"""Reasoning in words and pictures: UniReason, Zebra-CoT and ThinkMorph.

In texts of the first two `<image_start>[name]<image_end>` shows the image in the field of that name.

UniReason: JSON listings of three kinds, which the fields of a row tell apart.

    text to image  `type: T2I_SFT, txt, image_path`
    edit           `instruction, input_image, output_image`
    think, refine  `prompt, explanation, "Text Reasoning Trace", img_path`, and the images of the trace

Of the third kind only the trace and its images have losses: draft and explanation have weight 0. The text
before an image is its correction, the one after the last image an inspection.

Zebra-CoT: Parquet with one folder a domain, columns `Question, "Text Reasoning Trace", "Final Answer",
problem_image_N, reasoning_image_N`. The question is the prompt, with one image at most; the text before each
image of the trace is its plan; the text after the last one, with the answer, is its inspection.

ThinkMorph: Parquet with columns `image_list, instruction_list, output_text_list`. The first image and the
only instruction are the prompt; the text before each further image is its plan, and the last text, with the
answer, is the inspection of the last image. Image markers at the ends of texts are removed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from process_gen.data.formats.jsonl import JsonRows
from process_gen.data.formats.opening import open_rows
from process_gen.data.formats.rows import Form
from process_gen.data.importers import fields
from process_gen.trajectory.record import RecordError

TRACE = "Text Reasoning Trace"
_IMAGE = re.compile(r"<image_start>\s*\[([^\]]+)\]\s*<image_end>")
_THOUGHT = re.compile(r"THOUGHT\s*\d+:\s*")


def _marked(value: str) -> tuple[list[str], list[str]]:
    """Returns the texts before, between and after the images that a text shows, and their names."""
    parts = _IMAGE.split(value)
    return [part.strip() for part in parts[::2]], parts[1::2]


def _trace(row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Returns the texts of a trace, without `THOUGHT 1:`, and the names of its images."""
    return _marked(_THOUGHT.sub("", fields.text(row, TRACE)))


# ------------------------------------------------------------------- UniReason


def _unireason(row: Mapping[str, Any]) -> dict[str, Any]:
    if TRACE in row:
        found = _refined(row)
    elif "instruction" in row:
        found = {
            "image": fields.image(row, "input_image"),
            "instruction": fields.text(row, "instruction"),
            "turns": [{"image": fields.image(row, "output_image")}],
        }
    elif row.get("type") == "T2I_SFT":
        found = {"prompt": fields.text(row, "txt"), "turns": [{"image": fields.image(row, "image_path")}]}
    else:
        raise RecordError(
            f"line is of no kind that is known: neither {TRACE!r}, nor instruction, nor type T2I_SFT"
        )
    return found | {"source": "UniReason", "author": "model"}


def _refined(row: Mapping[str, Any]) -> dict[str, Any]:
    if "input_image" in row:
        raise RecordError("input_image: a correction of an edit has no place")
    texts, names = _trace(row)
    draft = {"image": fields.image(row, "img_path"), "image_weight": 0.0}
    if str(row.get("explanation") or "").strip():
        draft |= fields.plan(fields.text(row, "explanation")) | {"before_weight": 0.0}
    turns = [draft]
    for said, name in zip(texts, names, strict=False):
        shown = fields.image(row, name)
        turns.append({"refine": fields.check_text(said, f"{TRACE} before {name}"), "image": shown})
    if texts[-1]:
        turns[-1]["inspect"] = texts[-1]
    return {"prompt": fields.text(row, "prompt"), "turns": turns}


# ------------------------------------------------------------------- Zebra-CoT


def _zebra_cot(row: Mapping[str, Any]) -> dict[str, Any]:
    asked, given = _marked(fields.text(row, "Question"))
    if len(given) > 1:
        raise RecordError(f"Question shows {len(given)} images, a prompt has room for one")
    texts, names = _trace(row)
    if not names:
        raise RecordError(f"{TRACE} shows no image, there is nothing to draw")
    turns = []
    for said, name in zip(texts, names, strict=False):
        turns.append({"image": fields.image(row, name)} | (fields.plan(said) if said else {}))
    turns[-1]["inspect"] = "\n".join(filter(None, (texts[-1], fields.text(row, "Final Answer"))))
    found = {"turns": turns, "source": "Zebra-CoT", "licence": "CC-BY-NC-4.0"}
    if asked[0] or not given:
        found["prompt"] = asked[0]
    if given:
        found["image"] = fields.image(row, given[0])
        found |= {"instruction": asked[1]} if asked[1] else {}
    return found


# ------------------------------------------------------------------ ThinkMorph


def _thinkmorph(row: Mapping[str, Any]) -> dict[str, Any]:
    images, asked = fields.images(row, "image_list"), fields.items(row, "instruction_list", 1)
    said = fields.items(row, "output_text_list", len(images))
    if len(images) < 2:
        raise RecordError("image_list has no image behind the first one, there is nothing to draw")
    texts = [_bare(one, f"output_text_list[{place}]") for place, one in enumerate(said)]
    turns: list[dict[str, Any]] = [
        fields.plan(words) | {"image": image} for words, image in zip(texts, images[1:], strict=False)
    ]
    turns[-1]["inspect"] = texts[-1]
    return {
        "image": images[0],
        "instruction": fields.check_text(asked[0], "instruction_list[0]"),
        "turns": turns,
        "source": "ThinkMorph",
    }


def _bare(value: Any, name: str) -> str:
    words = fields.check_text(value, name).removeprefix("<image_end>").removesuffix("<image_start>")
    return fields.check_text(words, name)


UNIREASON = JsonRows, Form("UniReason 1", _unireason)
ZEBRA_COT = open_rows, Form("Zebra-CoT 1", _zebra_cot)
THINKMORPH = open_rows, Form("ThinkMorph 1", _thinkmorph)

"""ThinkMorph: a problem, thoughts and pictures in turn, Parquet.

Columns `image_list, instruction_list, output_text_list`. The first image and the first instruction are the
prompt; the text before each further image is its plan, and the last text, with the answer, stands
behind the last image. The marks `<image_start>` and `<image_end>` at the edges of texts are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from process_gen.data.formats.rows import Form
from process_gen.data.importers import fields
from process_gen.trajectory.record import RecordError


def _read(row: Mapping[str, Any]) -> dict[str, Any]:
    shown, asked = fields.items(row, "image_list"), fields.items(row, "instruction_list", 1)
    said = fields.items(row, "output_text_list", len(shown))
    if len(shown) < 2:
        raise RecordError("image_list has no image behind the first one, there is nothing to draw")
    images = [fields.image(one, f"image_list[{place}]") for place, one in enumerate(shown)]
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


THINKMORPH = fields.Importer(Form("ThinkMorph 1", fields.one_row(_read)))

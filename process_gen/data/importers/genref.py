"""Gen-Ref: a bad image, what is wrong with it, and a good one, in tar shards.

Members of a sample: `bad_image.jpg`, `good_image.jpg`, `reflection.txt`, `prompt.txt`, `subset.txt`.
The draft is the bad image, its inspection the reflection, and the good image its correction,
which has no text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from process_gen.data.formats.rows import Form
from process_gen.data.formats.webdataset import TarRows
from process_gen.data.importers import fields

SUBSETS = ("general", "length", "rule", "editing")


def _read(row: Mapping[str, Any]) -> dict[str, Any]:
    bad, good = (_member(row, name) for name in ("bad_image", "good_image"))
    found = {
        "prompt": fields.text(row, "prompt.txt"),
        "turns": [
            {"image": bad, "inspect": fields.text(row, "reflection.txt"), "image_ok": False},
            {"refines": True, "image": good},
        ],
        "source": "Gen-Ref",
        "author": "model",
    }
    if "subset.txt" in row:
        found["metadata"] = {"subset": fields.text(row, "subset.txt")}
        if found["metadata"]["subset"] not in SUBSETS:
            raise fields.RecordError(f"subset.txt is none of {', '.join(SUBSETS)}")
    return found


def _member(row: Mapping[str, Any], name: str) -> Any:
    """Returns the image member of that name, with any extension."""
    kinds = [kind for kind in row if kind.partition(".")[0] == name]
    if len(kinds) != 1:
        raise fields.RecordError(f"{name} is missing, there are {', '.join(sorted(row))}")
    return {"bytes": row[kinds[0]], "path": kinds[0]}


GENREF = TarRows, Form("Gen-Ref 1", _read)

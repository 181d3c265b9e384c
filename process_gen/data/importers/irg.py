"""IRG: Parquet with one column, `conversation`, which is JSON: turns of `{role, content, need_loss}`.

Content is parts of `{type, content, need_loss, need_vae, need_vit}`; an image is base64. The user's
text is the prompt. The text before the first image is a plan, the one before each further image a
correction, the one after the last image an inspection. Parts with `need_loss` false get weight 0;
such an image also gets `image_ok` false.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from process_gen.data.formats.parquet import ParquetRows
from process_gen.data.formats.rows import Form
from process_gen.data.importers import fields
from process_gen.trajectory.record import RecordError

CONTEXT = ("need_vae", "need_vit")
Part = tuple[str, Any, bool, dict[str, Any]]
"""`text` or `image`, its content, `need_loss`, and the flags of `CONTEXT`, kept as unknown fields."""


def _read(row: Mapping[str, Any]) -> dict[str, Any]:
    turns = fields.parsed(row, "conversation")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RecordError("conversation is not a list of turns")
    prompt: list[str] = []
    drawn: list[dict[str, Any]] = []
    said: list[tuple[str, bool]] = []  # since the last image, each with its `need_loss`
    for place, turn in enumerate(turns):
        for kind, value, loss, context in _parts(turn, f"conversation[{place}]"):
            if turn["role"] != "assistant":
                if kind == "image" or drawn:
                    raise RecordError(f"conversation[{place}]: the user's {kind} has no place")
                prompt.append(value)
            elif kind == "text":
                said.append((value, loss))
            else:
                image = {"image": value, "image_ok": loss, "image_weight": float(loss)}
                drawn.append(image | context | _before(said, refines=bool(drawn)))
                said = []
    if not drawn:
        raise RecordError("conversation has no image")
    if said:
        words, weight = _joined(said)
        drawn[-1] |= {"inspect": words, "after_weight": weight}
    return {"prompt": "\n".join(prompt), "turns": drawn, "source": "IRG", "author": "model"}


def _before(said: list[tuple[str, bool]], refines: bool) -> dict[str, Any]:
    """Returns the fields of the text before an image."""
    if not said:
        return {"refines": True} if refines else {}
    words, weight = _joined(said)
    return ({"refine": words} if refines else fields.plan(words)) | {"before_weight": weight}


def _joined(said: list[tuple[str, bool]]) -> tuple[str, float]:
    losses = {loss for _, loss in said}
    if len(losses) > 1:
        raise RecordError("conversation: texts with and without need_loss stand before one image")
    return "\n".join(text for text, _ in said), float(losses.pop())


def _parts(turn: Mapping[str, Any], field: str) -> Iterator[Part]:
    """Yields the parts of a turn; raises RecordError where one is malformed."""
    content = fields.get(turn, "content")
    parts = [{"type": "text", "content": content}] if isinstance(content, str) else content
    if turn.get("role") not in ("system", "user", "assistant") or not isinstance(parts, list):
        raise RecordError(f"{field} is no turn of a user or an assistant with content")
    for place, part in enumerate(parts):
        name = f"{field}.content[{place}]"
        if not isinstance(part, dict) or part.get("type") not in ("text", "image"):
            raise RecordError(f"{name} is neither text nor image")
        loss = part.get("need_loss", turn.get("need_loss", None if turn["role"] == "assistant" else False))
        if not isinstance(loss, bool):
            raise RecordError(f"{name}.need_loss is neither true nor false")
        value = fields.check_text(part.get("content"), f"{name}.content")
        if part["type"] == "image":
            value = _decoded(value, name)
        yield part["type"], value, loss, {key: part[key] for key in CONTEXT if key in part}


def _decoded(value: str, name: str) -> dict[str, Any]:
    try:
        body = value.partition(",")[2] if value.startswith("data:") else value
        return {"bytes": base64.b64decode(body, validate=True), "path": None}
    except (binascii.Error, ValueError):
        raise RecordError(f"{name}.content is not base64") from None


IRG = ParquetRows, Form("IRG 1", _read)

"""Trajectories as JSON objects, images as paths: the format that the sampler writes and training reads.

    {"prompt": "a cat on a mat", "turns": [
      {"instruction": "draw the mat", "description": "a mat", "image": "1/a.png"},
      {"instruction": "add the cat", "description": "a cat on a mat", "image": "1/b.jpg",
       "inspect": "the cat floats"},
      {"refine": "put the cat down", "image": "1/c.png"}]}
    {"image": "2/in.png", "instruction": "make the cat red", "turns": [{"image": "2/out.png"}]}

A prompt may hold an input image, `image`, between two texts: `prompt` before it
and `instruction` after it. Either text may be left out, not both. `uid` and
`metadata` are optional.

A turn is a draft, or with `refine` a correction of the image before it. Only `image` is
required; a last turn with `refine` may lack it, and training then uses its text alone.
`before` is the marked-up text before the image as a model wrote it, in the place of
`instruction` with `description` or of `refine`; `refines` then says which of the two it
is. The other fields of `TURN_FIELDS` are optional: `image_ok` (whether the image is as
it should be; by default it is, unless the next turn corrects it) and the weights of the
losses. `sha256` of a turn is that of its image file, which is then checked.

An image is a path, or `{"bytes": .., "path": ..}` in formats that can hold bytes.

`source`, `licence` and `author` (`human`, `model` or `teacher`) say where a trajectory
comes from. They are stored in its metadata, and so are unknown fields, of the trajectory
or (under `turn_fields`, one object a turn) of its turns; each is logged once.

Objects with `steps`, `{"sketch", "refine", "refined", "sketch_ok", "plan_ok", ..}`, in
the place of `turns` are read as well. A sampled trajectory also has the fields of
`SampledTrajectory`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, get_args

import numpy as np
from absl import logging

from process_gen.common.names import hint
from process_gen.common.ranges import is_number
from process_gen.trajectory import markup
from process_gen.trajectory.markup import Plan
from process_gen.trajectory.sampled import SampledTrajectory, Stopped
from process_gen.trajectory.stages import TURN_FIELDS, Mode, Trajectory, Turn, turn_fields

SAMPLED_KEYS = tuple(
    field.name
    for field in dataclasses.fields(SampledTrajectory)
    if field.name not in {own.name for own in dataclasses.fields(Trajectory)}
)
"""Fields of a sampled trajectory alone: mode, seed, and how it was sampled."""
PROVENANCE_KEYS = ("source", "licence", "author")
AUTHORS = ("human", "model", "teacher")
TRAJECTORY_KEYS = (
    *("prompt", "image", "instruction", "turns", "steps", "uid", "metadata"),
    *(*PROVENANCE_KEYS, *SAMPLED_KEYS),
)
PLAN_KEYS = ("instruction", "description")
TURN_KEYS = (
    *PLAN_KEYS,
    "refine",
    "inspect",
    "sha256",
    *(field.name for field in TURN_FIELDS if field.name != "after"),
)
STEP_KEYS = (*PLAN_KEYS, "sketch", "inspect", "refine", "refined", "sketch_ok", "plan_ok")
"""Keys of a step, in objects with `steps`."""

_LARGEST_WEIGHT = 1e30

ImageFile = str | bytes
"""The path of an image file, or its bytes."""
Image = ImageFile | Mapping[str, Any]
"""An image as an object has it: its file, or `{"bytes", "path"}`."""


class RecordError(ValueError):
    """An object that is no trajectory; the message begins with the name of the field."""


@dataclasses.dataclass(frozen=True, slots=True)
class TurnRecord:
    """A turn whose image is not decoded yet.

    Attributes:
      image: its path, or the bytes of its file; None where it was not drawn.
      image_field: names the image in messages, `turns[0].image`.
      fields: the other arguments of `Turn`, defaults left out.
      sha256: of the file, in hexadecimal digits; empty where the record has none.
      unknown: fields that no turn has, and that were not asked for.
      extra: user-defined fields that were asked for.
    """

    image: ImageFile | None
    image_field: str
    fields: Mapping[str, Any]
    sha256: str = ""
    unknown: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """A trajectory whose images are paths, or bytes of image files.

    Attributes:
      prompt, instruction, uid: as in `Trajectory`, empty where absent.
      metadata: likewise, with the provenance and unknown fields.
      turns: at least one.
      prompt_image: the input image, None where there is none.
      sampled: those of `SAMPLED_KEYS` that the object has.
    """

    prompt: str
    turns: tuple[TurnRecord, ...]
    uid: str = ""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prompt_image: ImageFile | None = None
    instruction: str = ""
    sampled: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# ----------------------------------------------------------------------- write


def trajectory_to_json(
    trajectory: Trajectory, image_paths: Sequence[Image | None], prompt_image_path: Image | None = None
) -> dict[str, Any]:
    """Returns the JSON object of a trajectory, sampled or not, whose images the caller saves.

    `image_paths` has the path of each turn's image, or its `{"bytes", "path"}`; None where it has none.
    Raises ValueError for metadata that JSON cannot hold.
    """
    found = {
        "uid": trajectory.uid,
        "prompt": trajectory.prompt,
        "image": prompt_image_path,
        "instruction": trajectory.instruction,
        "turns": [turn_to_json(turn, path) for turn, path in zip(trajectory.turns, image_paths, strict=True)],
        "metadata": to_json(trajectory.metadata),
    }
    if isinstance(trajectory, SampledTrajectory):
        found |= {key: to_json(getattr(trajectory, key)) for key in SAMPLED_KEYS}
    return {key: value for key, value in found.items() if value not in (None, "", {})}


def turn_to_json(turn: Turn, image_path: Image | None) -> dict[str, Any]:
    """Returns the JSON object of a turn; a malformed text before its image is stored raw, as `before`."""
    found = _before_to_json(turn) | ({} if image_path is None else {"image": image_path})
    if turn.after is not None:
        found["inspect"] = turn.after
    if turn.image is not None:
        found["image_ok"] = bool(turn.image_ok)
    weights = {field: float(getattr(turn, field.name)) for field in turn_fields("weight")}
    return found | {field.name: value for field, value in weights.items() if value != field.default}


def _before_to_json(turn: Turn) -> dict[str, Any]:
    parsed = turn.parsed
    with contextlib.suppress(ValueError):  # a text that cannot be rewritten is stored raw
        if isinstance(parsed, Plan) and markup.write_plan(parsed) == turn.before:
            return dataclasses.asdict(parsed)
        if isinstance(parsed, str) and markup.write_refine(parsed) == turn.before:
            return {"refine": parsed}
    raw = {} if turn.before is None else {"before": turn.before}
    return raw | {"refines": True} if turn.refines else raw


def to_json(value: Any) -> Any:
    """Converts to plain JSON values: NumPy scalars and arrays, mappings, sets and enums.

    Raises:
      ValueError: JSON has no place for it, or it holds a number that is not finite.
    """
    try:
        return json.loads(json.dumps(value, default=_plain, allow_nan=False))
    except TypeError as error:
        raise ValueError(str(error)) from None


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"a {type(value).__name__} has no place in a record: {value!r}")


# ------------------------------------------------------------------------ read


def trajectory_from_json(value: Any, fields: Collection[str] = ()) -> Record:
    """Returns the checked record of one object; `fields` names the user-defined fields of turns to read.

    Raises:
      RecordError: the message names the field, and the nearest name of an unknown one.
    """
    line = _Object(value, "line")
    unknown = line.unknown(TRAJECTORY_KEYS)
    _check_prompt(line)
    metadata = value.get("metadata", {})
    if not isinstance(metadata, dict):
        raise RecordError("metadata is not an object")
    _characters(json.dumps(metadata, ensure_ascii=False, default=str), "metadata")
    turns = _read_turns(line, fields)
    if any(turn.unknown for turn in turns):
        unknown["turn_fields"] = [turn.unknown for turn in turns]
    return Record(
        prompt=value.get("prompt", ""),
        turns=turns,
        uid=line.text("uid") if "uid" in value else "",
        metadata=unknown | _read_provenance(line) | metadata,
        prompt_image=line.image("image") if "image" in value else None,
        instruction=value.get("instruction", ""),
        sampled=_read_sampled(value),
    )


class _Object:
    """A JSON object of a record: reads its fields, each with a check.

    `name` is that of the object in messages; `renamed` has the keys that the user's object calls otherwise.
    """

    def __init__(self, value: Any, name: str, renamed: Mapping[str, str] | None = None):
        if not isinstance(value, dict):
            raise RecordError(f"{name} is not a JSON object")
        self.value, self.name, self._renamed = value, name, renamed or {}

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def called(self, key: str) -> str:
        """The name of a field in messages, such as `turns[0].image`; those of the line have no prefix."""
        key = self._renamed.get(key, key)
        return key if self.name == "line" else f"{self.name}.{key}"

    def flag(self, key: str, default: bool) -> bool:
        value = self.value.get(key, default)
        if not isinstance(value, bool):
            raise RecordError(f"{self.called(key)} is neither true nor false")
        return value

    def text(self, key: str, check: Callable[[str, str], str] = markup.check_characters) -> str:
        if key not in self.value:
            near = difflib.get_close_matches(key, self.value, 1)
            hint = f"; is {near[0]!r} meant for it?" if near else ""
            raise RecordError(f"{self.called(key)} is missing{hint}")
        if not isinstance(self.value[key], str):
            raise RecordError(f"{self.called(key)} is not text")
        return _characters(self.value[key], self.called(key), check)

    def plain_text(self, key: str) -> str:
        """A text without special tokens."""
        return self.text(key, markup.check_plain)

    def image(self, key: str) -> ImageFile:
        """The path or the bytes of an image."""
        value = self.value.get(key)
        content = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(content, bytes):
            return content
        if isinstance(value, dict) and isinstance(value.get("path"), str):
            name = _characters(value["path"], self.called(key))
        else:
            name = self.text(key)
        if not name or "\0" in name:
            raise RecordError(f"{self.called(key)} is no file name: {name!r}")
        return name

    def check_both(self, *pair: str) -> None:
        """Two fields of which each needs the other."""
        for one, other in (pair, pair[::-1]):
            if one in self and other not in self:
                raise RecordError(f"{self.called(other)} is missing beside {one}")

    def unknown(self, known: Collection[str]) -> dict[str, Any]:
        """The fields that are none of `known`, bytes left out; the log names each once."""
        found = {key: _without_bytes(one) for key, one in self.value.items() if key not in known}
        for key, one in found.items():
            where = f"{self.name}.{key[:40]}"
            _characters(json.dumps({key: one}, ensure_ascii=False, default=str), where)
            _name_once(self.name.partition("[")[0], key)
        return found


def _check_prompt(line: _Object) -> None:
    """A prompt is a text, or an input image with a text before or after it."""
    if "image" not in line and "instruction" in line:
        raise RecordError("instruction stands after an image, and there is no image")
    texts = [key for key in ("prompt", "instruction") if key in line]
    for key in texts if "image" in line and texts else ("prompt",):
        if not line.plain_text(key).strip():
            raise RecordError(f"{key} is empty")


def _read_provenance(line: _Object) -> dict[str, str]:
    found = {key: line.text(key) for key in PROVENANCE_KEYS if key in line}
    if found.get("author", AUTHORS[0]) not in AUTHORS:
        raise RecordError(f"author must be one of {', '.join(AUTHORS)}, got {found['author']!r}")
    return found


def _read_sampled(value: dict[str, Any]) -> dict[str, Any]:
    found = {key: value[key] for key in SAMPLED_KEYS if key in value}
    words = {"mode": tuple(mode.value for mode in Mode), "stopped": get_args(Stopped)}
    for key, one in found.items():
        if key in words:
            if one not in words[key]:
                raise RecordError(f"{key} must be one of {', '.join(words[key])}, got {one!r}")
        elif key == "verdict":
            if not isinstance(one, dict):
                raise RecordError("verdict is not an object")
            _characters(json.dumps(one, ensure_ascii=False, default=str), key)
        elif key == "doubts":
            if not isinstance(one, list) or not all(is_number(p) and 0 <= p <= 1 for p in one):
                raise RecordError("doubts is not a list of probabilities")
            found[key] = tuple(map(float, one))
        elif isinstance(one, bool) or not isinstance(one, (int, float) if key == "seconds" else int):
            raise RecordError(f"{key} is not a {'number' if key == 'seconds' else 'whole number'}")
    return found


def _read_turns(line: _Object, fields: Collection[str]) -> tuple[TurnRecord, ...]:
    if "turns" in line and "steps" in line:
        raise RecordError("line has both turns and steps")
    key = "steps" if "steps" in line else "turns"
    given = line.value.get(key)
    if not isinstance(given, list) or not given:
        raise RecordError(f"{key} must be a list of at least one {key.removesuffix('s')}")
    objects = (_Object(one, f"{key}[{place}]") for place, one in enumerate(given))
    turns = [turn for one in objects for turn in (_turns_of_step(one) if key == "steps" else [one])]
    read = [_read_turn(turn, fields) for turn in turns]
    if read[0].fields.get("refines"):
        raise RecordError("turns[0] corrects an image, and there is none before it")
    for turn, given, following in zip(read, turns, read[1:], strict=False):
        if following.fields.get("refines") and "image_ok" not in given:
            turn.fields["image_ok"] = False
        if turn.image is None:
            raise RecordError(
                f"{turn.image_field} is missing; only a refine that ends a trajectory may lack it"
            )
    return tuple(read)


def _turns_of_step(step: _Object) -> list[_Object]:
    """The turns of a step as objects of their own."""
    step.check_both("refine", "refined")
    moved = {"image": "sketch", "image_ok": "sketch_ok"}
    others = ("sketch", "refine", "refined", "sketch_ok", "plan_ok")
    draft = {key: one for key, one in step.value.items() if key not in others}
    draft |= {new: step.value[old] for new, old in moved.items() if old in step}
    if not step.flag("plan_ok", True):
        draft["before_weight"] = 0.0
    turns = [_Object(draft, step.name, moved)]
    if "refine" in step:
        refine = {"refine": step.value["refine"], "image": step.value["refined"]}
        turns.append(_Object(refine, step.name, {"image": "refined"}))
    return turns


def _read_turn(turn: _Object, own: Collection[str]) -> TurnRecord:
    """Checks a turn; `own` are the user-defined fields to read."""
    lacks = "image" not in turn and "refine" in turn and "inspect" not in turn
    image = None if lacks else turn.image("image")
    found: dict[str, Any] = {"after": turn.text("inspect") if "inspect" in turn else None}
    found["before"], found["refines"] = _read_before(turn)
    found["image_ok"] = turn.flag("image_ok", True)
    for field in turn_fields("weight"):
        weight = turn.value.get(field.name, field.default)
        if not is_number(weight) or not 0 <= weight <= _LARGEST_WEIGHT:
            raise RecordError(f"{turn.called(field.name)} is not a number of at least 0")
        found[field.name] = float(weight)
    defaults = {field.name: field.default for field in TURN_FIELDS}
    fields = {name: one for name, one in found.items() if one != defaults[name]}
    sha256 = turn.text("sha256") if "sha256" in turn else ""
    extra = {key: one for key, one in turn.value.items() if key in own and key not in TURN_KEYS}
    return TurnRecord(image, turn.called("image"), fields, sha256, turn.unknown((*TURN_KEYS, *extra)), extra)


def _read_before(turn: _Object) -> tuple[str | None, bool]:
    """The text before the image with its markup, and whether the turn is a refine turn."""
    turn.check_both(*PLAN_KEYS)
    kinds = [key for key in ("before", "instruction", "refine") if key in turn]
    if len(kinds) > 1:
        raise RecordError(f"{turn.called(kinds[1])} and {kinds[0]} exclude each other")
    refines = turn.flag("refines", "refine" in turn)
    if refines and "instruction" in turn or not refines and "refine" in turn:
        raise RecordError(f"{turn.called('refines')} does not go with {kinds[0]}")
    if "refine" in turn:
        return markup.write_refine(turn.plain_text("refine")), True
    if "instruction" in turn:
        return markup.write_plan(Plan(*map(turn.plain_text, PLAN_KEYS))), False
    return (turn.text("before") if "before" in turn else None), refines


def _without_bytes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_bytes(one) for key, one in value.items() if not isinstance(one, bytes)}
    if isinstance(value, list):
        return [_without_bytes(one) for one in value if not isinstance(one, bytes)]
    return None if isinstance(value, bytes) else value


@functools.cache
def _name_once(place: str, key: str) -> None:
    known = TRAJECTORY_KEYS if place == "line" else TURN_KEYS
    logging.warning("unknown field %r of %s is kept and not used; %s", key, place, hint(key, known))


def _characters(text: str, field: str, check: Callable[[str, str], str] = markup.check_characters) -> str:
    try:
        return check(text, field)
    except markup.BadText as error:
        raise RecordError(str(error)) from None

"""A trajectory as one JSON object, its images as paths: what the sampler writes is what training reads.

    {"prompt": "a cat on a mat", "turns": [
      {"instruction": "draw the mat", "description": "a mat", "image": "1/a.png"},
      {"instruction": "add the cat", "description": "a cat on a mat", "image": "1/b.jpg",
       "inspect": "the cat floats"},
      {"refine": "put the cat down", "image": "1/c.png"}]}
    {"image": "2/in.png", "instruction": "make the cat red", "turns": [{"image": "2/out.png"}]}

A prompt may hold an input image, `image`, between two texts: `prompt` before it
and `instruction` after it. Either text may be left out, not both. `uid` and
`metadata` are optional.

A turn is a draft, or with `refine` a correction of the image before it. Only its
`image` must be there. `before` is the marked-up text before the image as a model
wrote it, in the place of `instruction` with `description` or of `refine`; `refines`
then says which of the two it is. The other fields of `TURN_FIELDS` may stand
there too: `image_ok` (whether the image is as it should be; by default it is, unless
the next turn corrects it) and the weights of the losses.

Lines of steps, `{"sketch", "refine", "refined", "sketch_ok", "plan_ok", ..}` in the
place of turns, are read as well. A sampled trajectory has the fields of
`SampledTrajectory` besides.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

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
"""What a sampled trajectory has besides: mode, seed, and how it came to be."""
TRAJECTORY_KEYS = ("prompt", "image", "instruction", "turns", "steps", "uid", "metadata", *SAMPLED_KEYS)
PLAN_KEYS = ("instruction", "description")
TURN_KEYS = (*PLAN_KEYS, "refine", "inspect", *(field.name for field in TURN_FIELDS if field.name != "after"))
STEP_KEYS = (*PLAN_KEYS, "sketch", "inspect", "refine", "refined", "sketch_ok", "plan_ok")
"""Of a step, in lines of steps."""

_LARGEST_WEIGHT = 1e30


class RecordError(ValueError):
    """An object that is no trajectory; the message begins with the name of the field."""


@dataclasses.dataclass(frozen=True, slots=True)
class TurnRecord:
    """A turn whose image is a path.

    Attributes:
      image: the path.
      image_field: names the image in messages, `turns[0].image`.
      fields: the other arguments of `Turn`, defaults left out.
    """

    image: str
    image_field: str
    fields: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """A trajectory whose images are paths.

    Attributes:
      prompt, instruction, uid, metadata: as in `Trajectory`, empty where absent.
      turns: at least one.
      prompt_image: the path of the input image, None where there is none.
      sampled: those of `SAMPLED_KEYS` that are there.
    """

    prompt: str
    turns: tuple[TurnRecord, ...]
    uid: str = ""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prompt_image: str | None = None
    instruction: str = ""
    sampled: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# ----------------------------------------------------------------------- write


def trajectory_to_json(
    trajectory: Trajectory, image_paths: Sequence[str], prompt_image_path: str | None = None
) -> dict[str, Any]:
    """Returns the object of a trajectory, sampled or not.

    Args:
      trajectory: whose images the caller saves.
      image_paths: where the image of each turn lies.
      prompt_image_path: where its input image lies.

    Raises:
      ValueError: not a path for every image, or metadata that JSON cannot hold.
    """
    if (trajectory.prompt_image is None) != (prompt_image_path is None):
        raise ValueError(f"trajectory {trajectory.uid!r}: a path for its input image, if it has one")
    if len(image_paths) != len(trajectory.turns):
        raise ValueError(
            f"trajectory {trajectory.uid!r}: {len(image_paths)} paths for {len(trajectory.turns)} images"
        )
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


def turn_to_json(turn: Turn, image_path: str) -> dict[str, Any]:
    """Returns the object of a turn; a text before its image that is malformed stands there as it is."""
    found = _before_to_json(turn) | {"image": image_path}
    if turn.after is not None:
        found["inspect"] = turn.after
    found["image_ok"] = bool(turn.image_ok)
    weights = {field: float(getattr(turn, field.name)) for field in turn_fields("weight")}
    return found | {field.name: value for field, value in weights.items() if value != field.default}


def _before_to_json(turn: Turn) -> dict[str, Any]:
    parsed = turn.instruction if turn.refines else turn.plan
    with contextlib.suppress(ValueError):  # what cannot be written so stands there as it is
        if isinstance(parsed, Plan) and markup.write_plan(parsed) == turn.before:
            return dataclasses.asdict(parsed)
        if isinstance(parsed, str) and markup.write_refine(parsed) == turn.before:
            return {"refine": parsed}
    raw = {} if turn.before is None else {"before": turn.before}
    return raw | {"refines": True} if turn.refines else raw


def to_json(value: Any) -> Any:
    """The same as plain JSON values: NumPy scalars and arrays, mappings, sets and enums.

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


def trajectory_from_json(value: Any) -> Record:
    """Returns the checked record of one object.

    Raises:
      RecordError: the message names the field, and the nearest name of an unknown one.
    """
    _check_keys(value, TRAJECTORY_KEYS, "line")
    _check_prompt(value)
    metadata = value.get("metadata", {})
    if not isinstance(metadata, dict):
        raise RecordError("metadata is not an object")
    _characters(json.dumps(metadata, ensure_ascii=False), "metadata")
    return Record(
        prompt=value.get("prompt", ""),
        turns=_read_turns(value),
        uid=_text(value, "uid", "uid") if "uid" in value else "",
        metadata=metadata,
        prompt_image=value.get("image"),
        instruction=value.get("instruction", ""),
        sampled=_read_sampled(value),
    )


def _check_prompt(value: dict[str, Any]) -> None:
    """A prompt is a text, or an input image with a text before or after it."""
    if "image" in value:
        _path(value, "image", "image")
    elif "instruction" in value:
        raise RecordError("instruction stands after an image, and there is no image")
    texts = [key for key in ("prompt", "instruction") if key in value]
    for key in texts if "image" in value and texts else ("prompt",):
        if not _plain_text(value, key, key).strip():
            raise RecordError(f"{key} is empty")


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
            _characters(json.dumps(one, ensure_ascii=False), key)
        elif key == "doubts":
            if not isinstance(one, list) or not all(is_number(p) and 0 <= p <= 1 for p in one):
                raise RecordError("doubts is not a list of probabilities")
            found[key] = tuple(map(float, one))
        elif isinstance(one, bool) or not isinstance(one, (int, float) if key == "seconds" else int):
            raise RecordError(f"{key} is not a {'number' if key == 'seconds' else 'whole number'}")
    return found


def _read_turns(value: dict[str, Any]) -> tuple[TurnRecord, ...]:
    if "turns" in value and "steps" in value:
        raise RecordError("line has both turns and steps")
    key = "steps" if "steps" in value else "turns"
    given = value.get(key)
    if not isinstance(given, list) or not given:
        raise RecordError(f"{key} must be a list of at least one {key.removesuffix('s')}")
    if key == "steps":
        named = [turn for place, step in enumerate(given) for turn in _turns_of_step(step, f"steps[{place}]")]
    else:
        named = []
        for place, turn in enumerate(given):
            _check_keys(turn, TURN_KEYS, f"turns[{place}]")
            named.append((turn, {name: f"turns[{place}].{name}" for name in TURN_KEYS}))
    read = [_read_turn(turn, names) for turn, names in named]
    if read[0].fields.get("refines"):
        raise RecordError("turns[0] corrects an image, and there is none before it")
    for turn, (given, _), following in zip(read, named, read[1:], strict=False):
        if following.fields.get("refines") and "image_ok" not in given:
            turn.fields["image_ok"] = False
    return tuple(read)


def _turns_of_step(step: Any, field: str) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """The turns of a step as objects of their own; each with the names that its keys had in the step."""
    _check_keys(step, STEP_KEYS, field)
    names = {key: f"{field}.{key}" for key in STEP_KEYS}
    for one, other in (("refine", "refined"), ("refined", "refine")):
        if one in step and other not in step:
            raise RecordError(f"{names[other]} is missing beside {one}")
    draft = {key: step[key] for key in (*PLAN_KEYS, "inspect") if key in step}
    draft |= {new: step[old] for new, old in (("image", "sketch"), ("image_ok", "sketch_ok")) if old in step}
    if not _flag(step, "plan_ok", names["plan_ok"], True):
        draft["before_weight"] = 0.0
    turns = [(draft, names | {"image": names["sketch"], "image_ok": names["sketch_ok"]})]
    if "refine" in step:
        refine = {"refine": step["refine"], "image": step["refined"]}
        turns.append((refine, names | {"image": names["refined"]}))
    return turns


def _read_turn(turn: dict[str, Any], names: Mapping[str, str]) -> TurnRecord:
    """Checks a turn; `names` are those of its keys in messages."""
    image = _path(turn, "image", names["image"])
    fields: dict[str, Any] = {}
    if "inspect" in turn:
        fields["after"] = _text(turn, "inspect", names["inspect"])
    before, refines = _read_before(turn, names)
    if before is not None:
        fields["before"] = before
    if refines:
        fields["refines"] = True
    if not _flag(turn, "image_ok", names.get("image_ok", ""), True):
        fields["image_ok"] = False
    for field in turn_fields("weight"):
        weight = turn.get(field.name, field.default)
        if not is_number(weight) or not 0 <= weight <= _LARGEST_WEIGHT:
            raise RecordError(f"{names[field.name]} is not a number of at least 0")
        if weight != field.default:
            fields[field.name] = float(weight)
    return TurnRecord(image, names["image"], fields)


def _read_before(turn: dict[str, Any], names: Mapping[str, str]) -> tuple[str | None, bool]:
    """The text before the image with its markup, and whether the turn is a refine turn."""
    for one, other in (PLAN_KEYS, PLAN_KEYS[::-1]):
        if one in turn and other not in turn:
            raise RecordError(f"{names[other]} is missing beside {one}")
    kinds = [key for key in ("before", "instruction", "refine") if key in turn]
    if len(kinds) > 1:
        raise RecordError(f"{names[kinds[1]]} and {kinds[0]} exclude each other")
    refines = _flag(turn, "refines", names.get("refines", ""), "refine" in turn)
    if refines and "instruction" in turn or not refines and "refine" in turn:
        raise RecordError(f"{names['refines']} does not go with {kinds[0]}")
    if "refine" in turn:
        return markup.write_refine(_plain_text(turn, "refine", names["refine"])), True
    if "instruction" in turn:
        return markup.write_plan(Plan(*(_plain_text(turn, key, names[key]) for key in PLAN_KEYS))), False
    return (_text(turn, "before", names["before"]) if "before" in turn else None), refines


def _check_keys(value: Any, keys: Sequence[str], field: str) -> None:
    if not isinstance(value, dict):
        raise RecordError(f"{field} is not a JSON object")
    for key in value:
        if key not in keys:
            raise RecordError(f"{field} has an unknown key {key!r}; {hint(key, keys)}")


def _flag(holder: dict[str, Any], key: str, field: str, default: bool) -> bool:
    value = holder.get(key, default)
    if not isinstance(value, bool):
        raise RecordError(f"{field} is neither true nor false")
    return value


def _text(holder: dict[str, Any], key: str, field: str) -> str:
    if key not in holder:
        raise RecordError(f"{field} is missing")
    if not isinstance(holder[key], str):
        raise RecordError(f"{field} is not text")
    return _characters(holder[key], field)


def _plain_text(holder: dict[str, Any], key: str, field: str) -> str:
    """A text without special tokens."""
    try:
        return markup.check_plain(_text(holder, key, field), field)
    except ValueError as error:
        raise RecordError(str(error)) from None


def _path(holder: dict[str, Any], key: str, field: str) -> str:
    name = _text(holder, key, field)
    if not name or "\0" in name:
        raise RecordError(f"{field} is no file name: {name!r}")
    return name


def _characters(text: str, field: str) -> str:
    try:
        return markup.check_characters(text, field)
    except ValueError as error:
        raise RecordError(str(error)) from None

"""Reads and writes verl-omni's visual-reflection trajectories.

    {"trajectory_id", "manifest_id", "source_dataset", "source_record_id", "pipeline_variant", "prompt",
     "images": [{"uri", "sha256"}], "steps": [{"reflection", "action": "continue" or "stop", "edit"}]}

N images have N steps, of which the last stops. `verl_omni` reads one sequence: image 0 is the draft,
each reflection the inspection of its image, each edit the correction that makes the next one.
`verl_omni_atoms` reads what that project trains on, each as a trajectory of its own: the last image
for the prompt, N reflections (the image has weight 0) and N - 1 edits (the image before is the prompt's).
A record with other fields than these is refused, as in verl-omni.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from process_gen.data.errors import BadTrajectory
from process_gen.data.formats import writers
from process_gen.data.formats.jsonl import JsonRows
from process_gen.data.formats.places import escapes
from process_gen.data.formats.rows import Form, Row, Rows, Unit, units_of
from process_gen.data.importers import fields
from process_gen.trajectory.record import RecordError

ORIGIN = ("manifest_id", "source_dataset", "source_record_id", "pipeline_variant")
KEYS = frozenset(("trajectory_id", *ORIGIN, "prompt", "images", "steps"))
VARIANTS = ("direct_parse", "pair_0_1_turn", "prompt_k_turn")
NAMESPACES = ("visual_reflection_v1", "bagel_visual_reflection_v1")
"""Namespaces that trajectory ids are hashed with, the newest first."""
MANIFEST = "process_gen"


def _check(row: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the images and steps of a record; raises RecordError where it breaks a rule of the format."""
    _exact(row, KEYS, "line")
    for name in ("trajectory_id", *ORIGIN, "prompt"):
        fields.text(row, name)
    if row["pipeline_variant"] not in VARIANTS:
        raise RecordError(f"pipeline_variant is none of {', '.join(VARIANTS)}")
    images = fields.items(row, "images")
    steps = fields.items(row, "steps", len(images))
    if not images:
        raise RecordError("images is empty")
    for place, (image, step) in enumerate(zip(images, steps, strict=True)):
        _exact(image, {"uri", "sha256"}, f"images[{place}]")
        fields.text(image, "uri"), fields.text(image, "sha256")
        _exact(step, {"reflection", "action", "edit"}, f"steps[{place}]")
        fields.check_text(step["reflection"], f"steps[{place}].reflection")
        action = "stop" if place + 1 == len(steps) else "continue"
        if step["action"] != action:
            raise RecordError(f"steps[{place}].action must be {action!r}, got {step['action']!r}")
        if not isinstance(step["edit"], str) or (action == "stop") == bool(step["edit"].strip()):
            raise RecordError(f"steps[{place}].edit must be {'empty' if action == 'stop' else 'a text'}")
    return images, steps


def _exact(value: Any, keys: Iterable[str], field: str) -> None:
    if not isinstance(value, Mapping):
        raise RecordError(f"{field} is not a JSON object")
    if set(value) != set(keys):
        wrong = sorted(set(value) ^ set(keys))
        raise RecordError(
            f"{field} must have {', '.join(sorted(keys))} and no more: look at {', '.join(wrong)}"
        )


def _shown(image: Mapping[str, Any]) -> dict[str, Any]:
    return {"image": image["uri"], "sha256": image["sha256"]}


def _found(row: Row, name: str, turns: list[dict[str, Any]], **prompt: Any) -> dict[str, Any]:
    origin = {key: row[key] for key in ORIGIN}
    return {"uid": name, **(prompt or {"prompt": row["prompt"]}), "turns": turns} | {
        "metadata": {"verl_omni": origin},
        "source": row["source_dataset"],
        "author": "model",
    }


def _sequence(row: Mapping[str, Any]) -> dict[str, Any]:
    images, steps = _check(row)
    turns = [
        {**_shown(image), "inspect": step["reflection"]} for image, step in zip(images, steps, strict=True)
    ]
    for turn, step in zip(turns[1:], steps, strict=False):
        turn["refine"] = step["edit"]
    return _found(row, row["trajectory_id"], turns)


def _atoms_of(row: Row) -> list[dict[str, Any]]:
    """The trajectories of a row of N images: one from the prompt, N reflections, N - 1 edits."""
    images, steps = _check(row)
    name = row["trajectory_id"]
    atoms = [_found(row, f"{name}/t2i", [_shown(images[-1])])]
    for place, (image, step) in enumerate(zip(images, steps, strict=True)):
        turns = [{**_shown(image), "inspect": step["reflection"], "image_weight": 0.0}]
        if step["action"] == "continue":
            turns.append({"refine": step["edit"]})
        atoms.append(_found(row, f"{name}/reflect{place}", turns))
    for place, step in enumerate(steps[:-1]):
        edit = {"image": images[place]["uri"], "instruction": step["edit"]}
        atoms.append(_found(row, f"{name}/edit{place}", [_shown(images[place + 1])], **edit))
    return atoms


def _atom(rows: Sequence[Row], part: int) -> dict[str, Any]:
    return _atoms_of(rows[0])[part]


def _atoms(rows: Rows) -> list[Unit]:
    return units_of(range(len(rows)), lambda index: len(_atoms_of(rows[index])))


SEQUENCES = JsonRows, Form("verl-omni sequences 1", _sequence, cheap=True)
ATOMS = JsonRows, Form("verl-omni atoms 1", _atom, _atoms, cheap=True)


# ----------------------------------------------------------------------- write


def write_verl_omni(path: str | os.PathLike[str], found: Iterable[writers.Object]) -> int:
    """Writes `trajectories.jsonl` in verl-omni's format, and the images; returns how many trajectories.

    Trajectories that were read from that format keep their origin fields, and their ids where these match the
    content. Others get the `manifest_id` `process_gen`, and lose provenance that the format has no field for.
    Raises as `write_folder`, and BadTrajectory for one that the format cannot hold.
    """
    return writers.write_folder(path, found, to_record)


def to_record(value: writers.Object, number: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Returns a trajectory object as a record of verl-omni, and `uri` -> image; raises BadTrajectory."""
    turns = value["turns"]
    if problem := _no_place(value):
        raise BadTrajectory(f"trajectory {value.get('uid')!r} has no place in verl-omni's form: {problem}")
    images, contents = [], {}
    for place, turn in enumerate(turns):
        content = turn["image"]["bytes"]
        digest = hashlib.sha256(content).hexdigest()
        uri = turn["image"].get("path")
        if not uri or escapes(uri) or contents.get(uri, content) != content:
            uri = f"images/{number:06d}_{place}_{digest[:12]}{writers.ending(turn['image'])}"
        contents[uri] = content
        images.append({"uri": uri, "sha256": digest})
    edits = [*(turn["refine"] for turn in turns[1:]), ""]
    steps = [
        {"reflection": turn["inspect"], "action": "continue" if edit else "stop", "edit": edit}
        for turn, edit in zip(turns, edits, strict=True)
    ]
    origin = (value.get("metadata") or {}).get("verl_omni") or {
        "manifest_id": MANIFEST,
        "source_dataset": value.get("source") or MANIFEST,
        "source_record_id": value.get("uid") or str(number),
        "pipeline_variant": "direct_parse",
    }
    record = {key: origin[key] for key in ORIGIN}
    record |= {"prompt": value["prompt"], "images": images, "steps": steps}
    ids = [identify(record, namespace) for namespace in NAMESPACES]
    return {"trajectory_id": value["uid"] if value.get("uid") in ids else ids[0], **record}, contents


def _no_place(value: writers.Object) -> str | None:
    """Returns why verl-omni's format cannot hold a trajectory; None where it can."""
    turns = value["turns"]
    if "image" in value or "instruction" in value:
        return "its prompt holds an image"
    for place, turn in enumerate(turns):
        name = f"turns[{place}]"
        if "image" not in turn:
            return f"{name} has no image"
        if not turn.get("inspect", "").strip():
            return f"{name} has no inspection"
        if place and not turn.get("refine", "").strip():
            return f"{name} is no correction in words"
        if not place and any(key in turn for key in ("instruction", "before")):
            return f"{name} has a plan"
        if bool(turn.get("image_ok", place + 1 == len(turns))) != (place + 1 == len(turns)):
            return f"{name}.image_ok: the last image is right, and no other"
        if any(turn.get(f"{kind}_weight", 1.0) != 1.0 for kind in ("before", "image", "after")):
            return f"{name} has weights"
    return None


def identify(record: Mapping[str, Any], namespace: str) -> str:
    """Returns the id of a record without one, as verl-omni computes it (`derive_trajectory_id`)."""
    content = json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"traj_{hashlib.sha256(f'{namespace}{chr(0)}{content}'.encode()).hexdigest()}"

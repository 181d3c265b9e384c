"""Sampled trajectories on disk: one JSON object per line, images beside it.

Text is kept exactly as the model wrote it, with what it parses to beside it.
Image paths are relative to the folder of the JSONL and use `/`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from process_gen.reports import files, images
from process_gen.trajectory.markup import Malformed
from process_gen.trajectory.sampled import SampledStep, SampledTrajectory
from process_gen.trajectory.stages import Mode

DECISIONS = ("continue", "stop", "cap")


class RecordError(ValueError):
    """A JSONL of trajectories is not what it should be; the message names file and line."""


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """One step on disk.

    Attributes:
      plan_text, inspect_text, refine_text: raw text; None where the stage did not happen.
      plan: `{"instruction", "description"}`, None where absent or malformed.
      plan_malformed: what is wrong with the plan, None where nothing is.
      refine: the refine instruction, None where absent or malformed.
      refine_malformed: what is wrong with the refine text.
      sketch, refined: paths of the images.
      decision: what came after the step: `continue`, `stop` (the model ended
        the trajectory) or `cap` (the limit on steps did).
    """

    plan_text: str | None = None
    plan: dict[str, str] | None = None
    plan_malformed: str | None = None
    sketch: str | None = None
    inspect_text: str | None = None
    refine_text: str | None = None
    refine: str | None = None
    refine_malformed: str | None = None
    refined: str | None = None
    decision: str = "continue"


@dataclasses.dataclass(frozen=True)
class Record:
    """One sampled trajectory on disk; the attributes are those of `SampledTrajectory`, images are paths."""

    uid: str
    prompt: str
    mode: str
    seed: int
    steps: tuple[StepRecord, ...]
    stopped: str
    sampling_steps: int = 0
    seconds: float = 0.0
    verdict: dict[str, Any] | None = None
    prompt_image: str | None = None

    @property
    def images(self) -> list[str]:
        """The paths of all images, that of the prompt first."""
        steps = [path for step in self.steps for path in (step.sketch, step.refined)]
        return [path for path in (self.prompt_image, *steps) if path]

    @property
    def image(self) -> str | None:
        """The path of the final image."""
        paths = (step.refined or step.sketch for step in reversed(self.steps))
        return next((path for path in paths if path), None)


@dataclasses.dataclass(frozen=True)
class StepImages:
    """Where the images of a step lie, relative to the report's folder."""

    sketch: str | None
    refined: str | None


def save_images(folder: str | os.PathLike[str], uid: str, steps: Sequence[SampledStep]) -> list[StepImages]:
    """Writes `images/<uid>_<step>_<sketch|refined>.png` into `folder`; steps count from 1."""

    def save(index: int, stage: str, image: np.ndarray | None) -> str | None:
        return save_image(folder, uid, f"{index}_{stage}", image)

    return [
        StepImages(save(i, "sketch", step.sketch), save(i, "refined", step.refined))
        for i, step in enumerate(steps, 1)
    ]


def save_image(folder: str | os.PathLike[str], uid: str, what: str, image: np.ndarray | None) -> str | None:
    """Writes `images/<uid>_<what>.png` into `folder` and returns that path; None where there is no image."""
    if image is None:
        return None
    relative = f"images/{files.safe_name(uid)}_{what}.png"
    files.write_bytes(files.inside(folder, relative), images.png(image))
    return relative


def record_of(
    trajectory: SampledTrajectory, uid: str, saved: Sequence[StepImages], prompt_image: str | None = None
) -> Record:
    """The record of a trajectory whose images have been saved, and that of its prompt too."""
    ends = "stop" if trajectory.stopped == "model" else "cap"
    last = len(trajectory.steps) - 1
    steps = tuple(
        _step_record(step, paths, ends if i == last else "continue")
        for i, (step, paths) in enumerate(zip(trajectory.steps, saved, strict=True))
    )
    return Record(
        uid=uid,
        prompt=trajectory.prompt,
        mode=trajectory.mode.value,
        seed=int(trajectory.seed),
        steps=steps,
        stopped=trajectory.stopped,
        sampling_steps=int(trajectory.sampling_steps),
        seconds=float(trajectory.seconds),
        verdict=json.loads(json.dumps(trajectory.verdict, default=_plain)),
        prompt_image=prompt_image,
    )


def _step_record(step: SampledStep, paths: StepImages, decision: str) -> StepRecord:
    plan, refine = step.plan, step.refine
    wrong_plan, wrong_refine = isinstance(plan, Malformed), isinstance(refine, Malformed)
    return StepRecord(
        plan_text=step.plan_text,
        plan=None if plan is None or wrong_plan else dataclasses.asdict(plan),
        plan_malformed=plan.reason if wrong_plan else None,
        sketch=paths.sketch,
        inspect_text=step.inspect_text,
        refine_text=step.refine_text,
        refine=None if wrong_refine else refine,
        refine_malformed=refine.reason if wrong_refine else None,
        refined=paths.refined,
        decision=decision,
    )


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Record]) -> pathlib.Path:
    """Writes the records, all or none of them."""
    lines = [json.dumps(dataclasses.asdict(r), default=_plain, allow_nan=False) + "\n" for r in records]
    return files.write_bytes(path, "".join(lines).encode("ascii"))


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays, mappings and sets as JSON."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"a {type(value).__name__} has no place in a record: {value!r}")


def read_jsonl(path: str | os.PathLike[str]) -> list[Record]:
    """Reads what `write_jsonl` wrote.

    Raises ReportError where the file cannot be read and RecordError, naming
    file and line, where a line is not a record.
    """
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise files.ReportError(f"cannot read {str(path)!r}: {error.strerror}") from error
    records = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            records.append(_record(json.loads(line.decode("utf-8"))))
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{path}:{number}: {error}") from error
    return records


def _record(value: Any) -> Record:
    fields = _checked(value, Record, "a trajectory")
    if not isinstance(fields["steps"], list):
        raise ValueError("'steps' must be a list")
    for name, allowed in (("mode", [mode.value for mode in Mode]), ("stopped", ["model", "cap"])):
        if fields[name] not in allowed:
            raise ValueError(f"{name!r} must be one of {', '.join(allowed)}, got {fields[name]!r}")
    steps = []
    for i, step in enumerate(fields["steps"], 1):
        known = _checked(step, StepRecord, f"step {i}")
        if known.get("decision", "continue") not in DECISIONS:
            raise ValueError(f"step {i}: 'decision' must be one of {', '.join(DECISIONS)}")
        steps.append(StepRecord(**known))
    return Record(**{**fields, "steps": tuple(steps)})


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "str | None": (str, type(None)),
    "dict[str, str] | None": (dict, type(None)),
    "dict[str, Any] | None": (dict, type(None)),
    "tuple[StepRecord, ...]": (list,),
}
"""What JSON may hold for the annotations of `Record` and `StepRecord`."""


def _checked(value: Any, kind: type, what: str) -> dict[str, Any]:
    """The fields of a JSON object, all known, none missing, each of its type."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object, got {type(value).__name__}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise ValueError(f"{what} has an unknown field {unknown[0]!r}")
    for name, field in fields.items():
        if name not in value:
            if field.default is dataclasses.MISSING:
                raise ValueError(f"{what} has no field {name!r}")
            continue
        if not isinstance(value[name], _KINDS[field.type]) or isinstance(value[name], bool):
            raise ValueError(f"{what}: {name!r} must be {field.type}, got {type(value[name]).__name__}")
    return value

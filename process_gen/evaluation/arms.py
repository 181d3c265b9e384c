"""Arms: ways to draw with one checkpoint, compared on the same prompts and seeds.

    process              as the model was trained: plan, sketch, inspect, refine
    plan_only            one text plan, then one image
    single_pass          one image straight from the prompt
    no_inspection        steps without texts after their images, and without corrections; for models that were
                         trained without them
    steps=2              a budget of steps; the model may still end before
    best_of=4            of four trajectories, the one that its own inspections would least have corrected
    best_of_judge=4      of four trajectories, the one that the judge likes best: an upper bound, no method
    planner=scenes       somebody else plans: the oracle of the scenes world, or a chat model (`planner=chat`)
    inspector=scenes     somebody else inspects and says what to correct; or `inspector=chat`
    rewritten=FILE       other words for the prompts: JSONL of `doc_id` and `prompt`; judged by the original

`+` joins arms: `no_inspection+steps=2`. Arms with the same settings share trajectories: where a prompt has
one image, the first candidate of `best_of=4` is the trajectory of `process`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from process_gen.common.names import check_name
from process_gen.evaluation.options import json_lines
from process_gen.evaluation.outsiders import ROLES, WHO
from process_gen.evaluation.tasks.base import Doc, TaskError
from process_gen.trajectory.stages import Mode


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to draw.

    Attributes:
      name: as it was asked for.
      settings: of `SamplerConfig` that it changes.
      candidates: trajectories for every image; one is chosen.
      choose: by whom, `inspection` or `judge`.
      outside: role -> who takes it in the model's place (`outsiders`).
      rewritten: `doc_id` -> the text that the model gets in place of the prompt; empty for the prompts.
    """

    name: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    candidates: int = 1
    choose: str = "inspection"
    outside: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rewritten: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def needs_judge(self) -> bool:
        """Whether the judge chooses among candidates."""
        return self.choose == "judge" and self.candidates > 1

    def prompt(self, doc: Doc) -> str:
        """The text that the model gets for a prompt.

        Raises:
          TaskError: the file of rewritten prompts lacks this one.
        """
        if not self.rewritten:
            return doc.input
        if doc.doc_id not in self.rewritten:
            raise TaskError(f"arm {self.name}: no rewritten prompt for doc_id {doc.doc_id!r}")
        return self.rewritten[doc.doc_id]


def make_arm(text: str) -> Arm:
    """Reads the name of an arm.

    Raises:
      TaskError: there is no such arm (names the nearest), or its number or file cannot be read.
    """
    arm, given = Arm(text), set()
    for part in text.split("+"):
        name, equals, value = part.partition("=")
        check_name(name, ARMS, "arm", TaskError)
        changed = ARMS[name](value if equals else None, part)
        merged = {key: {**getattr(arm, key), **changed.get(key, {})} for key in ("settings", "outside")}
        now = {name for key, value in changed.items() for name in (value if key in merged else [key])}
        if twice := now & given:
            raise TaskError(f"arm {text!r} sets {', '.join(sorted(twice))} twice")
        given |= now
        arm = dataclasses.replace(arm, **(changed | merged))
    return arm


def _fixed(**settings: Any) -> Callable[[str | None, str], dict[str, Any]]:
    def change(value: str | None, part: str) -> dict[str, Any]:
        if value is not None:
            raise TaskError(f"arm {part!r} takes no value")
        return {"settings": settings}

    return change


def _number(value: str | None, part: str) -> int:
    if value is None or not value.isdecimal() or int(value) < 1:
        name = part.partition("=")[0]
        raise TaskError(f"arm {part!r} needs a number, as {name}=4")
    return int(value)


def _outside(value: str | None, part: str) -> dict[str, Any]:
    role = part.partition("=")[0]
    if value is None:
        raise TaskError(f"arm {part!r} needs a name, of {', '.join(f'{role}={who}' for who in WHO)}")
    return {"outside": {role: check_name(value, WHO, role, TaskError)}}


def _rewritten(value: str | None, part: str) -> dict[str, Any]:
    if not value:
        raise TaskError(f"arm {part!r} needs a file, as rewritten=prompts.jsonl")
    if not pathlib.Path(value).is_file():
        raise TaskError(f"arm {part!r}: there is no file {value}")
    found: dict[str, str] = {}
    for where, one in json_lines(value):
        try:
            found[str(one["doc_id"])] = str(one["prompt"])
        except (KeyError, TypeError) as error:
            raise TaskError(f'{where}: an object with "doc_id" and "prompt" is wanted ({error})') from None
    if not found:
        raise TaskError(f"{value} holds no prompt")
    return {"rewritten": found}


ARMS: Mapping[str, Callable[[str | None, str], dict[str, Any]]] = {
    **{mode.value: _fixed(mode=mode.value) for mode in Mode},
    "no_inspection": _fixed(inspections=False),
    "steps": lambda value, part: {"settings": {"max_steps": _number(value, part)}},
    "best_of": lambda value, part: {"candidates": _number(value, part), "choose": "inspection"},
    "best_of_judge": lambda value, part: {"candidates": _number(value, part), "choose": "judge"},
    **dict.fromkeys(ROLES, _outside),
    "rewritten": _rewritten,
}
"""Name -> function of the value (None without one) and the whole text, which returns fields of `Arm`."""


def objections(facts: Mapping[str, Any]) -> tuple[int, float, int]:
    """Sort key of a trajectory by its own inspections; less is better.

    Its parts: 1 unless the model ended it; the sum of the probabilities of a correction in its decisions,
    or the number of corrections where these are unknown; the number of corrections.

    Args:
      facts: of a trajectory, as judged rows carry them: `stopped`, `doubt` and `corrections`.
    """
    corrections = int(facts.get("corrections", 0))
    return int(facts.get("stopped") != "model"), facts.get("doubt", corrections), corrections


def chosen(arm: Arm, candidates: Sequence[tuple[float, Mapping[str, Any]]]) -> int:
    """Index of the candidate, each given as score and facts, that an arm takes; the first of equals."""
    if arm.choose == "judge":
        return max(range(len(candidates)), key=lambda i: candidates[i][0])
    return min(range(len(candidates)), key=lambda i: objections(candidates[i][1]))

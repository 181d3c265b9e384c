"""What happened on the way: is the inspection right, do corrections correct, does the canvas keep?

Everything here is counted, not estimated, from three facts about a step, each
a multiset of (shape, colour, cell): what the plan's description says should
stand, what the draft shows, what the corrected image shows. The exact parser
reads the images and the reader of `scenes` the descriptions; a step whose
description cannot be read takes no part in what needs one.

    a state is right            it shows exactly what its description says
    the inspection flags        the step opened a `<refine>`
    precision, recall           of flagging, for wrong drafts
    fixed, still wrong          wrong drafts before a correction: right after it, or not
    kept right, spoiled         right drafts before a correction: still right after it, or not
    kept                        of the objects that one step shows and the next step's description
                                still has, the share that the next step's image shows
    repaired                    of the steps that follow a wrong state, the share that end right

The judge sees more than the inspection may: whether the final image satisfies
the prompt. `final_*` counts corrections by that verdict, at last steps only,
where the final image is meant.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from process_gen.evaluation.intervals import Interval, wilson
from process_gen.evaluation.reading import (
    Objects,
    draw_description,
    objects_of_description,
    objects_of_image,
)
from process_gen.trajectory.markup import Malformed
from process_gen.trajectory.sampled import SampledStep, SampledTrajectory
from process_gen.trajectory.stages import Plan

Right = Callable[[np.ndarray], bool]
"""Whether an image satisfies the prompt."""


@dataclasses.dataclass
class Counts:
    """Sums over trajectories; add two with `+`.

    Attributes:
      steps: steps taken.
      plans, malformed_plans: plan texts, and those of them that are not a plan.
      unread: plans whose description is outside the grammar.
      drafts, wrong_drafts: drafts with a readable description, and the wrong ones.
      caught, missed, false_alarms, passed: wrong drafts flagged or not, right drafts flagged or not.
      fixed, still_wrong, kept_right, spoiled: corrections by what they did to the draft.
      final_fixed, final_still_wrong, final_kept_right, final_spoiled: the same
        by the judge's verdict, at last steps.
      to_keep, kept: objects that a step had to keep, and those that it kept.
      to_repair, repaired: steps after a wrong state, and those that end right.
      final_plans, final_plans_right: last descriptions that can be read, and
        those that satisfy the prompt.
      states_at, right_at: by step index, states with a readable description, and the right ones.
    """

    steps: int = 0
    plans: int = 0
    malformed_plans: int = 0
    unread: int = 0
    drafts: int = 0
    wrong_drafts: int = 0
    caught: int = 0
    missed: int = 0
    false_alarms: int = 0
    passed: int = 0
    fixed: int = 0
    still_wrong: int = 0
    kept_right: int = 0
    spoiled: int = 0
    final_fixed: int = 0
    final_still_wrong: int = 0
    final_kept_right: int = 0
    final_spoiled: int = 0
    to_keep: int = 0
    kept: int = 0
    to_repair: int = 0
    repaired: int = 0
    final_plans: int = 0
    final_plans_right: int = 0
    states_at: dict[int, int] = dataclasses.field(default_factory=dict)
    right_at: dict[int, int] = dataclasses.field(default_factory=dict)

    def __add__(self, other: Counts) -> Counts:
        merged = {}
        for field in dataclasses.fields(self):
            a, b = getattr(self, field.name), getattr(other, field.name)
            if isinstance(a, dict):
                merged[field.name] = {k: a.get(k, 0) + b.get(k, 0) for k in sorted({*a, *b})}
            else:
                merged[field.name] = a + b
        return Counts(**merged)

    def shares(self) -> dict[str, Interval]:
        """Every share that these counts define, with its 95% interval; without those of nothing."""
        pairs = {
            "malformed_plans": (self.malformed_plans, self.plans),
            "unread_descriptions": (self.unread, self.plans - self.malformed_plans),
            "final_plan_right": (self.final_plans_right, self.final_plans),
            "wrong_drafts": (self.wrong_drafts, self.drafts),
            "inspect_precision": (self.caught, self.caught + self.false_alarms),
            "inspect_recall": (self.caught, self.caught + self.missed),
            "refine_fixes": (self.fixed, self.fixed + self.still_wrong),
            "refine_spoils": (self.spoiled, self.spoiled + self.kept_right),
            "final_refine_fixes": (self.final_fixed, self.final_fixed + self.final_still_wrong),
            "final_refine_spoils": (self.final_spoiled, self.final_spoiled + self.final_kept_right),
            "objects_kept": (self.kept, self.to_keep),
            "repaired_next": (self.repaired, self.to_repair),
        }
        pairs |= {f"right_at_step_{i + 1}": (self.right_at.get(i, 0), n) for i, n in self.states_at.items()}
        return {name: wilson(k, n) for name, (k, n) in pairs.items() if n}

    def to_json(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        for name in ("states_at", "right_at"):
            data[name] = {str(k): v for k, v in data[name].items()}
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Counts:
        data = dict(data)
        for name in ("states_at", "right_at"):
            data[name] = {int(k): v for k, v in data[name].items()}
        return cls(**data)


@dataclasses.dataclass(frozen=True)
class _Facts:
    """A step as the counts see it; None where there is nothing or nothing readable."""

    planned: Objects | None
    draft: Objects | None
    refined: Objects | None
    flagged: bool

    @property
    def state(self) -> Objects | None:
        return self.draft if self.refined is None else self.refined


def count(trajectory: SampledTrajectory, right: Right, level: str) -> Counts:
    """The counts of one trajectory.

    Args:
      trajectory: as sampled.
      right: whether an image satisfies the prompt.
      level: of the scenes world that the images are read in.
    """
    counts = Counts(steps=len(trajectory.steps))
    plans = [step.plan for step in trajectory.steps]
    counts.plans = sum(plan is not None for plan in plans)
    counts.malformed_plans = sum(isinstance(plan, Malformed) for plan in plans)
    facts = [_facts(step, level) for step in trajectory.steps]
    counts.unread = sum(isinstance(p, Plan) and f.planned is None for p, f in zip(plans, facts, strict=True))
    for index, fact in enumerate(facts):
        _count_step(counts, index, fact)
    for before, after in itertools.pairwise(facts):
        _count_pair(counts, before, after)
    if trajectory.steps:
        _count_final(counts, trajectory.steps[-1], right, level)
    return counts


def _facts(step: SampledStep, level: str) -> _Facts:
    plan = step.plan
    return _Facts(
        planned=objects_of_description(plan.description, level) if isinstance(plan, Plan) else None,
        draft=objects_of_image(step.sketch, level),
        refined=objects_of_image(step.refined, level),
        flagged=step.refine_text is not None,
    )


def _count_step(counts: Counts, index: int, fact: _Facts) -> None:
    """Detection, correction and the state that the step leaves."""
    if fact.planned is None or fact.draft is None:
        return
    wrong = fact.draft != fact.planned
    counts.drafts += 1
    counts.wrong_drafts += wrong
    detected = {(True, True): "caught", (True, False): "missed", (False, True): "false_alarms"}
    _increment(counts, detected.get((wrong, fact.flagged), "passed"))
    if fact.flagged and fact.refined is not None:
        _increment(counts, _correction(not wrong, fact.refined == fact.planned))
    counts.states_at[index] = counts.states_at.get(index, 0) + 1
    counts.right_at[index] = counts.right_at.get(index, 0) + (fact.state == fact.planned)


def _count_pair(counts: Counts, before: _Facts, after: _Facts) -> None:
    """What one step keeps and repairs of the one before."""
    if before.state is None or after.state is None or after.planned is None:
        return
    expected = before.state & after.planned
    counts.to_keep += expected.total()
    counts.kept += (expected & after.state).total()
    if before.planned is not None and before.state != before.planned:
        counts.to_repair += 1
        counts.repaired += after.state == after.planned


def _count_final(counts: Counts, step: SampledStep, right: Right, level: str) -> None:
    """The last plan and the last correction, by the judge's verdict on the prompt."""
    plan = step.plan
    meant = draw_description(plan.description, level) if isinstance(plan, Plan) else None
    if meant is not None:
        counts.final_plans += 1
        counts.final_plans_right += right(meant)
    if step.sketch is not None and step.refined is not None:
        _increment(counts, "final_" + _correction(right(step.sketch), right(step.refined)))


def _correction(right_before: bool, right_after: bool) -> str:
    if right_before:
        return "kept_right" if right_after else "spoiled"
    return "fixed" if right_after else "still_wrong"


def _increment(counts: Counts, name: str) -> None:
    setattr(counts, name, getattr(counts, name) + 1)

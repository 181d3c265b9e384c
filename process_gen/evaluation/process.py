"""What happened on the way: is the inspection right, do corrections correct, does the canvas keep?

Everything here is counted, not estimated, from three facts about a step, each
a multiset of (shape, colour, cell): what the plan's description says should
stand, what the draft shows, what the last correction shows. The exact parser
reads the images and the reader of `scenes` the descriptions; a step whose
description cannot be read takes no part in what needs one.

    a draft is wrong            it does not show exactly what its description says, or it contradicts
                                the prompt, and the step was flagged or is the last: what
                                contradicts the prompt earlier may be meant to change
    a correction is right       it shows what the description says and the draft did not; where the
                                description contradicts the prompt or itself, also one that shows
                                nothing that contradicts the prompt
    the inspection flags        the step has a refine turn; several of them count as one correction,
                                which leaves what the last one draws
    precision, recall           of flagging, for wrong drafts
    fixed, still wrong          wrong drafts before a correction: right after it, or not
    kept right, spoiled         right drafts before a correction: still right after it, or not
    kept                        of the objects that one step shows and the next step's description
                                still has, the share that the next step's image shows
    repaired                    of the steps that follow a wrong state, the share that end right
    the next plan is wrong      its description differs from the canvas before it in a cell that its
                                instruction does not change, so the two cannot both come true; where
                                that canvas is wrong, a plan may go by what should stand there just
                                as well. Told apart by whether the step before was corrected: does
                                the model plan by what a correction left, or by what it corrected?

An image contradicts its prompt where nothing that could still be added would make
it right (`scenes.judge.may_become`). `final_*` counts corrections by that verdict, at last steps only,
where the final image is meant.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from process_gen.evaluation.reading import Objects, changed_cells, objects_of, read_description
from process_gen.evaluation.statistics import Interval, wilson
from process_gen.scenes.graph import Scene
from process_gen.scenes.judge import judge, may_become
from process_gen.scenes.parse import parse
from process_gen.scenes.render import render
from process_gen.scenes.requests import Request
from process_gen.trajectory.markup import Malformed, Plan
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Step


@dataclasses.dataclass
class Counts:
    """Sums over trajectories; add two with `+`."""

    steps: int = 0
    plans: int = 0  # plan texts
    malformed_plans: int = 0  # those that are not a plan
    unread: int = 0  # plans whose description is outside the grammar
    drafts: int = 0  # of steps with a readable description
    wrong_drafts: int = 0
    # Drafts, by whether they are wrong and flagged.
    caught: int = 0
    missed: int = 0
    false_alarms: int = 0
    passed: int = 0
    # Corrections, by what they did to the draft.
    fixed: int = 0
    still_wrong: int = 0
    kept_right: int = 0
    spoiled: int = 0
    # The same by the judge's verdict, at last steps.
    final_fixed: int = 0
    final_still_wrong: int = 0
    final_kept_right: int = 0
    final_spoiled: int = 0
    to_keep: int = 0  # objects that a step had to keep
    kept: int = 0
    to_repair: int = 0  # steps after a wrong state
    repaired: int = 0
    # Readable plans after a corrected step or after another, and the wrong ones.
    plans_after_refine: int = 0
    wrong_after_refine: int = 0
    plans_otherwise: int = 0
    wrong_otherwise: int = 0
    final_plans: int = 0  # last descriptions that can be read
    final_plans_right: int = 0  # those that satisfy the prompt
    # By step index: states that steps with a readable description leave, and the right ones.
    states_at: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    right_at: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: value + getattr(other, name) for name, value in vars(self).items()})

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
            "next_plan_wrong_after_refine": (self.wrong_after_refine, self.plans_after_refine),
            "next_plan_wrong_otherwise": (self.wrong_otherwise, self.plans_otherwise),
        }
        pairs |= {f"right_at_step_{i + 1}": (self.right_at[i], n) for i, n in sorted(self.states_at.items())}
        return {name: wilson(k, n) for name, (k, n) in pairs.items() if n}

    def to_json(self) -> dict[str, Any]:
        """Its sums, without those that are 0."""
        return {name: value for name, value in vars(self).items() if value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Counts:
        """Reads what `to_json` wrote, whose step indices JSON made texts."""
        by_step = {
            name: collections.Counter({int(index): n for index, n in data.get(name, {}).items()})
            for name in ("states_at", "right_at")
        }
        return cls(**{**data, **by_step})


@dataclasses.dataclass(frozen=True)
class _Facts:
    """A step as the counts see it; None where there is nothing or nothing readable.

    Attributes:
      planned, draft, refined: what should stand, and what stands.
      changed: cells that the plan's instruction changes.
      draft_right, refined_right: as the module says.
    """

    planned: Objects | None
    draft: Objects
    refined: Objects | None
    changed: frozenset[str]
    draft_right: bool
    refined_right: bool

    @property
    def flagged(self) -> bool:
        return self.refined is not None

    @property
    def state(self) -> Objects:
        return self.draft if self.refined is None else self.refined

    @property
    def state_right(self) -> bool:
        return self.draft_right if self.refined is None else self.refined_right


def count(trajectory: SampledTrajectory, request: Request) -> Counts:
    """The counts of one trajectory.

    Args:
      trajectory: as sampled.
      request: what its prompt asks for, at the level whose images these are.
    """
    steps = trajectory.steps
    counts, plans = Counts(steps=len(steps)), [step.plan for step in steps]
    counts.plans = sum(plan is not None for plan in plans)
    counts.malformed_plans = sum(isinstance(plan, Malformed) for plan in plans)
    facts = [_facts(step, request, step is steps[-1]) for step in steps]
    counts.unread = sum(isinstance(p, Plan) and f.planned is None for p, f in zip(plans, facts, strict=True))
    for index, fact in enumerate(facts):
        _count_step(counts, index, fact)
    for before, after in itertools.pairwise(facts):
        _count_pair(counts, before, after)
    _count_final(counts, steps[-1], request)
    return counts


def _facts(step: Step, request: Request, last: bool) -> _Facts:
    level, plan = request.level, step.plan
    meant, changed = None, frozenset()
    if isinstance(plan, Plan):
        meant, changed = read_description(plan.description, level), changed_cells(plan.instruction, level)
    draft, refined = (None if x is None else parse(x, level) for x in (step.sketch, step.refined))
    planned, drawn, corrected = (None if x is None else objects_of(x) for x in (meant, draft, refined))

    def contradicts(scene: Scene | None) -> bool:
        return scene is not None and not may_become(request, scene)

    twice = meant is not None and len({thing.cell for thing in meant.objects}) < len(meant)
    sound = meant is not None and not twice and not contradicts(meant)
    mended = corrected == planned if sound else not contradicts(refined)
    carried_out = corrected == planned != drawn
    judged_by_prompt = last or refined is not None
    return _Facts(
        planned,
        drawn,
        corrected,
        changed,
        draft_right=drawn == planned and not (judged_by_prompt and contradicts(draft)),
        refined_right=mended or carried_out,
    )


def _count_step(counts: Counts, index: int, fact: _Facts) -> None:
    """Detection, correction and the state that the step leaves."""
    if fact.planned is None:
        return
    counts.drafts += 1
    counts.wrong_drafts += not fact.draft_right
    detected = {(False, True): "caught", (False, False): "missed", (True, True): "false_alarms"}
    _increment(counts, detected.get((fact.draft_right, fact.flagged), "passed"))
    if fact.flagged:
        _increment(counts, _correction(fact.draft_right, fact.refined_right))
    counts.states_at[index] += 1
    counts.right_at[index] += fact.state_right


def _count_pair(counts: Counts, before: _Facts, after: _Facts) -> None:
    """What one step keeps and repairs of the one before, and whether its plan goes by it."""
    if after.planned is None:
        return
    expected = before.state & after.planned
    counts.to_keep += expected.total()
    counts.kept += (expected & after.state).total()
    if before.planned is not None and not before.state_right:
        counts.to_repair += 1
        counts.repaired += after.state_right
    which = "after_refine" if before.flagged else "otherwise"
    _increment(counts, f"plans_{which}")
    if not _plan_follows(before, after):
        _increment(counts, f"wrong_{which}")


def _plan_follows(before: _Facts, after: _Facts) -> bool:
    """Whether a plan differs from what stands, or should, only where its instruction changes something."""
    bases = [before.state]
    if before.planned is not None and not before.state_right:
        bases.append(before.planned)
    differences = ((base - after.planned) + (after.planned - base) for base in bases)
    return any({cell for _, _, cell in different} <= after.changed for different in differences)


def _count_final(counts: Counts, step: Step, request: Request) -> None:
    """The last plan and the last correction, by the judge's verdict on the prompt."""
    meant = read_description(step.plan.description, request.level) if isinstance(step.plan, Plan) else None
    if meant is not None:
        counts.final_plans += 1
        counts.final_plans_right += judge(request, render(meant, request.level)).correct
    if step.refined is not None:
        verdicts = (judge(request, image).correct for image in (step.sketch, step.refined))
        _increment(counts, "final_" + _correction(*verdicts))


def _correction(right_before: bool, right_after: bool) -> str:
    if right_before:
        return "kept_right" if right_after else "spoiled"
    return "fixed" if right_after else "still_wrong"


def _increment(counts: Counts, name: str) -> None:
    setattr(counts, name, getattr(counts, name) + 1)

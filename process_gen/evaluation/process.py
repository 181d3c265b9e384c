"""Counts errors in the steps of a trajectory: in plans, drafts, inspections, corrections and later images.

All counts are exact. They come from three facts about a step, each a multiset of (shape, colour, cell):
what the plan's description says, what the draft shows, what the last correction shows. The exact parser
reads the images, `reading` the descriptions; a step whose description cannot be read is left out of every
count that needs one. The state of a step is its last image: the draft, or the last correction.

    a draft is wrong            it does not show exactly what its description says; or it contradicts the
                                prompt, and the step is flagged or the last one (before that, a later
                                step may still be meant to change it)
    a correction is right       it shows exactly what the description says. Where the description
                                contradicts the prompt or itself: it shows that and the draft did not,
                                or it does not contradict the prompt
    the inspection flags        the step has a refine turn; several of them count as one correction,
                                whose image is the last one's
    precision, recall, F1       of flagging, for wrong drafts
    kinds of errors             how the draft differs from the description: colour, shape, place, missing,
                                extra, any number of them; or `plan`, where the description itself
                                contradicts the prompt or puts two things into one cell
    the objection names a kind  in the words of its inspection, else of its correction (`named_kind`). An
                                objection to a draft whose error is `plan` counts as naming `plan`.
                                Precision, recall and F1 by kind are of naming
    over-corrected              right drafts that are flagged; harmed: that are wrong after the correction
    fixed, still wrong          wrong drafts before a correction: right after it, or not
    kept right, spoiled         right drafts before a correction: still right after it, or not
    kept                        of the objects that one step shows and the next step's description
                                still has, the share that the next step's image shows
    in final                    of the objects that a state before the last shows, the share that the
                                final image shows as well (objects of a detour lower it)
    lacking at step k           of the objects that step k's description has, the share that its state lacks
    new errors at step k        of the steps k that follow a right state (or none), the share that end wrong
    repaired                    of the steps that follow a wrong state, the share that end right
    the next plan is wrong      its description differs from the canvas before it in a cell that its
                                instruction does not change. Where that canvas is wrong, the plan may
                                agree with the description of the step before instead. Counted apart
                                after a corrected step and after another: does the model plan from the
                                corrected image, or from the draft?

On levels without cells, cells are only names: a drawn object gets the cell of the described one that it looks
like, if it has the relations that the description says (`scenes.hung.match_cells`).

An image contradicts its prompt if nothing that could still be added would make it right
(`scenes.judge.may_become`). `final_*` counts corrections of last steps by the judge's verdict on the whole
prompt (`scenes.judge.judge`).
"""

from __future__ import annotations

import dataclasses
import itertools

from process_gen.evaluation.counts import Counts
from process_gen.evaluation.reading import Objects, changed_cells, named_kind, objects_of, read_description
from process_gen.scenes.graph import Scene
from process_gen.scenes.hung import match_cells
from process_gen.scenes.judge import judge, may_become
from process_gen.scenes.oracle import find_mistakes
from process_gen.scenes.parse import parse
from process_gen.scenes.render import render
from process_gen.scenes.requests import Request
from process_gen.trajectory.markup import Malformed, Plan
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Step


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What the counts need of one step.

    Attributes:
      planned: objects of the plan's description; None without a readable one.
      changed: cells that the plan's instruction changes; "colour shape" on levels without cells.
      draft_right: as the module says.
      errors: kinds of errors of the draft.
      flagged: whether the draft is corrected.
      claim: the kind that the objection names.
      state: objects of the last correction, or of the draft.
      state_right: as the module says.
    """

    planned: Objects | None
    changed: frozenset[str]
    draft_right: bool
    errors: frozenset[str]
    flagged: bool
    claim: str
    state: Objects
    state_right: bool


def count(trajectory: SampledTrajectory, request: Request) -> Counts:
    """The counts of one trajectory; `request` is what its prompt asks for, at the level of its images."""
    steps = trajectory.steps
    facts = [_facts(step, request, step is steps[-1]) for step in steps]
    counts = Counts(steps=len(steps))
    for step, fact in zip(steps, facts, strict=True):
        counts["plans"] += step.plan is not None
        counts["malformed_plans"] += isinstance(step.plan, Malformed)
        counts["unread"] += isinstance(step.plan, Plan) and fact.planned is None
    for index, fact in enumerate(facts):
        _count_step(counts, index, fact)
    for index, (before, after) in enumerate(itertools.pairwise(facts), 1):
        _count_pair(counts, index, before, after)
    for fact in facts[:-1]:
        counts["shown"] += fact.state.total()
        counts["lasting"] += (fact.state & facts[-1].state).total()
    _count_final(counts, steps[-1], request)
    return counts


def count_step(trajectory: SampledTrajectory, request: Request, index: int) -> Counts:
    """The counts of step `index` (from 0) alone: of its draft, inspection and state; all 0 without it."""
    counts, steps = Counts(), trajectory.steps
    if index < len(steps):
        ended = trajectory.stopped == "model" and index == len(steps) - 1
        _count_step(counts, index, _facts(steps[index], request, ended))
    return counts


def _facts(step: Step, request: Request, last: bool) -> _Facts:
    level, plan = request.level, step.plan
    meant, changed = None, frozenset()
    if isinstance(plan, Plan):
        meant, changed = read_description(plan.description, level), changed_cells(plan.instruction, level)
    draft, refined = (None if x is None else parse(x, level) for x in (step.sketch, step.refined))
    if meant is not None:
        draft, refined = (scene and match_cells(scene, meant, level) for scene in (draft, refined))
    planned, drawn, corrected = (None if x is None else objects_of(x) for x in (meant, draft, refined))

    def contradicts(scene: Scene | None) -> bool:
        return scene is not None and not may_become(request, scene)

    twice = meant is not None and len({thing.cell for thing in meant.objects}) < len(meant)
    sound = meant is not None and not twice and not contradicts(meant)
    mended = corrected == planned if sound else not contradicts(refined)
    carried_out = corrected == planned != drawn
    flagged = refined is not None
    right = drawn == planned and not ((last or flagged) and contradicts(draft))
    errors = frozenset()
    if meant is not None and not right:
        errors = frozenset(m.kind for m in find_mistakes(draft, meant)) if sound else frozenset({"plan"})
    claim = named_kind(step.inspect, step.refine if isinstance(step.refine, str) else None)
    state = (corrected, mended or carried_out) if flagged else (drawn, right)
    return _Facts(planned, changed, right, errors, flagged, claim, *state)


def _count_step(counts: Counts, index: int, fact: _Facts) -> None:
    """Adds the counts of detection, correction and state of one step."""
    if fact.planned is None:
        return
    counts["drafts"] += 1
    counts["wrong_drafts"] += not fact.draft_right
    detected = {(False, True): "caught", (False, False): "missed", (True, True): "false_alarms"}
    counts[detected.get((fact.draft_right, fact.flagged), "passed")] += 1
    counts.update(("errors", kind) for kind in fact.errors)
    if fact.flagged:
        counts[_correction(fact.draft_right, fact.state_right)] += 1
        claim = "plan" if fact.errors == {"plan"} else fact.claim
        counts["claims", claim] += 1
        counts["named", claim] += claim in fact.errors
        if fact.draft_right:
            counts["alarms", claim] += 1
    counts["states_at", index] += 1
    counts["right_at", index] += fact.state_right
    counts["planned_at", index] += fact.planned.total()
    counts["lacking_at", index] += (fact.planned - fact.state).total()
    if index == 0:
        counts["sound_at", 0] += 1
        counts["broken_at", 0] += not fact.state_right


def _count_pair(counts: Counts, index: int, before: _Facts, after: _Facts) -> None:
    """Adds what a step keeps and repairs of the state before it, and whether its plan fits that state."""
    if after.planned is None:
        return
    expected = before.state & after.planned
    counts["to_keep"] += expected.total()
    counts["kept"] += (expected & after.state).total()
    if before.planned is not None and not before.state_right:
        counts["to_repair"] += 1
        counts["repaired"] += after.state_right
    elif before.planned is not None:
        counts["sound_at", index] += 1
        counts["broken_at", index] += not after.state_right
    which = "after_refine" if before.flagged else "otherwise"
    counts[f"plans_{which}"] += 1
    if not _plan_follows(before, after):
        counts[f"wrong_{which}"] += 1


def _plan_follows(before: _Facts, after: _Facts) -> bool:
    """Whether a plan differs from the state before it only where its instruction changes something.

    If that state is wrong, agreeing with its own description does as well.
    """
    bases = [before.state]
    if before.planned is not None and not before.state_right:
        bases.append(before.planned)
    differences = ((base - after.planned) + (after.planned - base) for base in bases)
    return any(
        all({cell, f"{colour} {shape}"} & after.changed for shape, colour, cell in different)
        for different in differences
    )


def _count_final(counts: Counts, step: Step, request: Request) -> None:
    """Adds the judge's verdicts, by the whole prompt, on the last plan (rendered) and the last correction."""
    meant = read_description(step.plan.description, request.level) if isinstance(step.plan, Plan) else None
    if meant is not None:
        counts["final_plans"] += 1
        counts["final_plans_right"] += judge(request, render(meant, request.level)).correct
    if step.refined is not None:
        verdicts = (judge(request, image).correct for image in (step.sketch, step.refined))
        counts["final_" + _correction(*verdicts)] += 1


def _correction(right_before: bool, right_after: bool) -> str:
    if right_before:
        return "kept_right" if right_after else "spoiled"
    return "fixed" if right_after else "still_wrong"

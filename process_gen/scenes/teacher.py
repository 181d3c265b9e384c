"""Turns a request into a trajectory: the data that teaches the process.

The final scene is sampled first; its objects stand row by row in the prompt's order as far as
relations allow. `schedule` splits it into steps of one or two objects, and a share of the
trajectories takes a detour to the same end. An instruction names the related object on the
canvas before the cell ("add a red star left of the ring at c2 at b2"), and descriptions keep
the prompt's order: each word of a step follows from the prompt and the canvas by one look-up.

Drafts are right, or hold one planted mistake that the inspection names and the refinement
corrects, or one that goes unnoticed (a slip) and is repaired by the next step. Some plans
are wrong themselves, mostly because something stands already where they put a thing: the
draft carries them out, the inspection finds what contradicts the prompt, and the refinement
corrects it. Such plans are not trained on (their `Turn.before_weight` is 0).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from numpy.random import Generator

from process_gen.scenes import hung, language
from process_gen.scenes.graph import Object, Scene, alike, distance
from process_gen.scenes.judge import find_numbers, may_become
from process_gen.scenes.language import Change, apply
from process_gen.scenes.mistakes import Mistake, misplan, name_fault, plant, say_repair, with_repair_anchor
from process_gen.scenes.placement import place_rest, place_sorted, plainly
from process_gen.scenes.render import render
from process_gen.scenes.requests import Request
from process_gen.scenes.schedule import Steps, additions, misled, schedule
from process_gen.scenes.splits import is_held_out
from process_gen.scenes.words import count_tokens, pick
from process_gen.trajectory.markup import write_plan
from process_gen.trajectory.stages import Mode, Plan, Trajectory, Turn, draft, refinement


def teach(
    request: Request,
    rng: Generator,
    *,
    wrong: float = 0.3,
    misplan: float = 0.1,
    slip: float = 0.08,
    detour: float = 0.25,
    pair: float = 0.5,
) -> Trajectory:
    """Makes one trajectory for a request; the final image always satisfies it.

    Args:
      wrong: probability that a draft holds a mistake that is then refined.
      misplan: probability that a plan holds one, which its draft carries out.
      slip: probability that a draft (never the last) holds one that goes unnoticed.
      detour: probability of a detour.
      pair: probability that a step adds two objects instead of one. On hung levels a step
        adds two only where there would be too many steps.

    Raises:
      ValueError: the request cannot be placed on its level.
    """
    plans = schedule(rng, request, place_sorted(rng, request), detour, pair)
    lesson = _Lesson(rng, plans, request)
    for index in range(len(plans)):
        draw = rng.random()
        if draw < slip and index + 1 < len(plans) and lesson.unnoticed is None:
            lesson.step(index, "slip")
        elif wrong and draw < slip + wrong:  # where no slip is possible (last draft), it is noticed
            lesson.step(index, "draft")
        else:
            lesson.step(index, "plan" if misplan and draw < slip + wrong + misplan else None)
    return Trajectory(request.text, tuple(lesson.turns), metadata=lesson.metadata)


def baseline(request: Request, rng: Generator, mode: Mode) -> Trajectory:
    """A trajectory for one of the baselines: one right image, with a plan or without."""
    final, plan = dict(enumerate(place_sorted(rng, request))), None
    if mode == Mode.PLAN_ONLY:
        changes = [Change("add", (n,), None, thing) for n, thing in final.items()]
        plan = say_plan(changes, final, request, rng, True)
    lesson, scene = _Lesson(rng, [], request, mode), Scene(tuple(final.values()))
    lesson.turns.append(draft(render(scene, request.level), plan))
    lesson.record(scene, None, None)
    return Trajectory(request.text, tuple(lesson.turns), metadata=lesson.metadata)


def finish(request: Request, rng: Generator, scene: Scene) -> tuple[Turn, ...] | None:
    """Makes the steps, without mistakes, that add what a scene lacks; no step if it lacks nothing.

    None where the scene contradicts the request, or has no room for the rest.
    """
    there = find_numbers(request, scene)
    added = None if there is None else place_rest(rng, request, there)
    if added is None:
        return None
    plans = additions(rng, sorted(added), added, 0.0 if request.level.hung else 0.5, len(added))
    lesson = _Lesson(rng, [[], *plans], request)  # step 0 made the given scene
    lesson.state = dict(there)
    for index in range(1, len(lesson.plans)):
        lesson.step(index, None)
    return tuple(lesson.turns)


class _Lesson:
    """Builds the turns and the metadata of one trajectory, step by step."""

    def __init__(self, rng: Generator, plans: Steps, request: Request, mode: Mode = Mode.PROCESS):
        self.rng, self.plans, self.request, self.level = rng, plans, request, request.level
        self.state: dict[int, Object] = {}
        self.unnoticed: Mistake | None = None
        self.turns: list[Turn] = []
        self.metadata: dict[str, Any] = {
            "category": request.category,
            "level": self.level.name,
            "split": "heldout" if is_held_out(request.clauses) else "train",
            "mode": Mode(mode).value,
            "request": request.metadata(),
            "scenes": [],
            "drafts": [],
            "mistakes": [],
        }

    def step(self, index: int, fault: Literal["slip", "draft", "plan"] | None) -> None:
        """Appends one step: a draft turn, and a refine turn where a mistake is noticed.

        Args:
          fault: the mistake to plant where that is possible: in the draft and unnoticed
            (`slip`), or in the draft or the plan, named by the inspection and corrected.
        """
        rng, changes, earlier = self.rng, self.plans[index], self.unnoticed
        for change in changes:
            apply(change, self.state)
        self.state = dict(sorted(self.state.items()))
        touched = [n for change in changes for n in change.numbers if n in self.state]
        misplanned = self._misplan(changes) if fault == "plan" else None
        mistake = self._mistake(touched, changes, earlier) if fault in ("slip", "draft") else misplanned
        slips = fault == "slip"
        if slips and mistake and self.level.hung:  # the texts of the next step must fit the wrong canvas too
            wrong = mistake.apply(self.state)
            if not hung.can_be_said(self.plans[index + 1], self.state, self.request, wrong):
                mistake = None
        plan = self._plan(changes, index == 0, earlier, misplanned)
        scene = Scene(tuple(self.state.values()))
        drawn = scene if mistake is None else Scene(tuple(mistake.apply(self.state).values()))
        inspect, corrections = None, []
        if mistake is None:
            later = [change for changes in self.plans[index + 1 :] for change in changes]
            inspect = language.approve(touched, self.state, later, self.level, rng)
        elif not slips:
            seen = mistake.as_seen(self.state)
            inspect = name_fault(seen, self.state, rng, self.level)
            corrections = [refinement(render(scene, self.level), say_repair(seen, self.level, rng))]
        self.unnoticed = mistake if slips else None
        good = {"image_ok": mistake is misplanned, "before_weight": float(misplanned is None)}
        self.turns += [draft(render(drawn, self.level), plan, inspect, **good), *corrections]
        facts = mistake and {"kind": mistake.kind, "noticed": not slips, "planned": fault == "plan"}
        self.record(scene, drawn if mistake else None, facts)

    def record(self, scene: Scene, drawn: Scene | None, mistake: dict[str, Any] | None) -> None:
        """Adds a step to the metadata: the scene as it should be, the sketch if it differs, the mistake."""
        self.metadata["scenes"].append(scene.to_json())
        self.metadata["drafts"].append(None if drawn is None else drawn.to_json())
        self.metadata["mistakes"].append(mistake)

    def _misplan(self, changes: list[Change]) -> Mistake | None:
        """Draws a mistake of a plan that adds an object; None if the right canvas contradicts the prompt."""
        added = [change.numbers[0] for change in changes if change.kind == "add"]
        if not added or not may_become(self.request, Scene(tuple(self.state.values()))):
            return None
        if self.level.hung:
            if self.unnoticed:  # `misplan_hung` places by the right canvas, which is not what stands
                return None
            added = added[-1:]  # no other addition is placed relative to the last one
        for _ in range(4):
            mistake = misplan(self.rng, self.state, pick(self.rng, added), self.request)
            if mistake and (mistake.right or len(changes) < 2):  # a surplus object is a further change
                return mistake
        return None

    def _mistake(self, touched: list[int], changes: list[Change], earlier: Mistake | None) -> Mistake | None:
        """A new mistake, or the one that slipped through before and is still there."""
        if earlier and self._survives(earlier, changes) and self.rng.random() < 0.5:
            return with_repair_anchor(earlier, self.state, self.request)
        for _ in range(4):
            # What this step draws is hit more often than what stood there before.
            numbers = touched if touched and self.rng.random() < 0.67 else list(self.state)
            number = pick(self.rng, numbers)
            if mistake := plant(self.rng, self.state, number, self.request):
                return mistake
        return None

    def _survives(self, mistake: Mistake, changes: list[Change]) -> bool:
        """Whether an earlier mistake can still stand on the new canvas."""
        if self.level.placement != "grid" or any(mistake.number in change.numbers for change in changes):
            return False
        thing = mistake.right or mistake.wrong
        if mistake.kind == "count" and not any(alike(thing, other) for other in self.state.values()):
            return False  # nothing is left to count it with
        cells = [thing.cell for n, thing in self.state.items() if n != mistake.number]
        return mistake.wrong is None or mistake.wrong.cell not in cells

    def _plan(
        self, changes: list[Change], first: bool, earlier: Mistake | None, misplanned: Mistake | None
    ) -> Plan:
        things = dict(self.state)
        if misplanned:
            things[misplanned.number] = misplanned.wrong
            changes = misled(changes, misplanned)
        untouched = earlier and all(earlier.number not in change.numbers for change in changes)
        repair = earlier.repair if untouched and self.rng.random() < 0.5 else None
        return say_plan(changes, things, self.request, self.rng, first, repair)


def say_plan(
    changes: list[Change],
    things: Mapping[int, Object],
    request: Request,
    rng: Generator,
    first: bool,
    repair: Change | None = None,
) -> Plan:
    """The plan of a step in words, shortened as far as the level's budget asks for.

    Args:
      changes: what it does.
      things: the whole canvas as it should stand afterwards, by number.
      first: whether it is the first step.
      repair: a repair of an earlier mistake to mention first; dropped where there is no room.
    """
    level, shown, anchors = request.level, list(things.values()), []
    if level.hung:
        told, anchors = hung.say_all(changes, things, request), hung.anchors(things, request)
    else:
        told = [_anchored(change, changes, things, request) for change in changes]

    def is_long() -> bool:
        return count_tokens(write_plan(Plan(instruction, description))) + 2 > level.budget.plan

    # Style 0 is the most frequent; articles only while the list is short.
    style = pick(rng, (0, 0, 0, 1, 2 if len(things) < 4 else 0))
    said = [repair, *told] if repair else told
    instruction = language.instruct_all(said, level, rng, first)
    description = language.describe(shown, level, style, anchors)
    if is_long():
        description = language.describe(shown, level, 1, anchors)
    if is_long():
        instruction = language.instruct_all(said, level, None, first)
    if is_long():
        instruction = language.instruct_all(told, level, None, first)
    if is_long():
        instruction = pick(rng, language.EVERYTHING)
    return Plan(instruction, description)


def _anchored(
    change: Change, changes: list[Change], things: Mapping[int, Object], request: Request
) -> Change:
    """Adds its anchor to an addition: the nearest object on the canvas that the prompt relates it to."""
    if change.kind != "add":
        return change
    here = change.after
    later = {n for other in changes[changes.index(change) :] for n in other.numbers}
    stand = {n: thing for n, thing in things.items() if n not in later}
    plain = (one for one in request.related(change.numbers[0], stand) if plainly(here, [one]))
    nearest = min(plain, key=lambda anchor: distance(anchor[1], here), default=None)
    return dataclasses.replace(change, anchor=nearest)


def texts(trajectory: Trajectory) -> list[str]:
    """Every text of a trajectory, with its markup, in order."""
    said = (text for turn in trajectory.turns for text in (turn.before, turn.after))
    return [trajectory.prompt, *(text for text in said if text is not None)]

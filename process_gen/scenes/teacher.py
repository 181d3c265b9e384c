"""Turns a request into a trajectory: the data that teaches the process.

The final scene is drawn first. It is then taken apart into a sampled order of
growing subgraphs, one or two objects a step: mostly the order in which the
prompt names them, else any. Things stand in reading order of the prompt, as far
as its relations allow, and an instruction says to which thing on the canvas the
prompt relates what it adds, before it says where ("add a red star left of the
ring at c2 at b2"). Descriptions keep to the prompt's order. So what a step has to
say follows from the prompt and the canvas, one look-up at a time. Additions
alone make monotonous teachers, so part of the trajectories takes a detour that
reaches the same end: a thing is first drawn in another colour, shape or place
and later changed, two things are swapped, or an extra thing is removed. Drafts
are right, or hold one planted mistake that the inspection names and the
refinement corrects, or that goes unnoticed (a slip) and is repaired by the next
step. Some plans are wrong themselves, mostly because something stands already
where they put a thing: the draft carries them out, the inspection finds what
contradicts the prompt, and the refinement corrects it. Nobody learns to write
such plans (`Turn.before_weight`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from process_gen.scenes import language
from process_gen.scenes.graph import Object, Scene
from process_gen.scenes.judge import may_become
from process_gen.scenes.levels import Level, get_level
from process_gen.scenes.mistakes import Mistake, alike, misplan, name_fault, plant, say_repair
from process_gen.scenes.placement import place_request, plainly, sort_places
from process_gen.scenes.prompts import sample_request
from process_gen.scenes.render import render
from process_gen.scenes.requests import Request, categories
from process_gen.scenes.schedule import MAX_STEPS, Action, apply, misled, schedule
from process_gen.scenes.splits import Split
from process_gen.scenes.words import count_tokens, pick
from process_gen.trajectory.markup import write_plan
from process_gen.trajectory.stages import Mode, Plan, Trajectory, Turn, draft, refinement


def teach(
    request: Request,
    rng: np.random.Generator,
    level: str | Level,
    *,
    wrong: float = 0.3,
    misplan: float = 0.1,
    slip: float = 0.08,
    detour: float = 0.25,
    pair: float = 0.5,
    ordered: float = 0.9,
    split: Split = "train",
    uid: str = "",
) -> Trajectory:
    """Makes one trajectory for a request; the final image always satisfies it.

    Args:
      request: what to draw.
      rng: where all randomness comes from.
      level: name or row of the table of levels.
      wrong: probability that a draft holds a mistake that is then refined.
      misplan: probability that a plan holds one, which its draft carries out and
        the refinement corrects.
      slip: probability that a draft (never the last) holds one that goes unnoticed.
      detour: probability of a detour.
      pair: probability that a step adds two objects instead of one.
      ordered: probability that objects are drawn in the prompt's order.
      split: which side the request is from, for the metadata.
      uid: names the trajectory.
    """
    level = get_level(level)
    final = _in_prompt_order(request, place_request(rng, level, request))
    plans = schedule(rng, level, request, final, detour, pair, ordered)
    assert len(plans) <= MAX_STEPS, f"{len(plans)} steps for {request.text!r}"
    lesson = _Lesson(rng, level, plans, request)
    for index in range(len(plans)):
        draw = rng.random()
        if draw < slip and index + 1 < len(plans) and lesson.unnoticed is None:
            lesson.step(index, "slip")
        elif draw < slip + wrong:
            lesson.step(index, "draft")
        else:
            lesson.step(index, "plan" if draw < slip + wrong + misplan else None)
    return Trajectory(
        request.text, tuple(lesson.turns), uid, _metadata(request, level, split, "process", lesson)
    )


def baseline(
    request: Request,
    rng: np.random.Generator,
    level: str | Level,
    mode: Mode,
    split: Split = "train",
    uid: str = "",
) -> Trajectory:
    """A trajectory for one of the baselines: one right image, with a plan or without."""
    level, mode = get_level(level), Mode(mode)
    if mode is Mode.PROCESS:
        return teach(request, rng, level, split=split, uid=uid)
    final = _in_prompt_order(request, place_request(rng, level, request))
    lesson, plan = _Lesson(rng, level, [], request), None
    if mode is Mode.PLAN_ONLY:
        plan = lesson.plan_everything(final)
    lesson.scenes.append(Scene(tuple(final)))
    lesson.drafts.append(None)
    lesson.mistakes.append(None)
    lesson.turns.append(draft(render(lesson.scenes[0], level), plan))
    return Trajectory(
        request.text, tuple(lesson.turns), uid, _metadata(request, level, split, mode.value, lesson)
    )


def _in_prompt_order(request: Request, things: list[Object]) -> list[Object]:
    """What was placed clause by clause, in the order in which the prompt names it, on the canvas too."""
    named = request.numbered(things)
    return sort_places(named, request.partners(), get_level(request.level))


class _Lesson:
    """A trajectory in the making."""

    def __init__(
        self,
        rng: np.random.Generator,
        level: Level,
        plans: list[list[Action]],
        request: Request,
    ):
        self.rng, self.level, self.plans = rng, level, plans
        self.request, self.partners = request, request.partners()
        self.state: dict[int, Object] = {}
        self.unnoticed: Mistake | None = None
        self.turns: list[Turn] = []
        self.scenes: list[Scene] = []
        self.drafts: list[Scene | None] = []
        self.mistakes: list[dict[str, Any] | None] = []

    def step(self, index: int, fault: Literal["slip", "draft", "plan"] | None) -> None:
        """Appends one step: a draft turn, and a refine turn where a mistake is noticed.

        Args:
          fault: what is wrong, if there is a way to make it so: the draft, and nobody
            notices (`slip`), or the draft or the plan, and the inspection says so.
        """
        rng, actions, earlier = self.rng, self.plans[index], self.unnoticed
        for action in actions:
            apply(action, self.state)
        self.state = dict(sorted(self.state.items()))
        touched = [n for action in actions for n in action.numbers if n in self.state]
        misplanned = self._misplan(actions) if fault == "plan" else None
        mistake = self._mistake(touched, actions, earlier) if fault in ("slip", "draft") else misplanned
        slips = fault == "slip"
        plan = self._plan(index, actions, earlier, misplanned)
        scene = Scene(tuple(self.state.values()))
        drawn = scene if mistake is None else Scene(tuple(mistake.apply(self.state).values()))
        inspect, corrections = None, []
        if mistake is None:
            inspect = self._approve(index, touched)
        elif not slips:
            seen = mistake.as_seen(self.state)
            inspect = name_fault(seen, self.state, rng)
            corrections = [refinement(render(scene, self.level), say_repair(seen, self.level, rng))]
        self.unnoticed = mistake if slips else None
        good = {"image_ok": mistake is misplanned, "before_weight": float(misplanned is None)}
        self.turns += [draft(render(drawn, self.level), plan, inspect, **good), *corrections]
        self.scenes.append(scene)
        self.drafts.append(None if mistake is None else drawn)
        facts = mistake and {"kind": mistake.kind, "noticed": not slips, "planned": fault == "plan"}
        self.mistakes.append(facts)

    def _misplan(self, actions: list[Action]) -> Mistake | None:
        """A mistake of the plan that adds something to a canvas that is right otherwise."""
        added = [a.numbers[0] for a in actions if a.change.kind == "add"]
        if not added or not may_become(self.request, Scene(tuple(self.state.values()))):
            return None
        for _ in range(4):
            mistake = misplan(self.rng, self.state, pick(self.rng, added), self.level, self.request)
            if mistake and (mistake.right or len(actions) < 2):  # what is too many has to be said as well
                return mistake
        return None

    def _mistake(self, touched: list[int], actions: list[Action], earlier: Mistake | None) -> Mistake | None:
        """A new mistake, or the one that slipped through before and is still there."""
        if earlier and self._survives(earlier, actions) and self.rng.random() < 0.5:
            return earlier
        for _ in range(4):
            # What this step draws is hit more often than what stood there before.
            numbers = touched if touched and self.rng.random() < 0.67 else list(self.state)
            mistake = plant(self.rng, self.state, pick(self.rng, numbers), self.level)
            if mistake:
                return mistake
        return None

    def _survives(self, mistake: Mistake, actions: list[Action]) -> bool:
        """Whether an earlier mistake can still stand on the new canvas."""
        if any(mistake.number in action.numbers for action in actions):
            return False
        if mistake.kind == "count" and not any(
            alike(mistake.right or mistake.wrong, thing) for thing in self.state.values()
        ):
            return False  # nothing is left to count it with
        cells = [thing.cell for n, thing in self.state.items() if n != mistake.number]
        return self.level.placement == "grid" and (mistake.wrong is None or mistake.wrong.cell not in cells)

    def _plan(
        self,
        index: int,
        actions: list[Action],
        earlier: Mistake | None,
        misplanned: Mistake | None = None,
    ) -> Plan:
        things = dict(self.state)
        if misplanned:
            things[misplanned.number] = misplanned.wrong
            actions = misled(actions, misplanned)
        changes = [self._anchored(action, actions, things) for action in actions]
        untouched = earlier and all(earlier.number not in action.numbers for action in actions)
        repair = earlier.repair if untouched and self.rng.random() < 0.5 else None
        return Plan(
            *language.plan_texts(changes, list(things.values()), self.level, self.rng, index == 0, repair)
        )

    def plan_everything(self, things: list[Object]) -> Plan:
        """The plan of a single step that adds all things; in fewer words where that is too long."""
        self.state = dict(enumerate(things))
        plan = self._plan(
            0, [Action(language.Change("add", None, t), (n,)) for n, t in self.state.items()], None
        )
        if count_tokens(write_plan(plan)) + 2 > self.level.budget.plan:
            plan = Plan(pick(self.rng, language.EVERYTHING), language.describe(things, self.level, 1))
        return plan

    def _anchored(
        self, action: Action, actions: list[Action], things: Mapping[int, Object]
    ) -> language.Change:
        """An addition with the nearest thing on the canvas to which the prompt relates it."""
        change, number = action.change, action.numbers[0]
        if change.kind != "add" or number not in things:
            return change
        later = {n for other in actions[actions.index(action) :] for n in other.numbers}
        related = [
            (relation, things[n])
            for relation, n in self.partners.get(number, ())
            if n in things and n not in later and plainly(relation, change.after, things[n])
        ]
        if not related:
            return change
        here = change.after
        nearest = min(related, key=lambda pair: abs(pair[1].x - here.x) + abs(pair[1].y - here.y))
        return dataclasses.replace(change, anchor=nearest)

    def _approve(self, index: int, touched: list[int]) -> str:
        later = [action for actions in self.plans[index + 1 :] for action in actions]
        pending = [a.change.after.shape for a in later if a.change.kind == "add"]
        changing = [
            self.state[n] for a in later if a.change.kind != "add" for n in a.numbers if n in self.state
        ]
        new = [self.state[n] for n in touched]
        return language.approve(new, len(self.state), pending, changing, self.level, self.rng)


def _metadata(request: Request, level: Level, split: Split, mode: str, lesson: _Lesson) -> dict[str, Any]:
    """What the teacher knows besides, as plain JSON.

    `scenes` holds the canvas as it should stand after each step; `drafts` what
    the sketch shows instead, None where it is right; `mistakes` what is wrong.
    """
    return {
        "category": request.category,
        "level": level.name,
        "split": split,
        "mode": mode,
        "request": request.metadata(),
        "scenes": [scene.to_json() for scene in lesson.scenes],
        "drafts": [None if draft is None else draft.to_json() for draft in lesson.drafts],
        "mistakes": lesson.mistakes,
    }


def texts(trajectory: Trajectory) -> list[str]:
    """Every text of a trajectory, with its markup, in order."""
    said = (text for turn in trajectory.turns for text in (turn.before, turn.after))
    return [trajectory.prompt, *(text for text in said if text is not None)]


def corpus(rng: np.random.Generator, level: str | Level, n: int) -> list[str]:
    """The texts of `n` training trajectories, for a tokenizer to learn from."""
    level = get_level(level)
    lines = []
    for index in range(n):
        category = categories(level)[index % len(categories(level))]
        request = sample_request(rng, level, category)
        make = teach if rng.random() < 0.9 else _plan_only
        lines += texts(make(request, rng, level))
    return lines


def _plan_only(request: Request, rng: np.random.Generator, level: Level) -> Trajectory:
    return baseline(request, rng, level, Mode.PLAN_ONLY)


def vocabulary(level: str | Level) -> list[str]:
    """Every word and punctuation mark of the language, sorted; special tokens not included."""
    return language.vocabulary(get_level(level))

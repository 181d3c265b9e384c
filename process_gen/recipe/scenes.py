"""The parts of the recipe in the world of scenes: exact, offline, the teacher's own words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from process_gen.evaluation.reading import read_description
from process_gen.recipe import faults
from process_gen.recipe.parts import Opinion, Skip
from process_gen.recipe.strokes import Stroke
from process_gen.scenes import language
from process_gen.scenes.grammar import read_request
from process_gen.scenes.graph import Object, Scene, alike, lacking, same, scene_from_json
from process_gen.scenes.hung import match_cells
from process_gen.scenes.judge import judge
from process_gen.scenes.levels import get_level
from process_gen.scenes.mistakes import Mistake, name_fault, say_repair
from process_gen.scenes.oracle import find_mistakes, mended, sound, with_anchor
from process_gen.scenes.parse import parse
from process_gen.scenes.placement import hang
from process_gen.scenes.render import render
from process_gen.scenes.requests import Request
from process_gen.scenes.teacher import finish, teach
from process_gen.trajectory.markup import Malformed, Plan
from process_gen.trajectory.stages import Turn

_TRIES = 24
"""Draws of the teacher until a trajectory holds a planted error, or holds none."""


@dataclasses.dataclass(frozen=True)
class Taught:
    """A scene to draw, and what the teacher says of it when it is drawn."""

    scene: Scene
    words: str


class Scenes:
    """All parts (`parts.World`) for one level of the scenes world.

    Args:
      level: its name.
      planted: share of the drafts of a trajectory that a planted error hits.
    """

    name, author, workers = "scenes", "teacher", 1

    def __init__(self, level: str, planted: float):
        self.level, self._share = get_level(level), planted

    def request(self, prompt: str) -> Request:
        """What a prompt asks for. Raises Skip where the grammar cannot read it."""
        request = read_request(prompt, self.level)
        if isinstance(request, Malformed):
            raise Skip("a prompt that is none of the scenes world", request.reason)
        return request

    def close(self) -> None:
        """Does nothing: no candidate takes long."""

    # ---------------------------------------------------------------- subset 1

    def strokes(self, prompt: str, rng: Generator, rewrites: float) -> list[Stroke]:
        taught = self._taught(self.request(prompt), rng, detour=rewrites)
        scenes = [scene_from_json(one, self.level) for one in taught.metadata["scenes"]]
        before = [Scene(), *scenes[:-1]]
        return [
            Stroke(turn.plan, faults.changed(old, new), state=Taught(new, turn.after))
            for turn, old, new in zip(taught.turns, before, scenes, strict=True)
        ]

    def paint(self, prompt: str, stroke: Stroke, before: np.ndarray | None, attempt: int) -> np.ndarray:
        return render(stroke.state.scene, self.level)

    def check(
        self, prompt: str, stroke: Stroke, before: np.ndarray | None, image: np.ndarray, last: bool
    ) -> Opinion:
        shown, wanted = parse(image, self.level), stroke.state.scene
        right = same(shown, wanted) and (not last or judge(self.request(prompt), shown).correct)
        return Opinion(right, stroke.state.words)

    # ------------------------------------------------------- subsets 2 and 3

    def plans(self, prompt: str, steps: Sequence[Turn], rng: Generator) -> list[Opinion]:
        request = self.request(prompt)
        planned = [self._described(step.plan) for step in steps]
        against = [not sound(request, scene) for scene in planned]
        # A contradiction that a later plan removes may be a detour; only one that stays is a conflict.
        ends = max((i + 1 for i, one in enumerate(against) if not one), default=0)
        opinions, before = [], Scene()
        for scene, step in zip(planned[:ends], steps, strict=False):
            opinions.append(Opinion(True, self._agreement(before, scene, step.image, rng)))
            before = scene
        if ends < len(steps) and self.level.hung:
            meant = self._mended(request, planned[ends])
            shapes = [request.clauses[owner].shape for owner in request.numbering]
            if any(m.right is None and m.wrong.shape in shapes for m in find_mistakes(planned[ends], meant)):
                raise Skip("a plan that needs more than a removal")
            opinions.append(self._told(planned[ends], meant, rng))
        elif ends < len(steps):
            shown = parse(steps[ends].image, self.level)
            if not same(shown, planned[ends]):
                shown = planned[ends]
            mistake, repaired = faults.of_plan(request, shown, rng, self.level)
            opinions.append(self._objection(mistake, repaired, repaired, rng))
        return opinions

    def draft(self, prompt: str, plan: Plan, image: np.ndarray, rng: Generator) -> Opinion:
        planned, drawn = self._described(plan), parse(image, self.level)
        if len({thing.cell for thing in planned.objects}) < len(planned):
            raise Skip("a description that contradicts itself", plan.description)
        if self.level.hung:
            shown = match_cells(drawn, planned, self.level)
            if find_mistakes(shown, planned):
                return self._told(shown, planned, rng, drawn)
        elif (fault := faults.of_draft(planned, drawn)) is not None:
            mistake, repaired = fault
            return self._objection(mistake, repaired, repaired, rng)
        return Opinion(True, self._agreement(Scene(), planned, image, rng))

    def complete(self, prompt: str, image: np.ndarray) -> bool:
        return judge(self.request(prompt), image).correct

    def correct(self, prompt: str, opinion: Opinion, image: np.ndarray) -> np.ndarray:
        if opinion.state is None:
            raise Skip("a correction of which only the words are known")
        return render(opinion.state, self.level)

    def finish(self, prompt: str, opinion: Opinion, image: np.ndarray, rng: Generator) -> list[Turn]:
        turns = finish(self.request(prompt), rng, opinion.state)
        if turns is None:
            raise Skip("the rest cannot be placed after a correction")
        return list(turns)

    # ------------------------------------------------------------- planted

    def planted(self, prompt: str, rng: Generator, wrong: bool, in_plan: bool) -> list[Turn]:
        request = self.request(prompt)
        odds = {"misplan" if in_plan else "wrong": self._share if wrong else 0.0}
        for _ in range(_TRIES):
            turns = self._taught(request, rng, **odds).turns
            if any(turn.refines for turn in turns) == wrong:
                return list(turns)
        raise Skip("no way to plant an error")

    def _taught(self, request: Request, rng: Generator, **odds: float):
        none = dict.fromkeys(("wrong", "misplan", "slip", "detour"), 0.0)
        try:
            return teach(request, rng, **{**none, **odds})
        except ValueError as error:  # more things than there is room for
            raise Skip("no room for the things of a prompt", str(error)) from None

    def _described(self, plan: Plan) -> Scene:
        scene = read_description(plan.description, self.level)
        if scene is None:
            raise Skip("a description that cannot be read", plan.description)
        return scene

    def _agreement(self, before: Scene, scene: Scene, image: np.ndarray, rng: Generator) -> str:
        """What the teacher says of a right draft. Raises Skip where it is not right."""
        shown = match_cells(parse(image, self.level), scene, self.level)
        if not same(shown, scene):
            raise Skip("a draft that does not show its plan")
        new = lacking(scene, before)
        touched = [n for n, thing in enumerate(scene.objects) if any(thing is one for one in new)]
        state = dict(enumerate(scene.objects))
        if len(state) >= len(language.NUMBERS):
            raise Skip("more things than there are words for")
        return language.approve(touched, state, (), self.level, rng)

    def _told(self, shown: Scene, meant: Scene, rng: Generator, drawn: Scene | None = None) -> Opinion:
        """Names the one mistake of a scene on a hung level. Raises Skip where there are several.

        Args:
          shown: the scene, with the cells of the objects of `meant` that it matches (`hung.match_cells`).
          meant: the scene as it should be.
          drawn: the scene with its true cells; without it there is no corrected scene.
        """
        mistakes = find_mistakes(shown, meant)
        if len(mistakes) != 1:
            raise Skip(faults.SEVERAL)
        if (wrong := mistakes[0].wrong) is not None and not wrong.clear:
            raise Skip("something unclear where nothing should be")
        mistake = with_anchor(mistakes[0], meant, self.level)
        if mistake.right is None and any(alike(mistake.wrong, thing) for thing in meant.objects):
            mistake = dataclasses.replace(mistake, kind="count")
        at = next((n for n, thing in enumerate(shown.objects) if thing is wrong), None)
        repaired = None if drawn is None else self._repaired(drawn.objects, at, mistake)
        return self._objection(mistake, meant, repaired, rng)

    def _objection(self, mistake: Mistake, meant: Scene, repaired: Scene | None, rng: Generator) -> Opinion:
        """Names a mistake and its correction; its number is an index into `meant`."""
        words = name_fault(mistake, dict(enumerate(meant.objects)), rng, self.level)
        return Opinion(False, words, say_repair(mistake, self.level, rng), repaired)

    def _mended(self, request: Request, scene: Scene) -> Scene:
        """A scene without what contradicts the prompt."""
        try:
            return mended(request, scene)
        except ValueError as error:
            raise Skip("no room for the things of a prompt", str(error)) from None

    def _repaired(self, drawn: Sequence[Object], at: int | None, mistake: Mistake) -> Scene | None:
        """The canvas after a correction of its object `at` by words; None where the words are ambiguous."""
        others = [thing for number, thing in enumerate(drawn) if number != at]
        right, (relation, target) = mistake.right, mistake.anchor or (None, None)
        anchors = [(relation, thing) for thing in others if target and alike(thing, target)]
        twins = at is not None and any(alike(drawn[at], thing) for thing in others)
        if twins or not all(thing.clear for thing in others) or (target and len(anchors) != 1):
            return None
        if right is None:
            return Scene(tuple(others))
        if mistake.kind in ("colour", "shape"):
            there = dataclasses.replace(drawn[at], colour=right.colour, shape=right.shape)
        else:
            there = hang(right, others, self.level, anchors)
        return there and Scene((*others, there))

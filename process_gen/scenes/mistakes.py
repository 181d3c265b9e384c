"""Drafts that went wrong: one planted error, and the change that repairs it.

`plant` spoils a draft, which then contradicts its plan. `misplan` spoils the plan
itself: the draft carries it out, and what contradicts it is the prompt. On levels without
cells `hung_mistakes` draws both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from numpy.random import Generator

from process_gen.scenes.graph import Object, Scene, alike
from process_gen.scenes.judge import may_become
from process_gen.scenes.language import MISSING, Anchor, Change, by_anchor, instruct, tables
from process_gen.scenes.levels import NUMBERS, Level
from process_gen.scenes.placement import at_place, find_place, fits
from process_gen.scenes.requests import Request
from process_gen.scenes.words import noun_phrase, pick

MISTAKES = ("colour", "shape", "place", "count", "missing", "extra")

MISPLANS = ("taken", "taken", "taken", "place", "place", "count", "count", "colour", "shape")
"""What is wrong with a plan, as often as it is listed: mostly that something stands there already."""

State = Mapping[int, Object]
"""The canvas as the teacher knows it: things by number, in drawing order."""

STRAY = -1
"""The number of a thing that should not be there."""


@dataclasses.dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong with a draft.

    Attributes:
      kind: one of `MISTAKES`.
      number: of the thing that is wrong; negative for a thing too many.
      wrong: the thing as drawn; None if it is missing.
      right: the thing as it should be; None if it is too many.
      covered: number of the thing that the wrong one is drawn over, if any.
      anchor: what says where the repair takes place, on levels without cells.
    """

    kind: str
    number: int
    wrong: Object | None
    right: Object | None
    covered: int | None = None
    anchor: Anchor | None = None

    def apply(self, state: State) -> dict[int, Object]:
        """The canvas with this mistake."""
        spoiled = dict(state)
        if self.wrong is None:
            del spoiled[self.number]
        else:
            spoiled[self.number] = self.wrong
        spoiled.pop(self.covered, None)
        return spoiled

    def as_seen(self, state: State) -> Mistake:
        """This mistake as it shows: what is drawn over one like it is merely missing."""
        if self.covered is None or not alike(self.wrong, state[self.covered]):
            return self
        return Mistake("missing", self.number, None, self.right)

    @property
    def repair(self) -> Change:
        """What puts it right."""
        if self.wrong is None:
            kind = "add"
        elif self.right is None:
            kind = "remove"
        else:
            kind = "move" if self.kind == "place" else self.kind
        return Change(kind, (self.number,), self.wrong, self.right, anchor=self.anchor)


def plant(rng: Generator, state: State, number: int, level: Level, kind: str | None = None) -> Mistake | None:
    """Draws a mistake for a canvas, or None where there is no way to make one of its kind.

    Args:
      state: how the canvas should be.
      number: of the thing that is hit.
      kind: one of `MISTAKES`; drawn if None.
    """
    thing, others = state[number], [other for n, other in state.items() if n != number]
    kind = kind or pick(rng, MISTAKES)
    looks = (thing.shape, thing.colour, thing.size)
    if kind == "missing":
        return Mistake(kind, number, None, thing)
    if kind == "count" and any(alike(thing, other) for other in others) and rng.random() < 0.5:
        return Mistake(kind, number, None, thing)
    if kind == "colour":
        colours = sorted((c for c in level.colours if c != thing.colour), key=lambda _: rng.random())
        options = (dataclasses.replace(thing, colour=colour) for colour in colours[:3])
        wrong = next((option for option in options if fits(option, others, level)), None)
    elif kind == "shape":
        wrong = dataclasses.replace(thing, shape=pick(rng, [s for s in level.shapes if s != thing.shape]))
    else:
        if kind == "extra":
            looks = (pick(rng, level.shapes), pick(rng, level.colours), pick(rng, level.sizes)[1])
        wrong = find_place(rng, level, looks, [*others, thing])
    if wrong is None:
        return None
    too_many = kind in ("extra", "count")
    return Mistake(kind, STRAY, wrong, None) if too_many else Mistake(kind, number, wrong, thing)


def misplan(rng: Generator, state: State, number: int, level: Level, request: Request) -> Mistake | None:
    """Draws a mistake for the plan that adds the thing `number`.

    None where there is no way to make one of the kind that was drawn, or where it
    would not contradict the prompt. `state` is how the canvas should be after the step.
    """
    kind = pick(rng, MISPLANS)
    if kind == "taken":
        others = [n for n in state if n != number]
        if level.placement != "grid" or not others:
            return None
        covered = pick(rng, others)
        return Mistake("place", number, at_place(state[number], state[covered]), state[number], covered)
    mistake = plant(rng, state, number, level, kind)
    if mistake is None or mistake.wrong is None:
        return None
    return None if may_become(request, Scene(tuple(mistake.apply(state).values()))) else mistake


def name_fault(mistake: Mistake, state: State, rng: Generator, level: Level) -> str:
    """The inspection that finds a mistake; `state` is how the canvas should be."""
    kind, wrong, right = mistake.kind, mistake.wrong, mistake.right
    thing = right or wrong
    fields = {"shape": thing.shape, "colour": thing.colour, "cell": thing.cell}
    fields["place"] = by_anchor(mistake.anchor, level)
    if kind == "count":
        kind, more = ("many", 1) if right is None else ("few", -1)
        wanted = sum(alike(thing, other) for other in state.values())
        fields |= {"wanted": noun_phrase(wanted, thing.colour, thing.shape), "found": NUMBERS[wanted + more]}
    elif wrong and right:
        attribute = "cell" if kind == "place" else kind
        fields |= {"wrong": getattr(wrong, attribute), "right": getattr(right, attribute)}
    return pick(rng, tables(level)[1][kind]).format(**fields)


def say_repair(mistake: Mistake, level: Level, rng: Generator) -> str:
    """The corrective instruction."""
    phrases = MISSING if mistake.wrong is None and rng.random() < 0.5 else None
    return instruct(mistake.repair, level, rng, phrases)

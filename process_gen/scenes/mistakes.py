"""Plants errors in drafts and plans, each with the change that repairs it.

`plant` spoils a draft, which then contradicts its plan. `misplan` spoils the plan
itself: the draft carries it out, and both contradict the prompt.

On hung levels the text of a plan is wrong: it has a wrong relation to the right object, another colour or
shape, one object too many, or one that nobody asked for. `misplan_hung` places the object as that text says.
Only errors that words can repair are planted (`with_repair_anchor`): `placement.hang` finds the right place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from numpy.random import Generator

from process_gen.scenes.graph import OPPOSITE, Anchor, Object, Scene, alike, has_relations, without
from process_gen.scenes.hung import anchored, is_unique
from process_gen.scenes.judge import may_become
from process_gen.scenes.language import MISSING, Change, by_anchor, instruct, tables
from process_gen.scenes.levels import NUMBERS, Level
from process_gen.scenes.placement import Place, at_place, find_place, fits, hang, nearest_free, unplaced
from process_gen.scenes.requests import Request
from process_gen.scenes.words import noun_phrase, pick

MISTAKES = ("colour", "shape", "place", "count", "missing", "extra")

HUNG_MISTAKES = ("place",) * 6 + ("missing", "missing", "extra", "colour", "shape", "count")
"""Kinds on hung levels, drawn uniformly from this list: most errors of a model there are wrong places."""

BESIDE = 0.8
"""How often a misplaced object on a hung level is put beside another one, as a model does."""

MISPLANS = ("taken", "taken", "taken", "place", "place", "count", "count", "colour", "shape")
"""Kinds of plan errors, drawn uniformly from this list; `taken` is a place in a cell that is occupied."""

HUNG_MISPLANS = ("place", "place", "place", "place", "colour", "colour", "shape", "count", "extra", "extra")
"""The same on hung levels."""

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
      anchor: of the repair, on hung levels.
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
        """This mistake as the image shows it: an object drawn over one of the same looks is missing."""
        if self.covered is None or not alike(self.wrong, state[self.covered]):
            return self
        return Mistake("missing", self.number, None, self.right)

    @property
    def repair(self) -> Change:
        """The change that repairs it."""
        if self.wrong is None:
            kind = "add"
        elif self.right is None:
            kind = "remove"
        else:
            kind = "move" if self.kind == "place" else self.kind
        return Change(kind, (self.number,), self.wrong, self.right, anchor=self.anchor)


def plant(
    rng: Generator, state: State, number: int, request: Request, kind: str | None = None
) -> Mistake | None:
    """Draws a mistake that hits the thing `number`, or None where there is no way to make one of its kind.

    `state` is how the canvas should be; `kind` is one of `MISTAKES`, drawn if None.
    """
    kind = kind or pick(rng, HUNG_MISTAKES if request.level.hung else MISTAKES)
    twins = kind == "count" and any(alike(state[number], other) for other in without(state, number))
    if kind == "missing" or (twins and rng.random() < 0.5):
        return with_repair_anchor(Mistake(kind, number, None, state[number]), state, request)
    spoiled = _spoiled_hung if request.level.hung else _spoiled
    for wrong in spoiled(rng, state, number, request, kind):
        if mistake := _drawn(kind, number, wrong, state, request):
            return mistake
    return None


def misplan(rng: Generator, state: State, number: int, request: Request) -> Mistake | None:
    """Draws a mistake for the plan that adds the thing `number`.

    None where there is no way to make one of the kind that was drawn, or where it
    would not contradict the prompt. `state` is how the canvas should be after the step.
    """
    level = request.level
    kind = pick(rng, HUNG_MISPLANS if level.hung else MISPLANS)
    if kind == "taken":
        others = [n for n in state if n != number]
        if level.placement != "grid" or not others:
            return None
        covered = pick(rng, others)
        return Mistake("place", number, at_place(state[number], state[covered]), state[number], covered)
    mistake = (misplan_hung if level.hung else plant)(rng, state, number, request, kind)
    if mistake is None or mistake.wrong is None:
        return None
    return None if may_become(request, Scene(tuple(mistake.apply(state).values()))) else mistake


def misplan_hung(rng: Generator, state: State, number: int, request: Request, kind: str) -> Mistake | None:
    """Draws a mistake of a plan on a hung level; `placement.hang` places the object by the wrong text.

    `state` is how the canvas should be after the step that adds the thing `number`. None where there
    is no way to make a mistake of this kind.
    """
    level, thing, everything = request.level, state[number], list(state.values())
    if kind in ("colour", "shape"):
        wrong = _repainted(rng, thing, everything, level, kind)
    elif kind == "place":
        asked = request.related(number, state)
        if not asked:
            return None
        said, target = asked[0]
        relation = pick(rng, [relation for relation in OPPOSITE if relation != said])
        wrong = hang(thing, without(state, number), level, [(relation, target)])
        if wrong is None or has_relations(wrong, asked, level.margin):
            return None
    else:
        stray = _stray(rng, thing, everything, level, kind)
        targets = [one for one in everything if is_unique(one, everything) and not alike(one, stray)]
        said = request.partners and targets
        anchors = [(pick(rng, tuple(OPPOSITE)), pick(rng, targets))] if said else []
        wrong = hang(stray, everything, level, anchors)
    return wrong and _drawn(kind, number, wrong, state, request)


def with_repair_anchor(mistake: Mistake, state: State, request: Request) -> Mistake | None:
    """Adds the anchor of its repair on hung levels; None where no text can describe the repair."""
    if not request.level.hung:
        return mistake
    change = anchored(mistake.repair, mistake.apply(state), request)
    return change and dataclasses.replace(mistake, anchor=change.anchor)


def _drawn(kind: str, number: int, wrong: Object, state: State, request: Request) -> Mistake | None:
    """The mistake of drawing `wrong`, in the place of the thing `number` or beside all others."""
    if kind in ("extra", "count"):
        number, right = STRAY, None
    else:
        right = state[number]
    return with_repair_anchor(Mistake(kind, number, wrong, right), state, request)


def _spoiled(rng: Generator, state: State, number: int, request: Request, kind: str) -> Iterator[Object]:
    """Yields the wrong object that a mistake draws, or nothing where it finds none."""
    level, thing, others = request.level, state[number], without(state, number)
    if kind == "colour":
        colours = sorted((c for c in level.colours if c != thing.colour), key=lambda _: rng.random())
        options = (dataclasses.replace(thing, colour=colour) for colour in colours[:3])
        wrong = next((option for option in options if fits(option, others, level)), None)
    elif kind == "shape":
        wrong = dataclasses.replace(thing, shape=pick(rng, [s for s in level.shapes if s != thing.shape]))
    else:
        wrong = unplaced(rng, level, pick(rng, level.shapes)) if kind == "extra" else thing
        wrong = find_place(rng, level, wrong, [*others, thing])
    if wrong is not None:
        yield wrong


def _spoiled_hung(rng: Generator, state: State, number: int, request: Request, kind: str) -> Iterator[Object]:
    """`_spoiled` for hung levels: misplaced and surplus objects go to every free cell, in random order."""
    level, thing, everything = request.level, state[number], list(state.values())
    if kind in ("colour", "shape"):
        if wrong := _repainted(rng, thing, everything, level, kind):
            yield wrong
        return
    wrong = thing if kind == "place" else _stray(rng, thing, everything, level, kind)
    for place in _astray(rng, everything, level):
        there = at_place(wrong, place)
        if kind != "place" or not has_relations(there, request.related(number, state), level.margin):
            yield there


def _astray(rng: Generator, things: list[Object], level: Level) -> list[Place]:
    """Free places in random order; mostly (`BESIDE`) with those beside an object first."""
    free = nearest_free(level, things, None)
    free = [free[n] for n in rng.permutation(len(free))]
    if rng.random() >= BESIDE:
        return free
    near = level.cell_size
    return sorted(free, key=lambda at: all(max(abs(at.x - t.x), abs(at.y - t.y)) > near for t in things))


def _repainted(rng: Generator, thing: Object, things: list[Object], level: Level, kind: str) -> Object | None:
    """Draws a wrong colour or shape; None where the object then looks like another one."""
    words = level.colours if kind == "colour" else level.shapes
    wrong = dataclasses.replace(thing, **{kind: pick(rng, [w for w in words if w != getattr(thing, kind)])})
    return None if any(alike(wrong, other) for other in things) else wrong


def _stray(rng: Generator, thing: Object, things: list[Object], level: Level, kind: str) -> Object:
    """A surplus object: the same as `thing`, or for `extra` one that looks like none of `things`."""
    while kind == "extra":
        thing = dataclasses.replace(thing, shape=pick(rng, level.shapes), colour=pick(rng, level.colours))
        if not any(alike(thing, other) for other in things):
            break
    return thing


def name_fault(mistake: Mistake, state: State, rng: Generator, level: Level) -> str:
    """The inspection that finds a mistake; `state` is how the canvas should be."""
    kind, wrong, right = mistake.kind, mistake.wrong, mistake.right
    thing = right or wrong
    fields = {"shape": thing.shape, "colour": thing.colour, "cell": thing.cell}
    fields["place"] = by_anchor(mistake.anchor, level)
    wanted = sum(alike(thing, other) for other in state.values())
    if kind == "count" and wanted < (1 if right is None else 2):  # its like was changed since then
        kind = "extra" if right is None else "missing"
    elif kind == "count":
        kind, more = ("many", 1) if right is None else ("few", -1)
        fields |= {"wanted": noun_phrase(wanted, thing.colour, thing.shape), "found": NUMBERS[wanted + more]}
    elif wrong and right:
        attribute = "cell" if kind == "place" else kind
        fields |= {"wrong": getattr(wrong, attribute), "right": getattr(right, attribute)}
    return pick(rng, tables(level)[1][kind]).format(**fields)


def say_repair(mistake: Mistake, level: Level, rng: Generator) -> str:
    """The corrective instruction."""
    phrases = MISSING if mistake.wrong is None and rng.random() < 0.5 else None
    return instruct(mistake.repair, level, rng, phrases)

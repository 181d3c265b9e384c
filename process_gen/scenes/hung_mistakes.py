"""Mistakes on a level without cells: of drafts that miss their plan, and of plans themselves.

A plan can only be wrong in words: a wrong relation to the right thing, another colour or
shape, one too many, a thing that nobody asked for. The canvas then says where that goes.
Every mistake can be put right in words: `placement.hang` puts the thing where it belongs.
"""

from __future__ import annotations

import dataclasses

from numpy.random import Generator

from process_gen.scenes.graph import OPPOSITE, Object, Scene, alike, keeps
from process_gen.scenes.hung import alone, anchored
from process_gen.scenes.judge import may_become
from process_gen.scenes.levels import Level
from process_gen.scenes.mistakes import MISTAKES, STRAY, Mistake, State
from process_gen.scenes.placement import hang
from process_gen.scenes.requests import Partners, Request, related
from process_gen.scenes.words import pick

MISPLANS = ("place", "place", "place", "place", "colour", "colour", "shape", "count", "extra", "extra")
"""What is wrong with a plan, as often as it is listed."""


def plant(rng: Generator, state: State, number: int, level: Level, partners: Partners) -> Mistake | None:
    """As `mistakes.plant`, for a draft: what goes wrong with a place has no reason."""
    kind = pick(rng, MISTAKES)
    thing, others = state[number], [other for n, other in state.items() if n != number]
    if kind == "missing" or (kind == "count" and not alone(thing, [*others, thing]) and rng.random() < 0.5):
        return settled(Mistake(kind, number, None, thing), state, partners, level)
    if kind in ("colour", "shape"):
        return _repainted(rng, state, number, level, kind, partners)
    free = [cell for cell in level.cells if all(cell != other.cell for other in state.values())]
    place = dict(zip(("x", "y"), level.centres[level.cell_index[cell := pick(rng, free)]], strict=True))
    if kind == "place":
        wrong, right, hit = dataclasses.replace(thing, cell=cell, **place), thing, number
        if keeps(wrong, related(number, state, partners), level.margin):
            return None
    else:
        wrong, right, hit = _stray(rng, thing, list(state.values()), level, kind), None, STRAY
        wrong = dataclasses.replace(wrong, cell=cell, **place)
    return settled(Mistake(kind, hit, wrong, right), state, partners, level)


def divert(
    rng: Generator, state: State, number: int, level: Level, kind: str | None, partners: Partners
) -> Mistake | None:
    """The same for a plan: what it says in words stands where the canvas has it.

    Args:
      state: how the canvas should be after the step that adds the thing `number`.
    """
    kind = kind or pick(rng, MISPLANS)
    thing, others = state[number], [other for n, other in state.items() if n != number]
    if kind in ("colour", "shape"):
        return _repainted(rng, state, number, level, kind, partners)
    if kind == "place":
        asked = related(number, state, partners)
        if not asked:
            return None
        said, target = asked[0]
        relation = pick(rng, [relation for relation in OPPOSITE if relation != said])
        wrong = hang(thing, others, level, relation, [target])
        if wrong is None or keeps(wrong, asked, level.margin):
            return None
        return settled(Mistake(kind, number, wrong, thing), state, partners, level)
    everything = list(state.values())
    stray = _stray(rng, thing, everything, level, kind)
    targets = [one for one in everything if alone(one, everything) and not alike(one, stray)]
    relation, some = None, []
    if partners and targets:
        relation, some = pick(rng, tuple(OPPOSITE)), [pick(rng, targets)]
    wrong = hang(stray, everything, level, relation, some)
    return wrong and settled(Mistake(kind, STRAY, wrong, None), state, partners, level)


def misplan(rng: Generator, state: State, number: int, level: Level, request: Request) -> Mistake | None:
    """As `mistakes.misplan`: a wrong plan that contradicts the prompt."""
    mistake = divert(rng, state, number, level, None, request.partners())
    if mistake is None or may_become(request, Scene(tuple(mistake.apply(state).values()))):
        return None
    return mistake


def settled(mistake: Mistake, state: State, partners: Partners, level: Level) -> Mistake | None:
    """A mistake with the anchor of its repair; None where no words would repair it."""
    change = anchored(mistake.repair, mistake.apply(state), partners, level)
    return change and dataclasses.replace(mistake, anchor=change.anchor)


def _repainted(
    rng: Generator, state: State, number: int, level: Level, kind: str, partners: Partners
) -> Mistake | None:
    """A thing of another colour or shape, unlike all others."""
    thing = state[number]
    words = level.colours if kind == "colour" else level.shapes
    wrong = dataclasses.replace(thing, **{kind: pick(rng, [w for w in words if w != getattr(thing, kind)])})
    if any(alike(wrong, other) for other in state.values()):
        return None
    return settled(Mistake(kind, number, wrong, thing), state, partners, level)


def _stray(rng: Generator, thing: Object, things: list[Object], level: Level, kind: str) -> Object:
    """One too many of a thing, or one unlike all others."""
    while kind == "extra":
        thing = dataclasses.replace(thing, shape=pick(rng, level.shapes), colour=pick(rng, level.colours))
        if not any(alike(thing, other) for other in things):
            break
    return thing

"""Splits a scene into steps: growing subgraphs in a sampled order, some with a detour."""

from __future__ import annotations

import dataclasses

from numpy.random import Generator

from process_gen.scenes import hung
from process_gen.scenes.graph import Object, alike
from process_gen.scenes.language import Change, apply
from process_gen.scenes.levels import Level
from process_gen.scenes.mistakes import Mistake, misplan_hung, plant
from process_gen.scenes.placement import at_place, fits
from process_gen.scenes.requests import Request
from process_gen.scenes.words import pick

MAX_STEPS = 6
ORDERED = 0.9
"""How often things are drawn in the order in which the prompt names them; always on hung levels."""


def misled(changes: list[Change], mistake: Mistake) -> list[Change]:
    """The changes of a step that makes a mistake: one addition replaced by a wrong one, or one too many."""
    wrong = Change("add", (mistake.number,), None, mistake.wrong)
    if mistake.right is None:
        return [*changes, wrong]
    return [wrong if change.numbers == wrong.numbers else change for change in changes]


def schedule(
    rng: Generator, level: Level, request: Request, final: list[Object], detour: float, pair: float
) -> list[list[Change]]:
    """The changes of each step, at most `MAX_STEPS` steps, ending in the final scene; odds as in `teach`."""
    order = list(range(len(final)))
    if rng.random() >= ORDERED and not level.hung:
        order.sort(key=lambda _: rng.random())
    steps: list[list[Change]] = []
    while order:
        slots = MAX_STEPS - 1 - len(steps)
        chance = 0.0 if level.hung else pair  # there two at once only where steps run short
        size = 2 if len(order) > 1 and (len(order) > slots or rng.random() < chance) else 1
        numbers, order = order[:size], order[size:]
        steps.append([Change("add", (n,), None, final[n]) for n in numbers])
    if rng.random() < detour:
        direct = [list(changes) for changes in steps]
        _take_detour(rng, level, steps, request, final)
        if level.hung and not _can_be_said(steps, request, level):
            return direct
    return steps


def _can_be_said(steps: list[list[Change]], request: Request, level: Level) -> bool:
    """Whether, on a hung level, a text can describe each change exactly on the canvas before it."""
    state: dict[int, Object] = {}
    for change in (change for changes in steps for change in changes):
        if hung.anchored(change, state, request.partners(), level) is None:
            return False
        apply(change, state)
    return True


def _detour_kinds(request: Request, level: Level) -> tuple[str, ...]:
    """Kinds of detours, drawn uniformly from this list: mostly of properties that the prompt asks for."""
    if level.hung:  # no `swap`: without cells no text can say the places of the two
        return ("shape", "extra", "place", "colour")
    kinds = ("shape", "shape", "extra", "extra", "place", "swap")
    if any(clause.colour for clause in request.clauses):
        kinds += ("colour", "colour", "colour")
    if any(clause.position for clause in request.clauses):
        kinds += ("place", "swap")
    return kinds


def _take_detour(
    rng: Generator, level: Level, steps: list[list[Change]], request: Request, things: list[Object]
) -> None:
    """Rewrites the steps in place, so that they first do something wrong and change it later."""
    kind, final = pick(rng, _detour_kinds(request, level)), dict(enumerate(things))
    if kind == "swap":
        _swap(rng, level, steps, final)
        return
    named = {(clause.shape, clause.colour) for clause in request.clauses}
    numbers = [n for n, thing in final.items() if kind != "colour" or (thing.shape, thing.colour) in named]
    if not numbers:
        return
    number = pick(rng, numbers)
    if level.hung:
        drawn = {n: thing for n, thing in final.items() if n <= number}
        mistake = misplan_hung(rng, drawn, number, level, kind, request.partners())
    else:
        mistake = plant(rng, final, number, level, kind)
    if mistake is None:
        return
    start = next(i for i, step in enumerate(steps) if any(number in c.numbers for c in step))
    if kind == "extra":
        mistake = dataclasses.replace(mistake, number=len(final))
    if kind == "extra" and not level.hung:
        home = [i for i, changes in enumerate(steps) if len(changes) < 2]
        if home:
            start = pick(rng, home)
        elif len(steps) < MAX_STEPS - 1:
            start = 1 + int(rng.random() * len(steps))  # so that it never stands alone
            steps.insert(start, [])
        else:
            return
    steps[start] = misled(steps[start], mistake)
    _insert_later(rng, steps, start, mistake.repair)


def _swap(rng: Generator, level: Level, steps: list[list[Change]], final: dict[int, Object]) -> None:
    """Two things are first drawn in each other's place."""
    if len(final) < 2:
        return
    a, b = sorted(final, key=lambda _: rng.random())[:2]
    if alike(final[a], final[b]):
        return
    first, second = at_place(final[a], final[b]), at_place(final[b], final[a])
    rest = [thing for n, thing in final.items() if n not in (a, b)]
    if not (fits(first, [*rest, second], level) and fits(second, rest, level)):
        return
    start, begins = 0, {a: first, b: second}
    for index, changes in enumerate(steps):
        for i, change in enumerate(changes):
            if change.numbers[0] in begins:
                changes[i] = dataclasses.replace(change, after=begins[change.numbers[0]])
                start = index
    _insert_later(rng, steps, start, Change("swap", (a, b), first, final[a], second))


def _insert_later(rng: Generator, steps: list[list[Change]], start: int, change: Change) -> None:
    """Puts a change after step `start`: into a step of one change, or as a step of its own."""
    shared = [i for i in range(start + 1, len(steps)) if len(steps[i]) == 1]
    if shared and (len(steps) >= MAX_STEPS or rng.random() < 0.4):
        steps[pick(rng, shared)].insert(0, change)
    else:
        steps.insert(start + 1 + int(rng.random() * (len(steps) - start)), [change])

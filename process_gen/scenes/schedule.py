"""Splits a scene into steps: growing subgraphs in a sampled order, some with a detour."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from numpy.random import Generator

from process_gen.scenes import hung
from process_gen.scenes.graph import Object, alike
from process_gen.scenes.language import Change
from process_gen.scenes.mistakes import Mistake, misplan_hung, plant
from process_gen.scenes.placement import at_place, fits
from process_gen.scenes.requests import Request
from process_gen.scenes.words import pick

MAX_STEPS = 6
ORDERED = 0.9
"""How often things are drawn in the order in which the prompt names them; always on hung levels."""

Steps = list[list[Change]]
"""The changes of each step."""


def misled(changes: list[Change], mistake: Mistake) -> list[Change]:
    """The changes of a step that makes a mistake: one addition replaced by a wrong one, or one too many."""
    wrong = Change("add", (mistake.number,), None, mistake.wrong)
    if mistake.right is None:
        return [*changes, wrong]
    return [wrong if change.numbers == wrong.numbers else change for change in changes]


def additions(
    rng: Generator, numbers: Sequence[int], things: Mapping[int, Object], pair: float, most: int
) -> Steps:
    """Adds things in this order: two at once where `most` steps run short, else with probability `pair`."""
    steps: Steps = []
    while numbers:
        short = len(numbers) > most - len(steps)
        size = 2 if len(numbers) > 1 and (short or rng.random() < pair) else 1
        steps.append([Change("add", (n,), None, things[n]) for n in numbers[:size]])
        numbers = numbers[size:]
    return steps


def schedule(rng: Generator, request: Request, final: list[Object], detour: float, pair: float) -> Steps:
    """At most `MAX_STEPS` steps that end in the final scene; odds as in `teach`."""
    order, things = list(range(len(final))), dict(enumerate(final))
    if rng.random() >= ORDERED and not request.level.hung:
        order.sort(key=lambda _: rng.random())
    steps = additions(rng, order, things, 0.0 if request.level.hung else pair, MAX_STEPS - 1)
    if rng.random() < detour:
        direct = [list(changes) for changes in steps]
        _take_detour(rng, steps, request, things)
        if request.level.hung and not hung.can_be_said(itertools.chain(*steps), {}, request):
            return direct
    return steps


def _detour_kinds(request: Request) -> tuple[str, ...]:
    """Kinds of detours, drawn uniformly from this list: mostly of properties that the prompt asks for."""
    if request.level.hung:  # no `swap`: without cells no text can say the places of the two
        return ("shape", "extra", "place", "colour")
    kinds = ("shape", "shape", "extra", "extra", "place", "swap")
    if any(clause.colour for clause in request.clauses):
        kinds += ("colour", "colour", "colour")
    if any(clause.position for clause in request.clauses):
        kinds += ("place", "swap")
    return kinds


def _take_detour(rng: Generator, steps: Steps, request: Request, final: dict[int, Object]) -> None:
    """Rewrites the steps in place, so that they first do something wrong and change it later."""
    kind = pick(rng, _detour_kinds(request))
    if kind == "swap":
        _swap(rng, steps, request, final)
        return
    named = {(clause.shape, clause.colour) for clause in request.clauses}
    numbers = [n for n, thing in final.items() if kind != "colour" or (thing.shape, thing.colour) in named]
    if not numbers:
        return
    number = pick(rng, numbers)
    if request.level.hung:
        drawn = {n: thing for n, thing in final.items() if n <= number}
        mistake = misplan_hung(rng, drawn, number, request, kind)
    else:
        mistake = plant(rng, final, number, request, kind)
    if mistake is None:
        return
    start = next(i for i, step in enumerate(steps) if any(number in c.numbers for c in step))
    if kind == "extra":
        mistake = dataclasses.replace(mistake, number=len(final))
    if kind == "extra" and not request.level.hung:
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


def _swap(rng: Generator, steps: Steps, request: Request, final: dict[int, Object]) -> None:
    """Two things are first drawn in each other's place."""
    if len(final) < 2:
        return
    a, b = sorted(final, key=lambda _: rng.random())[:2]
    if alike(final[a], final[b]):
        return
    first, second = at_place(final[a], final[b]), at_place(final[b], final[a])
    rest = [thing for n, thing in final.items() if n not in (a, b)]
    if not (fits(first, [*rest, second], request.level) and fits(second, rest, request.level)):
        return
    start, begins = 0, {a: first, b: second}
    for index, changes in enumerate(steps):
        for i, change in enumerate(changes):
            if change.numbers[0] in begins:
                changes[i] = dataclasses.replace(change, after=begins[change.numbers[0]])
                start = index
    _insert_later(rng, steps, start, Change("swap", (a, b), first, final[a], second))


def _insert_later(rng: Generator, steps: Steps, start: int, change: Change) -> None:
    """Puts a change after step `start`: into a step of one change, or as a step of its own."""
    shared = [i for i in range(start + 1, len(steps)) if len(steps[i]) == 1]
    if shared and (len(steps) >= MAX_STEPS or rng.random() < 0.4):
        steps[pick(rng, shared)].insert(0, change)
    else:
        steps.insert(start + 1 + int(rng.random() * (len(steps) - start)), [change])

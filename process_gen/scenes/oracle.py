"""Exact answers for single stages: the next plan for a canvas, and the inspection of a draft.

The teacher makes whole trajectories. The functions here answer for any canvas, whoever drew it, in
the teacher's language. `plan_next` follows the prompt: it keeps as many objects as possible, repairs
the others, and adds what is missing, in the teacher's places where they are free. `look` compares a
draft with its plan, without what of the plan contradicts the prompt. Both are deterministic.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.random import Generator

from process_gen.scenes import hung, language
from process_gen.scenes.graph import UNCLEAR, Object, Scene, alike, lacking
from process_gen.scenes.judge import matchings, may_become
from process_gen.scenes.language import Change, apply
from process_gen.scenes.levels import Level
from process_gen.scenes.mistakes import STRAY, Mistake, name_fault, say_repair
from process_gen.scenes.placement import at_place, candidates, fits, nearest_free, place_sorted, plainly
from process_gen.scenes.requests import Request
from process_gen.scenes.schedule import MAX_STEPS
from process_gen.scenes.teacher import say_plan
from process_gen.trajectory.markup import Plan

_MOST = 5_000  # limit on assignments, and on trial placements
_SURPLUS = 100  # numbers from here on are of objects that nobody asked for


def plan_next(
    request: Request, canvas: Scene, done: int, room: int | None = None, meant: Scene | None = None
) -> Plan | None:
    """The plan of the next step; None where the canvas is what the prompt asks for.

    `done` are the steps so far, `room` those that are left, at most `MAX_STEPS - done`, which is the default.
    `meant`, the scene that the last plan describes, gives unclear objects their names. Raises ValueError
    where the level has no room for what the prompt asks for.
    """
    changes, state = _changes_to_goal(request, canvas, meant)
    if not changes:
        return None
    left = max(MAX_STEPS - done if room is None else min(room, MAX_STEPS - done), 1)
    now = changes[: -(-len(changes) // left)]
    for change in now:
        apply(change, state)
    return say_plan(now, dict(sorted(state.items())), request, _step_rng(request, done), done == 0)


def look(
    request: Request, draft: Scene, meant: Scene | None, before: Scene | None = None, done: int = 0
) -> tuple[str, str | None]:
    """Inspects a draft: (inspection, correction of the first mistake); without one the correction is None.

    `meant` is the scene that its plan describes, None where that cannot be read; `before` the canvas before
    the step, empty by default; `done` are the steps before this one. Raises ValueError as `plan_next` does.
    """
    level, rng = request.level, _step_rng(request, done)
    if meant is None:
        meant = mended(request, draft)
    elif not sound(request, meant):
        possible = mended(request, meant)
        shown, wanted = (sorted((one.shape, one.colour) for one in s.objects) for s in (draft, possible))
        meant = draft if shown == wanted and sound(request, draft) else possible
    if meant is not draft:
        draft = hung.match_cells(draft, meant, level)
    state = dict(enumerate(meant.objects))
    found = find_mistakes(draft, meant)
    if not found:
        there = {one.named for one in hung.match_cells(before, meant, level).objects} if before else ()
        touched = [n for n, thing in state.items() if thing.named not in there]
        return language.approve(touched, state, (), level, rng), None
    first = with_anchor(found[0], meant, level)
    return name_fault(first, state, rng, level), say_repair(first, level, rng)


def sound(request: Request, meant: Scene) -> bool:
    """Whether a described scene can still become what the prompt asks for, and no two things share a cell."""
    cells = {thing.cell for thing in meant.objects}
    return len(cells) == len(meant) and may_become(request, meant)


def find_mistakes(drawn: Scene, meant: Scene) -> list[Mistake]:
    """Finds the differences between a drawing and the scene that was meant, as one `Mistake` each.

    A thing in its cell with one wrong property is a `colour` or `shape` mistake, one that looks right in
    another cell a `place`; all others are `missing` or `extra`. Numbers are indices into `meant.objects`.
    """
    surplus, changed, missing = lacking(drawn, meant), [], []
    for right in lacking(meant, drawn):
        number = next(n for n, thing in enumerate(meant.objects) if thing is right)
        pairs = ((_difference(thing, right), thing) for thing in surplus)
        kind, wrong = next((pair for pair in pairs if pair[0]), ("missing", None))
        (changed if wrong else missing).append(Mistake(kind, number, wrong, right))
        surplus = [thing for thing in surplus if thing is not wrong]
    filled = {mistake.right.cell for mistake in missing}
    extra = (thing for thing in surplus if thing.clear or thing.cell not in filled)
    return [*changed, *missing, *(Mistake("extra", STRAY, thing, None) for thing in extra)]


def _difference(wrong: Object, right: Object) -> str | None:
    """The one property in which a thing differs from what it should be; None where there are several."""
    kinds = {"shape": "shape", "colour": "colour", "cell": "place"}
    differ = [kind for name, kind in kinds.items() if getattr(wrong, name) != getattr(right, name)]
    return differ[0] if len(differ) == 1 and wrong.clear else None


def _step_rng(request: Request, done: int) -> Generator:
    """The generator that draws the words of a step, the same for equal prompt and step."""
    return np.random.default_rng([zlib.crc32(request.text.encode()), done])


def with_anchor(mistake: Mistake, meant: Scene, level: Level) -> Mistake:
    """Prepares a mistake for its texts: adds its repair's anchor in `meant`, and names an unclear object."""
    wrong, anchor = mistake.wrong, None
    if mistake.right is not None and (said := meant.anchor(mistake.number)):
        anchor = said[0], meant.objects[said[1]]
    return dataclasses.replace(mistake, wrong=wrong and _named(wrong, None, level), anchor=anchor)


def _named(thing: Object, meant: Scene | None, level: Level) -> Object:
    """Names an unclear object: as the one of `meant` in its cell, else by the first words of the level."""
    if thing.clear:
        return thing
    there = next((one for one in meant.objects if one.cell == thing.cell), None) if meant else None
    shape = there.shape if there else level.shapes[0] if thing.shape == UNCLEAR else thing.shape
    colour = there.colour if there else level.colours[0] if thing.colour == UNCLEAR else thing.colour
    return dataclasses.replace(thing, shape=shape, colour=colour)


# ------------------------------------------------------- from a canvas to the prompt


def _changes_to_goal(
    request: Request, canvas: Scene, meant: Scene | None
) -> tuple[list[Change], dict[int, Object]]:
    """The changes that lead to what the prompt asks for, additions last; and the canvas by number."""
    kept, dropped, final = _settle(request, canvas)
    missing = [number for number in final if number not in kept]
    state, repairs, removals = dict(kept), [], []
    for index, thing in enumerate(dropped, _SURPLUS):
        pairs = ((_difference(thing, final[number]), number) for number in missing)
        kind, number = next((pair for pair in pairs if pair[0]), (None, index))
        if kind is None and not thing.clear and any(final[n].cell == thing.cell for n in missing):
            continue  # a missing object will be drawn over it
        state[number] = _named(thing, meant, request.level)
        if kind is None:
            removals.append(Mistake("extra", number, state[number], None))
        else:
            missing.remove(number)
            repairs.append(Mistake(kind, number, thing, final[number]))
    additions = [Mistake("missing", number, None, final[number]) for number in missing]
    return [mistake.repair for mistake in (*removals, *repairs, *additions)], state


def mended(request: Request, scene: Scene) -> Scene:
    """Repairs or removes what in a scene contradicts the prompt; adds nothing that is missing.

    Of objects that share a cell, the later ones get places of their own if the prompt asks for such
    objects, and are dropped otherwise. Raises ValueError where there is no room.
    """
    cells, first, crowded = set(), [], []
    for thing in scene.objects:
        (crowded if thing.cell in cells else first).append(thing)
        cells.add(thing.cell)
    changes, state = _changes_to_goal(request, Scene(tuple(first)), None)
    for change in changes:
        again = next((thing for thing in crowded if change.after and alike(thing, change.after)), None)
        if change.kind != "add" or again is not None:
            apply(change, state)
            crowded = [thing for thing in crowded if thing is not again]
    things = dict(sorted(state.items()))
    return hung.described(things, request) if request.level.hung else Scene(tuple(things.values()))


def _settle(request: Request, canvas: Scene) -> tuple[dict[int, Object], list[Object], dict[int, Object]]:
    """Objects that may stay, by number; those that may not; the final scene, by number. Raises ValueError."""
    rng = np.random.default_rng(zlib.crc32(request.text.encode()))
    wanted = place_sorted(rng, request)
    clear = [thing for thing in canvas.objects if thing.clear]

    def choose(thing: Object, numbers: Sequence[int]) -> int:
        """The number at which the teacher has just this object, else the first."""
        return next((n for n in reversed(numbers) if wanted[n].named == thing.named), numbers[0])

    options = itertools.islice(matchings(request, clear, choose, some=True), _MOST)

    def worth(kept: Mapping[int, Object]) -> tuple[int, int]:
        return len(kept), sum(thing.named == wanted[number].named for number, thing in kept.items())

    for kept in sorted(options, key=worth, reverse=True):
        dropped = [thing for thing in canvas.objects if not any(thing is one for one in kept.values())]
        if (final := _complete(request, kept, dropped, wanted, rng)) is not None:
            return kept, dropped, final
    raise ValueError(f"level {request.level.name!r} has no room for {request.text!r}")


def _complete(
    request: Request,
    kept: Mapping[int, Object],
    dropped: Sequence[Object],
    wanted: Sequence[Object],
    rng: Generator,
) -> dict[int, Object] | None:
    """The final scene: adds what is missing to `kept`, by backtracking; None where it finds no places.

    It tries the places of dropped objects of the same shape or colour, the teacher's, then all others.
    """
    level, tries = request.level, itertools.count()
    missing = [number for number in range(len(wanted)) if number not in kept]

    def places(number: int, placed: Mapping[int, Object]) -> Iterator[Object]:
        thing, taken = wanted[number], list(placed.values())
        if level.hung:
            near = next((other for _, other in request.related(number, placed)), None)
            others = nearest_free(level, taken, near)
        else:
            free = candidates(rng, level, thing.size, taken)
            others = [thing, *sorted(free, key=lambda place: level.cell_index[place.cell])]
        like = [one for one in dropped if one.clear and thing.shape == one.shape]
        like += [one for one in dropped if one.clear and thing.colour == one.colour]
        yield from (at_place(thing, place) for place in (*like, *others))

    def go(index: int, placed: dict[int, Object]) -> dict[int, Object] | None:
        if index == len(missing):
            return dict(sorted(placed.items()))
        number = missing[index]
        for thing in places(number, placed):
            if next(tries) > _MOST:
                return None
            if plainly(thing, request.related(number, placed)) and fits(thing, placed.values(), level):
                if (found := go(index + 1, {**placed, number: thing})) is not None:
                    return found
        return None

    return go(0, dict(kept))

"""Places objects so that they fit the canvas and every required relation holds clearly."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from numpy.random import Generator

from process_gen.scenes.graph import Anchor, Box, Object
from process_gen.scenes.levels import Level
from process_gen.scenes.requests import Request
from process_gen.scenes.words import pick

PLAIN, FAINT = 0.6, 0.4
"""Thresholds on `graph.offsets`: at least `PLAIN` along the axis of a required relation, at most `FAINT`
across it. Scorers use 0.5, so no scene of the teacher is a borderline case."""

_TRIES, _RESTARTS = 60, 400
_GAP = 2  # pixels between two things that may not overlap
_AXIS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


class Place(NamedTuple):
    """Where an object may stand: its centre in pixels, and the cell that holds it."""

    x: int
    y: int
    cell: str


def at_place(thing: Object, place: Object | Place) -> Object:
    """Returns `thing` moved to a place, or to where another object stands."""
    return dataclasses.replace(thing, cell=place.cell, x=place.x, y=place.y)


def plainly(thing: Object, anchors: Iterable[Anchor]) -> bool:
    """Whether each relation holds clearly, and no other to the same object: see `PLAIN` and `FAINT`."""
    for relation, target in anchors:
        reach = 0.1 * (thing.size + target.size)
        offset = (thing.x - target.x, thing.y - target.y)
        apart = (offset[0] ** 2 + offset[1] ** 2) ** 0.5
        if apart == 0:
            return False
        axis, sign = _AXIS[relation]
        along, across = ((abs(offset[i]) - reach) / apart for i in (axis, 1 - axis))
        if along < PLAIN or across > FAINT or offset[axis] * sign <= 0:
            return False
    return True


def fits(thing: Object, others: Iterable[Object], level: Level) -> bool:
    """Whether an object can be placed beside the others: in a cell of its own, with little enough overlap."""
    for other in others:
        if other.cell == thing.cell:
            return False
        if level.placement == "grid":
            continue
        span = (thing.size + other.size) / 2
        width, height = span - abs(thing.x - other.x), span - abs(thing.y - other.y)
        if width <= -_GAP or height <= -_GAP:
            continue
        if level.overlap == 0 or thing.colour == other.colour:
            return False
        smaller = min(thing.size, other.size)
        covered = max(min(width, smaller), 0) * max(min(height, smaller), 0)
        if covered > level.overlap * smaller**2:
            return False
    return True


def _free(level: Level, taken: Iterable[Object]) -> list[Place]:
    """The middles of free cells, row by row."""
    used = {thing.cell for thing in taken}
    cells = zip(level.centres, level.cells, strict=True)
    return [Place(x, y, cell) for (x, y), cell in cells if cell not in used]


def nearest_free(level: Level, taken: Sequence[Object], near: Object | None) -> list[Place]:
    """Places in free cells, those nearest to `near` (or to a middle cell) first; ties row by row."""
    middle = level.centres[(level.grid - 1) // 2 * (level.grid + 1)]
    x0, y0 = (near.x, near.y) if near else middle
    return sorted(_free(level, taken), key=lambda place: (place.x - x0) ** 2 + (place.y - y0) ** 2)


def hang(
    thing: Object, taken: Sequence[Object], level: Level, anchors: Sequence[Anchor] = ()
) -> Object | None:
    """Places an object on a hung level, where its cell follows from the canvas alone.

    It takes the free cell nearest to the first anchor in which all relations hold clearly; without
    anchors, the free cell nearest to the middle. Of equally near cells it takes the upper one, then
    the left one. Returns None where there is no such cell.
    """
    places = nearest_free(level, taken, anchors[0][1] if anchors else None)
    there = (at_place(thing, place) for place in places)
    return next((one for one in there if plainly(one, anchors)), None)


def candidates(rng: Generator, level: Level, size: int, taken: Iterable[Object]) -> Iterator[Place]:
    """Yields places to try, in random order."""
    if level.placement == "grid":
        free = _free(level, taken)
        while free:
            x, y, cell = free.pop(int(rng.random() * len(free)))
            if level.jitter:
                spread = 2 * level.jitter + 1
                x += int(rng.random() * spread) - level.jitter
                y += int(rng.random() * spread) - level.jitter
            yield Place(x, y, cell)
        return
    margin = size // 2 + 1
    room = level.image_size - 2 * margin + 1
    for _ in range(_TRIES):
        x, y = (margin + int(rng.random() * room) for _ in range(2))
        yield Place(x, y, level.cell_at(x, y))


def unplaced(rng: Generator, level: Level, shape: str, colour: str | None = None) -> Object:
    """An object that has no place yet; its size is drawn, and its colour where none is given."""
    return Object(shape, colour or pick(rng, level.colours), "", 0, 0, pick(rng, level.sizes)[1])


def find_place(
    rng: Generator,
    level: Level,
    thing: Object,
    taken: Sequence[Object],
    anchors: Sequence[Anchor] = (),
    region: Box | None = None,
) -> Object | None:
    """Returns an object in a place: at random, or by `hang` on hung levels; None if none was found.

    It collides with none of `taken`, all relations of `anchors` hold clearly, and its centre is in `region`.
    """
    if level.hung:
        return hang(thing, taken, level, anchors)
    for place in candidates(rng, level, thing.size, taken):
        if region and not (region[0] <= place.x <= region[2] and region[1] <= place.y <= region[3]):
            continue
        there = at_place(thing, place)
        if fits(there, taken, level) and plainly(there, anchors):
            return there
    return None


def _regions(rng: Generator, request: Request) -> dict[int, Box]:
    """Draws regions by clause index: opposite sides of one band of the canvas for related clauses.

    Four objects scattered over the whole canvas leave no place that is clearly below
    all of them; restricted to one side they do.
    """
    regions: dict[int, Box] = {}
    side = request.level.image_size
    for index, clause in enumerate(request.clauses):
        if clause.position is None or {index, clause.position[1]} & regions.keys():
            continue
        axis, sign = _AXIS[clause.position[0]]
        split, band = side * (0.4 + 0.2 * rng.random()), side * 0.5 * rng.random()
        for owner, low in ((index, sign < 0), (clause.position[1], sign > 0)):
            along = (0.0, split) if low else (split, float(side))
            across = (band, band + side / 2)
            (x0, x1), (y0, y1) = (along, across) if axis == 0 else (across, along)
            regions[owner] = (x0, y0, x1, y1)
    return regions


def place_request(rng: Generator, request: Request) -> list[Object]:
    """Draws the colours and sizes that a request leaves open, and places its objects, in order of number.

    Raises ValueError if the request cannot be placed on its level.
    """
    level = request.level
    for attempt in range(1 if level.hung else _RESTARTS):
        regions = _regions(rng, request) if attempt > _RESTARTS // 20 else {}
        groups = _place_clauses(rng, request, regions)
        if groups is not None:
            return [thing for index in request.naming_order for thing in groups[index]]
    why = "cannot place the objects, starting from the middle," if level.hung else "has no room"
    raise ValueError(f"level {level.name!r} {why} for {request.text!r}")


def _place_clauses(rng: Generator, request: Request, regions: dict[int, Box]) -> list[list[Object]] | None:
    """Tries once to place the objects of every clause; None where one finds no place."""
    level, placed, groups = request.level, [], []
    for index, clause in enumerate(request.clauses):
        relation, target = clause.position or (None, None)
        anchors = [(relation, thing) for thing in groups[target]] if relation else []
        shared = clause.colour
        if shared is None and rng.random() < 0.5:
            shared = pick(rng, level.colours)
        groups.append([])
        for _ in range(clause.count):
            thing = unplaced(rng, level, clause.shape, shared)
            thing = find_place(rng, level, thing, placed, anchors, regions.get(index))
            if thing is None:
                return None
            groups[-1].append(thing)
            placed.append(thing)
    return groups


def place_rest(rng: Generator, request: Request, there: Mapping[int, Object]) -> dict[int, Object] | None:
    """Places what a canvas still lacks, by number (`Request.numbering`); None where there is no room.

    `there` are the objects on it.
    """
    level, owners = request.level, request.numbering
    missing = [number for number in range(len(owners)) if number not in there]
    for _ in range(_RESTARTS // 10):
        placed = dict(there)
        for number in missing:
            clause, anchors = request.clauses[owners[number]], request.related(number, placed)
            thing = unplaced(rng, level, clause.shape, clause.colour)
            thing = find_place(rng, level, thing, list(placed.values()), anchors[:1])
            if thing is None or not plainly(thing, anchors):
                break
            placed[number] = thing
        else:
            return {number: placed[number] for number in missing}
    return None


def sort_places(things: Sequence[Object], request: Request) -> list[Object]:
    """Swaps places until objects stand row by row in their order, as far as relations and room allow.

    Places are then less random: an object that is named later stands further on, so a
    plan that follows the order never names a cell twice.
    """
    things, index = list(things), request.level.cell_index

    def stands(number: int) -> bool:
        here, others = things[number], {n: thing for n, thing in enumerate(things) if n != number}
        return fits(here, others.values(), request.level) and plainly(here, request.related(number, others))

    swapped = True
    while swapped:
        swapped = False
        for a, b in itertools.combinations(range(len(things)), 2):
            first, second = things[a], things[b]
            if index[first.cell] > index[second.cell]:
                things[a], things[b] = at_place(first, second), at_place(second, first)
                if stands(a) and stands(b):
                    swapped = True
                else:
                    things[a], things[b] = first, second
    return things


def place_sorted(rng: Generator, request: Request) -> list[Object]:
    """Places a request as the teacher does: `place_request`, then `sort_places` unless the level is hung."""
    things = place_request(rng, request)
    return things if request.level.hung else sort_places(things, request)

"""Places objects so that they fit the canvas and every required relation holds clearly."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

from numpy.random import Generator

from process_gen.scenes.graph import Box, Object
from process_gen.scenes.levels import Level
from process_gen.scenes.requests import Partners, Request, related
from process_gen.scenes.words import pick

PLAIN, FAINT = 0.6, 0.4
"""Thresholds on `graph.offsets`: at least `PLAIN` along the axis of a required relation, at most `FAINT`
across it. Scorers use 0.5, so no scene of the teacher is a borderline case."""

_TRIES, _RESTARTS = 60, 400
_GAP = 2  # pixels between two things that may not overlap
_AXIS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


def plainly(relation: str, subject: Object, target: Object) -> bool:
    """Whether a relation holds clearly, and no other does: see `PLAIN` and `FAINT`."""
    reach = 0.1 * (subject.size + target.size)
    offset = (subject.x - target.x, subject.y - target.y)
    distance = (offset[0] ** 2 + offset[1] ** 2) ** 0.5
    if distance == 0:
        return False
    axis, sign = _AXIS[relation]
    along = (abs(offset[axis]) - reach) / distance
    across = (abs(offset[1 - axis]) - reach) / distance
    return along >= PLAIN and across <= FAINT and offset[axis] * sign > 0


def fits(thing: Object, others: list[Object], level: Level) -> bool:
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


def nearest_free(level: Level, taken: Sequence[Object], near: Object | None) -> list[tuple[int, int, str]]:
    """(x, y, cell) of free cells, those nearest to `near` (or to a middle cell) first; ties row by row."""
    used = {thing.cell for thing in taken}
    middle = level.centres[(level.grid - 1) // 2 * (level.grid + 1)]
    x0, y0 = (near.x, near.y) if near else middle
    places = zip(level.centres, level.cells, strict=True)
    free = [(x, y, cell) for (x, y), cell in places if cell not in used]
    return sorted(free, key=lambda place: (place[0] - x0) ** 2 + (place[1] - y0) ** 2)


def hang(
    thing: Object,
    taken: Sequence[Object],
    level: Level,
    relation: str | None = None,
    targets: Sequence[Object] = (),
) -> Object | None:
    """Places an object on a hung level, where its cell follows from the canvas alone.

    It takes the free cell nearest to the first target in which the relation to all targets holds
    clearly; without targets, the free cell nearest to the middle. Of equally near cells it
    takes the upper one, then the left one. Returns None where there is no such cell.
    """
    for x, y, cell in nearest_free(level, taken, targets[0] if targets else None):
        there = dataclasses.replace(thing, x=x, y=y, cell=cell)
        if all(plainly(relation, there, target) for target in targets):
            return there
    return None


def candidates(
    rng: Generator, level: Level, size: int, taken: list[Object]
) -> Iterator[tuple[int, int, str]]:
    """Yields (x, y, cell) of places to try, in random order."""
    if level.placement == "grid":
        used = {thing.cell for thing in taken}
        free = [i for i, cell in enumerate(level.cells) if cell not in used]
        while free:
            index = free.pop(int(rng.random() * len(free)))
            x, y = level.centres[index]
            if level.jitter:
                spread = 2 * level.jitter + 1
                x += int(rng.random() * spread) - level.jitter
                y += int(rng.random() * spread) - level.jitter
            yield x, y, level.cells[index]
        return
    margin = size // 2 + 1
    room = level.image_size - 2 * margin + 1
    for _ in range(_TRIES):
        x, y = (margin + int(rng.random() * room) for _ in range(2))
        yield x, y, level.cell_at(x, y)


def find_place(
    rng: Generator,
    level: Level,
    looks: tuple[str, str, int],
    taken: list[Object],
    relation: str | None = None,
    targets: Sequence[Object] = (),
    region: Box | None = None,
) -> Object | None:
    """Finds a place for one object: at random, or by `hang` on hung levels.

    Args:
      looks: its shape, colour and size.
      taken: objects that it must not collide with.
      relation, targets: the relation that must hold clearly to each target.
      region: where its centre has to be; anywhere if None.

    Returns:
      The object in its place, or None if no place was found.
    """
    shape, colour, size = looks
    if level.hung:
        return hang(Object(shape, colour, "", 0, 0, size), taken, level, relation, targets)
    for x, y, cell in candidates(rng, level, size, taken):
        if region and not (region[0] <= x <= region[2] and region[1] <= y <= region[3]):
            continue
        thing = Object(shape, colour, cell, x, y, size)
        if fits(thing, taken, level) and all(plainly(relation, thing, target) for target in targets):
            return thing
    return None


def _regions(rng: Generator, level: Level, request: Request) -> dict[int, Box]:
    """Draws regions by clause index: opposite sides of one band of the canvas for related clauses.

    Four objects scattered over the whole canvas leave no place that is clearly below
    all of them; restricted to one side they do.
    """
    regions: dict[int, Box] = {}
    side = level.image_size
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


def place_request(rng: Generator, level: Level, request: Request) -> list[Object]:
    """Draws the colours and sizes that a request leaves open, and places its objects, in order of number.

    Raises:
      ValueError: if the request cannot be placed on this level.
    """
    for attempt in range(1 if level.hung else _RESTARTS):
        regions = _regions(rng, level, request) if attempt > _RESTARTS // 20 else {}
        groups = _place_clauses(rng, level, request, regions)
        if groups is not None:
            return [thing for index in request.naming_order() for thing in groups[index]]
    why = "cannot place the objects, starting from the middle," if level.hung else "has no room"
    raise ValueError(f"level {level.name!r} {why} for {request.text!r}")


def _place_clauses(
    rng: Generator, level: Level, request: Request, regions: dict[int, Box]
) -> list[list[Object]] | None:
    """Tries once to place the objects of every clause; None where one finds no place."""
    placed: list[Object] = []
    groups: list[list[Object]] = []
    for index, clause in enumerate(request.clauses):
        relation, target = clause.position or (None, 0)
        targets = groups[target] if relation else []
        shared = clause.colour
        if shared is None and rng.random() < 0.5:
            shared = pick(rng, level.colours)
        groups.append([])
        for _ in range(clause.count):
            colour = shared or pick(rng, level.colours)
            looks = (clause.shape, colour, pick(rng, level.sizes)[1])
            thing = find_place(rng, level, looks, placed, relation, targets, regions.get(index))
            if thing is None:
                return None
            groups[-1].append(thing)
            placed.append(thing)
    return groups


def place_rest(
    rng: Generator, level: Level, request: Request, there: Mapping[int, Object]
) -> dict[int, Object] | None:
    """Places the objects of a request that a canvas still lacks; `there` has those on it by number.

    Returns:
      The new objects by number (`Request.numbering`); None where no room was found.
    """
    owners, partners = request.numbering(), request.partners()
    missing = [number for number in range(len(owners)) if number not in there]
    for _ in range(_RESTARTS // 10):
        placed = dict(there)
        for number in missing:
            clause = request.clauses[owners[number]]
            looks = (clause.shape, clause.colour or pick(rng, level.colours), pick(rng, level.sizes)[1])
            anchors = related(number, placed, partners)
            relation, target = anchors[0] if anchors else (None, None)
            taken, targets = list(placed.values()), [target] if anchors else []
            thing = find_place(rng, level, looks, taken, relation, targets)
            if thing is None or not all(plainly(r, thing, other) for r, other in anchors):
                break
            placed[number] = thing
        else:
            return {number: placed[number] for number in missing}
    return None


def sort_places(things: list[Object], partners: Partners, level: Level) -> list[Object]:
    """Swaps places until objects stand row by row in their order, as far as relations and room allow.

    Places are then less random: an object that is named later stands further on, so a
    plan that follows the order never names a cell twice.
    """
    things = list(things)

    def stands(number: int) -> bool:
        here, others = things[number], [t for n, t in enumerate(things) if n != number]
        return fits(here, others, level) and all(
            plainly(relation, here, things[n]) for relation, n in partners.get(number, ())
        )

    swapped = True
    while swapped:
        swapped = False
        for a, b in itertools.combinations(range(len(things)), 2):
            first, second = things[a], things[b]
            if level.cell_index[first.cell] > level.cell_index[second.cell]:
                things[a], things[b] = at_place(first, second), at_place(second, first)
                if stands(a) and stands(b):
                    swapped = True
                else:
                    things[a], things[b] = first, second
    return things


def place_sorted(rng: Generator, level: Level, request: Request) -> list[Object]:
    """Places a request as the teacher does: `place_request`, then `sort_places` unless the level is hung.

    Raises:
      ValueError: if the request cannot be placed on this level.
    """
    things = place_request(rng, level, request)
    return things if level.hung else sort_places(things, request.partners(), level)


def at_place(thing: Object, place: Object) -> Object:
    """Returns `thing` moved to where `place` stands."""
    return dataclasses.replace(thing, cell=place.cell, x=place.x, y=place.y)

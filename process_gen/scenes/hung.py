"""Anchors on hung levels: how texts say where an object stands without naming its cell.

`placement.hang` goes from an anchor to a place. This module goes back: it finds the anchor whose text
leads to a given place, and tells whether a canvas shows what a description says.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from process_gen.scenes.graph import OPPOSITE, Anchor, Object, Scene, alike, distance, has_relations, without
from process_gen.scenes.language import Change, apply
from process_gen.scenes.levels import Level
from process_gen.scenes.placement import hang, nearest_free, plainly
from process_gen.scenes.requests import Request


def is_unique(thing: Object, things: Sequence[Object]) -> bool:
    """Whether at most one of `things`, which may include `thing` itself, looks like it."""
    return sum(alike(thing, other) for other in things) <= 1


def anchored(
    change: Change, canvas: Mapping[int, Object], request: Request, strict: bool = True
) -> Change | None:
    """Adds to a change the anchor that its text names; None where no text describes the change.

    Args:
      change: of one object, so no `swap`.
      canvas: the objects before it, by number.
      request: its relations are preferred.
      strict: the text must lead to exactly this cell and identify one object. Otherwise
        any relation that holds will do, and the result is never None.
    """
    (number,) = change.numbers
    others, fallback = without(canvas, number), None if strict else change
    if change.kind == "remove":
        return _removal(change, others, request.level) or fallback
    if strict and change.before is not None and not is_unique(change.before, [*others, change.before]):
        return None
    if change.kind in ("colour", "shape"):
        return change
    for anchor in _options(change.after, others, request.related(number, canvas)):
        if not strict or reaches(change.after, others, anchor, request.level):
            return dataclasses.replace(change, anchor=anchor)
    return fallback


def say_all(changes: Sequence[Change], things: Mapping[int, Object], request: Request) -> list[Change]:
    """Adds an anchor to each change, for the canvas that those before it leave; strict where possible.

    `things` is the canvas after all changes, by number.
    """
    canvas = dict(things)
    for change in reversed(changes):  # back to the canvas before them
        (number,) = change.numbers
        if change.before is None:
            canvas.pop(number)
        else:
            canvas[number] = change.before
    canvas, said = dict(sorted(canvas.items())), []
    for change in changes:
        said.append(anchored(change, canvas, request) or anchored(change, canvas, request, strict=False))
        apply(change, canvas)
    return said


def reaches(thing: Object, others: Sequence[Object], anchor: Anchor | None, level: Level) -> bool:
    """Whether `placement.hang` puts an object with this anchor into the cell where it stands."""
    there = hang(thing, others, level, [anchor] if anchor else [])
    return there is not None and there.cell == thing.cell


def _options(thing: Object, others: Sequence[Object], asked: Sequence[Anchor]) -> Iterator[Anchor | None]:
    """Yields the anchors that hold for an object's place: the prompt's own, then others to the same objects.

    Where the prompt relates it to nothing on the canvas, it yields None (no anchor), then the relations
    to all other objects, nearest objects first.
    """
    asked = [anchor for anchor in asked if is_unique(anchor[1], others)]
    yield from (anchor for anchor in asked if plainly(thing, [anchor]))
    if not asked:
        yield None
    targets = [other for _, other in asked] or sorted(
        (other for other in others if is_unique(other, others)), key=lambda other: distance(other, thing)
    )
    relations = ((relation, other) for other in targets for relation in OPPOSITE)
    yield from (anchor for anchor in relations if plainly(thing, [anchor]))


def _removal(change: Change, others: Sequence[Object], level: Level) -> Change | None:
    """Makes a removal identify its object among those that look alike; None where that cannot be done.

    The anchor is a relation that holds for it alone; none is needed if it is farthest from the middle.
    """
    thing = change.before
    twins = [other for other in others if alike(other, thing)]
    if not twins:
        return change
    targets = [other for other in others if is_unique(other, others) and not alike(other, thing)]
    for other, relation in itertools.product(targets, OPPOSITE):
        anchor = (relation, other)
        if plainly(thing, [anchor]) and not any(has_relations(t, [anchor], level.margin) for t in twins):
            return dataclasses.replace(change, anchor=anchor)
    order = [place.cell for place in nearest_free(level, (), None)]
    last = all(order.index(twin.cell) < order.index(thing.cell) for twin in twins)
    return change if last else None


def anchors(things: Mapping[int, Object], request: Request) -> list[Anchor | None]:
    """The anchor of each thing in a description, in its order, or None; it names things listed before alone.

    If the prompt relates the thing to one of these, it is that one, with the prompt's relation or
    another that holds. Things that the prompt does not ask for are anchored to the nearest one.
    """
    asked, everything = range(max(request.partners, default=-1) + 1), list(things.values())
    found: list[Anchor | None] = []
    for index, (number, thing) in enumerate(things.items()):
        options = request.related(number, dict(itertools.islice(things.items(), index)))
        others = [other for _, other in options]
        if asked and not options and number not in asked:
            others = sorted(everything[:index], key=lambda other: distance(other, thing))
        options += ((relation, other) for other in others for relation in OPPOSITE)
        plain = (one for one in options if plainly(thing, [one]) and is_unique(one[1], everything))
        found.append(next(plain, None))
    return found


def described(things: Mapping[int, Object], request: Request) -> Scene:
    """The scene of some things, with the `Scene.anchors` that its description states."""
    listed = list(things.values())
    said = [
        anchor and (anchor[0], next(i for i, one in enumerate(listed) if one is anchor[1]))
        for anchor in anchors(things, request)
    ]
    return Scene(tuple(listed), tuple(said))


def _follows(change: Change, canvas: Mapping[int, Object], level: Level) -> bool:
    """Whether the text of a change, written for another canvas, has the intended effect on this one."""
    (number,) = change.numbers
    others = without(canvas, number)
    if change.before and sum(alike(thing, change.before) for thing in canvas.values()) != 1:
        return False
    if change.kind not in ("add", "move"):
        stands = canvas.get(number)
        return change.kind == "remove" or (stands is not None and stands.cell == change.after.cell)
    if change.anchor is None:
        return reaches(change.after, others, None, level)
    relation, meant = change.anchor
    found = [other for other in others if alike(other, meant)]
    return len(found) == 1 and reaches(change.after, others, (relation, found[0]), level)


def can_be_said(
    changes: Iterable[Change],
    canvas: Mapping[int, Object],
    request: Request,
    wrong: Mapping[int, Object] | None = None,
) -> bool:
    """Whether a text can describe each change exactly on the canvas before it.

    With `wrong`, another canvas, it must also have the same effect there.
    """
    canvas, wrong = dict(canvas), None if wrong is None else dict(wrong)
    for change in changes:
        said = anchored(change, canvas, request)
        if said is None or (wrong is not None and not _follows(said, wrong, request.level)):
            return False
        for state in (canvas, wrong):
            if state is not None:
                apply(change, state)
    return True


def match_cells(drawn: Scene, meant: Scene, level: Level) -> Scene:
    """Matches drawn to described things on a hung level, and gives each the cell name of its match.

    Args:
      drawn: what stands.
      meant: what a description says, with its `anchors`. Its cells serve only as names.

    Returns:
      The same canvas on other levels. Else a thing has the cell of a described one if it looks like
      it, or differs in shape or colour alone, and has the relation stated for it. All others have
      cell names that `meant` does not use.
    """
    if not level.hung:
        return drawn
    seats: dict[int, Object] = {}  # the drawn thing of each described one

    def stands_for(thing: Object, number: int, nearly: bool) -> bool:
        """Whether a thing has the looks and the relation of the described thing `number`.

        `nearly`: shape or colour has to differ, but not both; without an anchor the cell has to be the same.
        """
        wanted, anchor = meant.objects[number], meant.anchor(number)
        if nearly:
            looks = thing.clear and (thing.shape == wanted.shape) != (thing.colour == wanted.colour)
        else:
            looks = alike(thing, wanted)
        if anchor is None or not looks:
            return looks and (not nearly or thing.cell == wanted.cell)
        relation, target = anchor
        twins = (one for one in drawn.objects if alike(one, meant.objects[target]))
        base = seats.get(target) or next(twins, None)
        return base is not None and has_relations(thing, [(relation, base)], level.margin)

    # Described things with an anchor choose first, before those that look the same and have none.
    numbers = sorted(range(len(meant.objects)), key=lambda n: not meant.anchor(n))
    for nearly in (False, True, False):  # exact matches again: their target may be a near match
        for number in (n for n in numbers if n not in seats):
            free = (one for one in drawn.objects if not any(one is taken for taken in seats.values()))
            if (first := next((one for one in free if stands_for(one, number, nearly)), None)) is not None:
                seats[number] = first
    cells = {id(thing): meant.objects[number].cell for number, thing in seats.items()}
    used = {thing.cell for thing in meant.objects}

    def cell(thing: Object) -> str:
        return cells.get(id(thing)) or (f"{thing.cell}'" if thing.cell in used else thing.cell)

    return Scene(tuple(dataclasses.replace(thing, cell=cell(thing)) for thing in drawn.objects))

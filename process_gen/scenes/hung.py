"""What a text of a level without cells says of a place: the thing that another one hangs on.

An `Anchor` is a relation and a thing that stands. `placement.hang` says where that puts
a thing; here it is the other way round. Which words put a thing where it stands, and
does a canvas show what a description says?
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

from process_gen.scenes.graph import OPPOSITE, Object, Scene, alike, distance, keeps
from process_gen.scenes.language import Anchor, Change, apply
from process_gen.scenes.levels import Level
from process_gen.scenes.placement import hang, nearest_free, plainly
from process_gen.scenes.requests import Partners, related


def alone(thing: Object, things: Sequence[Object]) -> bool:
    """Whether no other one of some things looks like it."""
    return sum(alike(thing, other) for other in things) <= 1


def anchored(
    change: Change, canvas: Mapping[int, Object], partners: Partners, level: Level, strict: bool = True
) -> Change | None:
    """A change with the anchor that says it; None where no words do.

    Args:
      change: of one thing.
      canvas: what stands before it, by number.
      partners: relations of the prompt, which are said first.
      strict: the words have to lead to the very cell, and to one thing alone; else
        a relation that holds will do, and there are always words.
    """
    (number,) = change.numbers
    others = [thing for n, thing in canvas.items() if n != number]
    if change.kind == "remove":
        return _removal(change, others, level) or (None if strict else change)
    if strict and change.before is not None and not alone(change.before, [*others, change.before]):
        return None
    if change.kind in ("colour", "shape"):
        return change
    for anchor in _options(change.after, others, related(number, canvas, partners)):
        if not strict or reaches(change.after, others, anchor, level):
            return dataclasses.replace(change, anchor=anchor)
    return None if strict else change


def say_all(
    changes: Sequence[Change], things: Mapping[int, Object], partners: Partners, level: Level
) -> list[Change]:
    """Changes with the anchors that say them one after the other, as exactly as words can.

    Args:
      things: the canvas after them, by number.
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
        exact = anchored(change, canvas, partners, level)
        said.append(exact or anchored(change, canvas, partners, level, strict=False))
        apply(change, canvas)
    return said


def reaches(thing: Object, others: Sequence[Object], anchor: Anchor | None, level: Level) -> bool:
    """Whether an anchor puts a thing where it stands."""
    relation, target = anchor or (None, None)
    there = hang(thing, others, level, relation, [target] if target else [])
    return there is not None and there.cell == thing.cell


def _options(thing: Object, others: Sequence[Object], asked: Sequence[Anchor]) -> Iterator[Anchor | None]:
    """What may be said of a thing's place: the prompt's words, nothing, other relations to the same things.

    Only of what the prompt relates to nothing that stands, any relation to any thing.
    """
    asked = [(relation, other) for relation, other in asked if alone(other, others)]
    yield from ((relation, other) for relation, other in asked if plainly(relation, thing, other))
    if not asked:
        yield None
    targets = [other for _, other in asked] or sorted(
        (other for other in others if alone(other, others)), key=lambda other: distance(other, thing)
    )
    for other, relation in itertools.product(targets, OPPOSITE):
        if plainly(relation, thing, other):
            yield relation, other


def _removal(change: Change, others: Sequence[Object], level: Level) -> Change | None:
    """Of things that look alike, the one of its relation to another thing, or the last that found a place."""
    thing = change.before
    twins = [other for other in others if alike(other, thing)]
    if not twins:
        return change
    targets = [other for other in others if alone(other, others) and not alike(other, thing)]
    for other, relation in itertools.product(targets, OPPOSITE):
        shared = any(keeps(twin, [(relation, other)], level.margin) for twin in twins)
        if plainly(relation, thing, other) and not shared:
            return dataclasses.replace(change, anchor=(relation, other))
    order = [cell for _, _, cell in nearest_free(level, (), None)]
    last = all(order.index(twin.cell) < order.index(thing.cell) for twin in twins)
    return change if last else None


def anchors(things: Mapping[int, Object], partners: Partners) -> list[Anchor | None]:
    """What a description says of the place of each thing, in its order: only what is listed before is named.

    What the prompt relates to something that stands is said to hang on that, by the
    prompt's relation or the one that holds instead; what it does not ask for, on the nearest thing.
    """
    asked = max([*partners, *(n for some in partners.values() for _, n in some)], default=-1)
    found: list[Anchor | None] = []
    for index, (number, thing) in enumerate(things.items()):
        before = dict(itertools.islice(things.items(), index))
        said = related(number, before, partners)
        others = [other for _, other in said]
        if not said and not 0 <= number <= asked and asked >= 0:
            others = sorted(before.values(), key=lambda other: distance(other, thing))
        options = [*said, *((relation, other) for other in others for relation in OPPOSITE)]
        plain = (
            one for one in options if plainly(one[0], thing, one[1]) and alone(one[1], list(things.values()))
        )
        found.append(next(plain, None))
    return found


def described(things: Mapping[int, Object], partners: Partners) -> Scene:
    """A scene as its description would be read: with `Scene.anchors`."""
    listed = list(things.values())
    said = [
        anchor and (anchor[0], next(i for i, one in enumerate(listed) if one is anchor[1]))
        for anchor in anchors(things, partners)
    ]
    return Scene(tuple(listed), tuple(said))


def follows(change: Change, canvas: Mapping[int, Object], level: Level) -> bool:
    """Whether the words of a change, chosen for another canvas, do on this one what they are meant to."""
    (number,) = change.numbers
    others = [thing for n, thing in canvas.items() if n != number]
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


def seat(drawn: Scene, meant: Scene, level: Level) -> Scene:
    """A canvas with each thing in the cell of what it stands for, where it stands as a description says.

    Args:
      drawn: what stands.
      meant: what a description says, with its `anchors`. Its cells are only names then.

    Returns:
      The same canvas on levels with cells. Else a thing has the cell of what is described if it looks
      like that, or differs in shape or colour alone, and has the relation that is said of it. All
      others are at cells of their own, which `meant` does not use.
    """
    if not level.hung:
        return drawn
    seats: dict[int, Object] = {}
    # Of things that look alike, those of which more is said choose first.
    numbers = sorted(range(len(meant.objects)), key=lambda n: not meant.anchor(n))
    for nearly in (False, True, False):  # once more: some hang on what is nearly alike
        for number in (n for n in numbers if n not in seats):
            free = (one for one in drawn.objects if not any(one is taken for taken in seats.values()))
            stands = (one for one in free if _stands_for(one, number, nearly, drawn, meant, seats, level))
            if (first := next(stands, None)) is not None:
                seats[number] = first
    cells = {id(thing): meant.objects[number].cell for number, thing in seats.items()}
    used = {thing.cell for thing in meant.objects}

    def cell(thing: Object) -> str:
        return cells.get(id(thing)) or (f"{thing.cell}'" if thing.cell in used else thing.cell)

    return Scene(tuple(dataclasses.replace(thing, cell=cell(thing)) for thing in drawn.objects))


def _stands_for(
    thing: Object,
    number: int,
    nearly: bool,
    drawn: Scene,
    meant: Scene,
    seats: Mapping[int, Object],
    level: Level,
) -> bool:
    """Whether a drawn thing looks like the described thing `number` and stands as is said of it.

    Args:
      nearly: differing in shape or in colour, not both; then at the same cell where nothing is said.
      seats: the drawn things that stand for some of those described.
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
    return base is not None and keeps(thing, [(relation, base)], level.margin)

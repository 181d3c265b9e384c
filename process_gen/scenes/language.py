"""The teacher's language: a closed vocabulary, with several phrases for each statement.

Phrases are data. A placeholder in braces is filled with an object, a cell or a
word of the level; everything else is a word of the vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from numpy.random import Generator

from process_gen.scenes.graph import Anchor, Object
from process_gen.scenes.levels import NUMBERS, Level
from process_gen.scenes.placement import at_place
from process_gen.scenes.words import count_tokens, listed, pick


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One edit of the canvas.

    Attributes:
      numbers: of the objects that it touches; two for `swap`.
      before: the object as it stands (None for `add`).
      after: the object as it will stand (None for `remove`).
      other: for `swap`, the object whose place it takes.
      anchor: for `add`, an object on the canvas and the prompt's relation to it. On hung
        levels any anchor that tells the place, of a `move` or a `remove` too.
    """

    kind: Literal["add", "colour", "shape", "move", "swap", "remove"]
    numbers: tuple[int, ...]
    before: Object | None
    after: Object | None
    other: Object | None = None
    anchor: Anchor | None = None


def apply(change: Change, state: dict[int, Object]) -> None:
    """Carries a change out on a canvas, in place."""
    number, *others = change.numbers
    if change.kind == "remove":
        del state[number]
    else:
        state[number] = change.after
    for other in others:  # of a swap
        state[other] = at_place(change.other, change.before)


CHANGES: dict[str, tuple[str, ...]] = {
    "add": ("add {after}", "put {after}", "draw {after}", "place {after}"),
    "colour": (
        "change the {shape} at {cell} to {colour}",
        "make the {shape} at {cell} {colour}",
        "paint the {old} {shape} at {cell} {colour}",
    ),
    "shape": (
        "change the {shape} at {cell} to a {new}",
        "turn the {shape} at {cell} into a {new}",
        "replace the {shape} at {cell} with a {colour} {new}",
    ),
    "move": (
        "move the {shape} at {cell} to {place}",
        "move the {old} {shape} from {cell} to {place}",
        "shift the {shape} from {cell} to {place}",
    ),
    "swap": (
        "swap the {shape} at {cell} and the {new} at {place}",
        "swap the {old} {shape} at {cell} with the {colour} {new} at {place}",
        "swap {cell} and {place}",
    ),
    "remove": (
        "remove the {shape} at {cell}",
        "remove the {old} {shape} at {cell}",
        "erase the {shape} at {cell}",
        "take away the {old} {shape} at {cell}",
    ),
}
"""Phrases by kind of change; the first of each is the shortest complete one."""

STARTS = ("start with {after}", "first draw {after}", "begin with {after}")
MISSING = ("add the missing {bare}", "draw the missing {bare}")
EVERYTHING = ("draw everything at once", "draw the whole scene at once", "add all of it at once")

FINE = (
    "all as planned",
    "no error",
    "the draft is right",
    "this is right",
    "shape, colour and place are right",
    "it shows what was asked for",
    "checked {number}: no error",
    "{thing} is right",
    "{thing} is as planned",
    "{thing}: right shape, colour and place",
)
TO_COME = (
    "{thing} is still to come",
    "{thing} is not drawn yet, no error",
    "more is still to come",
    "the rest follows",
)
TO_CHANGE = ("{thing} changes later", "{thing} is not final yet")

FAULTS: dict[str, tuple[str, ...]] = {
    "colour": (
        "the {shape} at {cell} is {wrong}, not {right}",
        "wrong colour: the {shape} at {cell} should be {right}, not {wrong}",
        "the {shape} at {cell} should be {right} but is {wrong}",
    ),
    "shape": (
        "there is a {wrong} at {cell}, not a {right}",
        "wrong shape: the {wrong} at {cell} should be a {right}",
        "the {colour} {wrong} at {cell} should be a {right}",
    ),
    "place": (
        "the {colour} {shape} is at {wrong}, not at {right}",
        "wrong place: the {shape} at {wrong} should be at {right}",
        "the {colour} {shape} at {wrong} should be at {right}",
    ),
    "missing": (
        "the {colour} {shape} at {cell} is missing",
        "there is no {colour} {shape} at {cell}",
        "missing: {colour} {shape} at {cell}",
    ),
    "extra": (
        "the {colour} {shape} at {cell} should not be there",
        "there is an extra {colour} {shape} at {cell}",
        "extra: {colour} {shape} at {cell}",
    ),
    "many": (
        "there should be {wanted}, not {found}: the one at {cell} is extra",
        "wrong count: {wanted}, not {found}, the one at {cell} is extra",
    ),
    "few": (
        "there should be {wanted}, not {found}: the one at {cell} is missing",
        "wrong count: {wanted}, not {found}, the one at {cell} is missing",
    ),
}

HUNG_CHANGES: dict[str, tuple[str, ...]] = {
    "add": ("add {after}", "put {after}", "draw {after}", "place {after}"),
    "colour": ("change the {it} to {colour}", "make the {it} {colour}", "paint the {it} {colour}"),
    "shape": (
        "change the {it} to a {new}",
        "turn the {it} into a {new}",
        "replace the {it} with a {colour} {new}",
    ),
    "move": ("move the {it} {place}", "shift the {it} {place}"),
    "remove": ("remove the {it} {place}", "erase the {it} {place}", "take away the {it} {place}"),
}
"""The same on hung levels: `{it}` is the colour and shape of an object, `{place}` its anchor, if any."""

HUNG_FINE = "no error"
HUNG_FAULTS: dict[str, tuple[str, ...]] = {
    "colour": ("wrong colour: the {shape} should be {right}, not {wrong}",),
    "shape": ("wrong shape: the {colour} {wrong} should be a {right}",),
    "place": ("wrong place: the {colour} {shape} should be {place}",),
    "missing": ("missing: {colour} {shape}",),
    "extra": ("extra: {colour} {shape}",),
    "many": ("wrong count: {wanted}, not {found}, one is extra",),
    "few": ("wrong count: {wanted}, not {found}, one is missing",),
}
"""Each starts with its verdict: judging the image is the hard part there, and only that word trains it."""


def noun(thing: Object, level: Level) -> str:
    """A thing without its place: "red circle", with its size where sizes differ."""
    words = f"{thing.colour} {thing.shape}"
    return f"{level.size_names[thing.size]} {words}" if level.sized else words


def tables(level: Level) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """The phrases of a level by kind: those of changes, and those of faults."""
    return (HUNG_CHANGES, HUNG_FAULTS) if level.hung else (CHANGES, FAULTS)


def pointed(thing: Object, level: Level, colour: bool = True) -> str:
    """How texts refer to an object on the canvas: by its cell, or on hung levels by colour and shape."""
    words = f"{thing.colour} {thing.shape}" if colour or level.hung else thing.shape
    return f"the {words}" if level.hung else f"the {words} at {thing.cell}"


def by_anchor(anchor: Anchor | None, level: Level) -> str:
    """Such as "above the blue star"; nothing without an anchor."""
    return f"{anchor[0]} {pointed(anchor[1], level, colour=False)}" if anchor else ""


def _added(change: Change, level: Level) -> str:
    """Says what is added and where; the cell comes after the anchor, as it depends on it."""
    cell = "" if level.hung else f"at {change.after.cell}"
    return _joined(f"a {noun(change.after, level)}", by_anchor(change.anchor, level), cell)


def _joined(*words: str) -> str:
    return " ".join(filter(None, words))


def describe(
    things: Sequence[Object], level: Level, style: int = 0, anchors: Sequence[Anchor | None] = ()
) -> str:
    """The whole scene as a list. Style 1 is the shortest, style 2 has articles.

    `anchors` has one for each object, on hung levels.
    """
    if not things:
        return "nothing yet"
    if level.hung:
        places = [by_anchor(anchor, level).replace(" the ", " ") for anchor in anchors]
    else:
        places = [thing.cell if style == 1 else f"at {thing.cell}" for thing in things]
    article = "a" if style == 2 else ""
    items = (_joined(article, noun(thing, level), place) for thing, place in zip(things, places, strict=True))
    return listed(list(items), " and " if style == 2 else ", ")


def instruct(
    change: Change, level: Level, rng: Generator | None, phrases: Sequence[str] | None = None
) -> str:
    """Puts one change into words; without `rng`, by the first phrase. `phrases` replace the level's."""
    phrases = phrases or tables(level)[0][change.kind]
    phrase = pick(rng, phrases) if rng else phrases[0]
    if change.kind == "add":
        added = _added(change, level)
        return phrase.format(after=added, bare=added.removeprefix("a "))
    before = change.before
    after = change.other if change.kind == "swap" else change.after or before
    return phrase.format(
        it=f"{before.colour} {before.shape}",
        shape=before.shape,
        cell=before.cell,
        old=before.colour,
        colour=after.colour,
        new=after.shape,
        place=by_anchor(change.anchor, level) if level.hung else after.cell,
    ).strip()


def instruct_all(changes: Sequence[Change], level: Level, rng: Generator | None, first: bool) -> str:
    """Puts all changes of a step into words, additions as one list; without `rng`, in the fewest words."""
    added = [change for change in changes if change.kind == "add"]
    said = [instruct(change, level, rng) for change in changes if change.kind != "add"]
    if added and rng is None:
        anchors = [change.anchor for change in added]
        said.append(f"add {describe([change.after for change in added], level, 1, anchors)}")
    elif added:
        phrases = STARTS if first and rng.random() < 0.3 else None
        others = [_added(change, level) for change in added[1:]]
        said.append(" and ".join([instruct(added[0], level, rng, phrases), *others]))
    if rng is None or len(said) == 1:
        return ", ".join(said)
    return pick(rng, (" and ", ", ", ", then ")).join(said)


def approve(
    touched: Sequence[int], state: Mapping[int, Object], later: Sequence[Change], level: Level, rng: Generator
) -> str:
    """An inspection that finds nothing wrong.

    `touched` are the numbers of what this step has drawn or changed, `later` what the steps after it do.
    """
    if level.hung:
        return HUNG_FINE
    pending = [change.after.shape for change in later if change.kind == "add"]
    changing = [state[n] for change in later if change.kind != "add" for n in change.numbers if n in state]
    fields = {"number": f"{NUMBERS[len(state)]} object{'' if len(state) == 1 else 's'}"}
    if touched:
        thing = state[pick(rng, touched)]
        fields["thing"] = pointed(thing, level)
    text, more = pick(rng, FINE if touched else FINE[:7]).format(**fields), None
    if changing and rng.random() < 0.5:
        other = pick(rng, changing)
        more = pick(rng, TO_CHANGE).format(thing=pointed(other, level, colour=False))
    elif pending and rng.random() < 0.4:
        more = pick(rng, TO_COME).format(thing=f"a {pick(rng, pending)}")
    fits = more and count_tokens(text) + count_tokens(more) + 3 <= level.budget.inspect
    return f"{text}; {more}" if fits else text

"""Reads plan descriptions and objections of the scenes world; gives the judge's verdicts as JSON.

description := "nothing yet" | item (("," | "and") item)*
item        := ["a" | "an"] [size] colour shape ["at"] cell | cell [size] colour shape

and on levels without cells

item        := ["a" | "an"] colour shape [relation ["the"] colour shape]
"""

from __future__ import annotations

import collections
import functools
import itertools
import re
from typing import Any

import numpy as np

from process_gen.scenes.graph import OPPOSITE, Object, Scene, make_object
from process_gen.scenes.judge import Verdict, judge
from process_gen.scenes.language import CHANGES, FAULTS, HUNG_CHANGES, HUNG_FAULTS, MISSING
from process_gen.scenes.levels import Level, get_level
from process_gen.scenes.parse import parse
from process_gen.scenes.placement import hang
from process_gen.scenes.requests import Request

Objects = collections.Counter
"""A multiset of (shape, colour, cell): an object as descriptions name it."""

FAILURES = ("unclear", "shape", "missing", "extra", "count", "colour", "relation")
"""Kinds of failure of a final image; one image may have several.

    unclear     something on the canvas is no object of the vocabulary
    shape       there is too little of one shape and too much of another
    missing     too little of a shape, too much of none, and nothing unclear
    extra       too much of a shape that nobody asked for, too little of none
    count       too much of a shape that was asked for, too little of none
    colour      the judge found a colour wrong (it looks where the count is right)
    relation    the judge found a relation wrong, all counts and colours being right
"""


def read_description(text: str, level: str | Level) -> Scene | None:
    """Reads a plan's description, the inverse of `scenes.language.describe`; None outside the grammar."""
    level = get_level(level)
    items = [_words(item) for item in re.split(r",|\band\b", text.lower())]
    if items == [["nothing", "yet"]]:
        return Scene()
    if level.hung:
        return _read_hung(items, level)
    things = [_read_item(item, level) for item in items]
    return None if None in things else Scene(tuple(things))


def _read_hung(items: list[list[str]], level: Level) -> Scene | None:
    """Places each item by `placement.hang` among those before it; None where one cannot be read or placed."""
    things: list[Object] = []
    anchors: list[tuple[str, int] | None] = []
    for item in items:
        words = [word for word in item if word not in ("a", "an", "the", "of")]
        looks, relation, other = words[:2], " ".join(words[2:-2]), words[-2:]
        relation = f"{relation} of" if relation in ("left", "right") else relation
        index = next((i for i, one in enumerate(things) if [one.colour, one.shape] == other), None)
        if len(words) not in (2, 5) or (len(words) == 5 and (relation not in OPPOSITE or index is None)):
            return None
        colour, shape = looks
        if colour not in level.colours or shape not in level.shapes:
            return None
        anchor = (relation, index) if len(words) == 5 else None
        thing = Object(shape, colour, "", 0, 0, level.sizes[0][1])
        there = hang(thing, things, level, [(relation, things[index])] if anchor else [])
        if there is None:
            return None
        things.append(there)
        anchors.append(anchor)
    return Scene(tuple(things), tuple(anchors))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _read_item(words: list[str], level: Level) -> Object | None:
    """One object, or None where the words name none or several."""
    if words[:1] and words[0] in level.cell_index:
        words = words[1:] + words[:1]
    elif words[:1] and words[0] in ("a", "an"):
        words = words[1:]
    if words[-2:-1] == ["at"]:
        words = words[:-2] + words[-1:]
    sizes = dict(level.sizes) if level.sized else {}
    size = None
    if words[:1] and words[0] in sizes:
        size, words = sizes[words[0]], words[1:]
    if len(words) != 3:
        return None
    colour, shape, cell = words
    if colour not in level.colours or shape not in level.shapes or cell not in level.cell_index:
        return None
    return make_object(level, shape, colour, cell, size)


def changed_cells(instruction: str, level: str | Level) -> frozenset[str]:
    """The cells in which a plan's instruction changes something: those that it names.

    A cell that only locates another object does not count: c2 in "add a red star left of
    the ring at c2 at b2". On levels without cells: every "colour shape" of the colours and
    the shapes that are named outside a relation.
    """
    level = get_level(level)
    if level.hung:
        said = _words(re.sub(rf"({'|'.join(OPPOSITE)}) the \w+ \w+", "", instruction))
        named = itertools.product(set(said) & set(level.colours), set(said) & set(level.shapes))
        return frozenset(map(" ".join, named))
    known = level.cell_index
    following = itertools.pairwise([*_words(instruction), ""])
    return frozenset(word for word, after in following if word in known and after != "at")


KINDS = ("colour", "shape", "place", "missing", "extra")
"""Kinds of errors that an image shows, and that an inspection may name."""

_NAMED = {"many": "extra", "few": "missing"}
_REPAIRED = {"add": "missing", "move": "place", "swap": "place", "remove": "extra"}


@functools.cache
def _phrases() -> tuple[list[tuple[re.Pattern, str]], list[tuple[re.Pattern, str]]]:
    """Patterns of inspections that find a fault, and of corrections, each with its kind of error."""

    def pattern(phrase: str) -> re.Pattern:
        words = _words(re.sub(r"\{(\w+)\}", r"SLOT\1", phrase))
        several = {"slotwanted", "slotafter", "slotbare", "slotit", "slotplace"}
        parts = (".+" if w in several else r"\w+" if w.startswith("slot") else re.escape(w) for w in words)
        return re.compile(" ".join(parts))

    faults = [*FAULTS.items(), *HUNG_FAULTS.items()]
    repairs = [*CHANGES.items(), ("add", MISSING), *HUNG_CHANGES.items()]
    return tuple(
        [(pattern(text), names.get(kind, kind)) for kind, texts in table for text in texts]
        for table, names in ((faults, _NAMED), (repairs, _REPAIRED))
    )


def named_kind(inspection: str | None, correction: str | None) -> str:
    """The kind of error that an objection names: by its inspection, else by its correction; else `other`.

    A wrong number of objects is `extra` or `missing`.
    """
    for text, phrases in zip((inspection, correction), _phrases(), strict=True):
        said = " ".join(_words(text or ""))
        if kind := next((kind for one, kind in phrases if one.fullmatch(said)), None):
            return kind
    return "other"


def objects_of(scene: Scene) -> Objects:
    """The multiset of the objects of a scene, those that the parser calls unclear among them."""
    return Objects(thing.named for thing in scene.objects)


def verdict_of(request: Request, image: np.ndarray) -> dict[str, Any]:
    """The judge's verdict on a final image, as sampled trajectories carry it.

    Returns:
      `ok`; `constraints`, each with `text`, `ok` and `reason`; `failures`, kinds of
      `FAILURES` in that order; and the `group`.
    """
    scene = parse(image, request.level)
    verdict = judge(request, scene)
    return {
        "ok": verdict.correct,
        "constraints": [
            {"text": check.constraint, "ok": check.ok, "reason": check.reason} for check in verdict.checks
        ],
        "failures": _failures(request, scene, verdict),
        "group": request.category,
    }


def _failures(request: Request, scene: Scene, verdict: Verdict) -> list[str]:
    wanted = collections.Counter()
    for clause in request.clauses:
        wanted[clause.shape] += clause.count
    found = collections.Counter(thing.shape for thing in scene.objects if thing.clear)
    short, over = wanted - found, found - wanted
    judged = set(verdict.failures)
    kinds = judged & {"unclear", "colour"}
    if short and over:
        kinds.add("shape")
    elif short and "unclear" not in judged:
        kinds.add("missing")
    elif over and not short:
        kinds.update("count" if shape in wanted else "extra" for shape in over)
    if "relation" in judged and not judged & {"count", "colour"}:
        kinds.add("relation")
    return [kind for kind in FAILURES if kind in kinds]

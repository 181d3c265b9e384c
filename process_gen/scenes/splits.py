"""What training never sees: splits by composition, not by seed.

A request is held out if it holds at least one held-out composition, and a
training request holds none. There are four kinds:

    H1  a colour asked of a shape: 6 of the 42, one for each shape, six colours.
        Where a training prompt leaves the colour open the teacher may choose
        it, so the model can say and draw what no training prompt asks for.
    H2  two shapes together in one prompt: 3 of the 15 pairs.
    H3  a number of a shape: one n in 2..4 for each shape.
    H4  shape, relation, shape: a fifth of the triples, by hash ("A right of B"
        is "B left of A"); and two coloured shapes together: a fifth of the
        unordered pairs, by hash.

Every word of the language is seen in training; only ways to combine them are
not. Prompts for a single object are too few to hold any out (six of them):
there the two splits differ by the seed alone.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable
from typing import Literal

from process_gen.scenes.graph import OPPOSITE
from process_gen.scenes.levels import COLOURS, SHAPES

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")

HELD_OUT_COLOURED = frozenset(
    {
        ("purple", "circle"),
        ("green", "square"),
        ("red", "triangle"),
        ("blue", "star"),
        ("yellow", "cross"),
        ("white", "ring"),
    }
)
HELD_OUT_TOGETHER = frozenset(
    frozenset(pair) for pair in (("star", "ring"), ("ring", "triangle"), ("triangle", "cross"))
)
"""A path, so that four shapes can still meet in one training prompt."""

HELD_OUT_COUNTS = frozenset(
    {("triangle", 2), ("cross", 2), ("circle", 3), ("star", 3), ("square", 4), ("ring", 4)}
)


def _hashed(text: str) -> bool:
    return zlib.crc32(text.encode()) % 5 == 0


def canonical(subject: str, relation: str, target: str) -> tuple[str, str, str]:
    """The same fact told with `left of` or `above`."""
    if relation in ("left of", "above"):
        return subject, relation, target
    return target, OPPOSITE[relation], subject


HELD_OUT_RELATIONS = frozenset(
    (a, relation, b)
    for a, b in itertools.permutations(SHAPES, 2)
    for relation in ("left of", "above")
    if _hashed(f"{a} {relation} {b}")
)

HELD_OUT_PAIRS = frozenset(
    frozenset(pair)
    for pair in itertools.combinations(sorted(itertools.product(COLOURS, SHAPES)), 2)
    if _hashed(" and ".join(" ".join(one) for one in pair))
)


def held_out(
    things: Iterable[tuple[str, int, str | None]], relations: Iterable[tuple[str, str, str]] = ()
) -> list[str]:
    """Names every held-out composition of a request.

    Args:
      things: (shape, count, colour or None) of each clause.
      relations: (subject shape, relation, target shape).
    """
    things = tuple(things)
    found = [f"{colour} {shape}" for shape, _, colour in things if (colour, shape) in HELD_OUT_COLOURED]
    found += [f"{count} x {shape}" for shape, count, _ in things if (shape, count) in HELD_OUT_COUNTS]
    for (a, _, colour_a), (b, _, colour_b) in itertools.combinations(things, 2):
        if frozenset((a, b)) in HELD_OUT_TOGETHER:
            found.append(f"{a} with {b}")
        if colour_a and colour_b and frozenset(((colour_a, a), (colour_b, b))) in HELD_OUT_PAIRS:
            found.append(f"{colour_a} {a} with {colour_b} {b}")
    for relation in relations:
        if canonical(*relation) in HELD_OUT_RELATIONS:
            found.append(" ".join(relation))
    return found

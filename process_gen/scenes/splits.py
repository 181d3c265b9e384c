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
from collections.abc import Sequence
from typing import Literal

from process_gen.scenes.graph import OPPOSITE
from process_gen.scenes.levels import COLOURS, SHAPES
from process_gen.scenes.requests import Clause

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")

HELD_OUT_COLOURED = frozenset(zip(("purple", "green", "red", "blue", "yellow", "white"), SHAPES, strict=True))
HELD_OUT_TOGETHER = frozenset(map(frozenset, (("star", "ring"), ("ring", "triangle"), ("triangle", "cross"))))
FREE_SHAPES = 4
"""So many different shapes can occur together in a training prompt: the held-out pairs form a path."""

HELD_OUT_COUNTS = frozenset(zip(SHAPES, (3, 4, 2, 3, 2, 4), strict=True))


def _hashed(text: str) -> bool:
    return zlib.crc32(text.encode()) % 5 == 0


HELD_OUT_RELATIONS = frozenset(
    fact
    for a, b in itertools.permutations(SHAPES, 2)
    for relation in ("left of", "above")
    if _hashed(f"{a} {relation} {b}")
    for fact in ((a, relation, b), (b, OPPOSITE[relation], a))
)
"""(shape, relation, shape); each fact is listed in both directions."""

HELD_OUT_PAIRS = frozenset(
    frozenset(pair)
    for pair in itertools.combinations(sorted(itertools.product(COLOURS, SHAPES)), 2)
    if _hashed(" and ".join(" ".join(one) for one in pair))
)


def is_held_out(clauses: Sequence[Clause]) -> bool:
    """Whether a request holds any held-out composition."""
    pairs = list(itertools.combinations(clauses, 2))
    relations = [(c.shape, c.position[0], clauses[c.position[1]].shape) for c in clauses if c.position]
    return (
        any((c.colour, c.shape) in HELD_OUT_COLOURED for c in clauses)
        or any((c.shape, c.count) in HELD_OUT_COUNTS for c in clauses)
        or any(frozenset((a.shape, b.shape)) in HELD_OUT_TOGETHER for a, b in pairs)
        or any(frozenset(((a.colour, a.shape), (b.colour, b.shape))) in HELD_OUT_PAIRS for a, b in pairs)
        or any(relation in HELD_OUT_RELATIONS for relation in relations)
    )

"""The paper's mix of data as shapes alone: how long trajectories and texts are, and what rows of them hold.

Three subsets (paper, section 4; arXiv 2604.04746), of which it gives the sizes:

    32,012  multi-turn trajectories without inspections
    15,201  multi-turn trajectories, every step inspected; in 8,296 the last step is refined
     5,000  single drafts, inspected
    10,000  single drafts, inspected and refined

The paper gives 3.51 images of a trajectory on average and 5 at most: two to five are
drawn here, so that their mean is 3.5. It does not give lengths of texts: 40 to 100
tokens are assumed (of a smaller slot 40% to all of it), their brackets included. No
prompt has an input image.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from process_gen.data import lengths
from process_gen.data.lengths import Lengths
from process_gen.data.packing import Arrays, PackingReport
from process_gen.trajectory.layout import Layout

SUBSETS = {"multi_turn": 32_012, "conflict": 15_201, "aligned": 5_000, "misaligned": 10_000}
REFINED = 8_296
"""Of the trajectories of `conflict`."""
SHORTEST, LONGEST = 40, 100
"""Tokens of a text."""
TRAJECTORIES = 6_000


def draw(layout: Layout, trajectories: int = TRAJECTORIES, seed: int = 0) -> list[Lengths]:
    """Trajectories of the mix."""
    rng = np.random.default_rng(seed)
    names, sizes = zip(*SUBSETS.items(), strict=True)
    subsets = rng.choice(len(names), trajectories, p=np.array(sizes) / sum(sizes))
    return [_trajectory(layout, rng, names[subset]) for subset in subsets]


def _trajectory(layout: Layout, rng: np.random.Generator, subset: str) -> Lengths:
    single = subset in ("aligned", "misaligned")
    drafts = 1 if single else int(rng.integers(2, 6))
    refined = subset == "misaligned" or (
        subset == "conflict" and rng.random() < REFINED / SUBSETS["conflict"]
    )
    turns = drafts + refined
    refines = np.arange(turns) >= drafts
    inspected = ~refines & (subset != "multi_turn")
    targets = [0] * turns
    if refined:
        targets[-2] = 1
    return Lengths(
        prompt=_text(layout.prompt, rng),
        before=tuple(_text(layout.before, rng) for _ in range(turns)),
        after=tuple(_text(layout.after, rng, there) for there in inspected),
        refines=tuple(refines.tolist()),
        targets=tuple(targets),
        images=(True,) * turns,
    )


def _text(slot: int, rng: np.random.Generator, there: bool = True) -> int:
    longest = min(LONGEST, slot)
    if not there or not slot:
        return 0
    shortest = SHORTEST if longest == LONGEST else max(1, round(0.4 * longest))
    return int(rng.integers(shortest, longest + 1))


def rows(layout: Layout, trajectories: int = TRAJECTORIES, seed: int = 0) -> Iterator[Arrays]:
    """Batches of one packed row of the mix, until all trajectories have been read."""
    return lengths.rows(layout, draw(layout, trajectories, seed))


def report(layout: Layout, trajectories: int = TRAJECTORIES) -> PackingReport:
    """What share of the tokens of a row is useful at the mix, and what the others are."""
    return lengths.report(layout, draw(layout, trajectories))

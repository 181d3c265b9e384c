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

import grain
import numpy as np

from process_gen.data.encode import TooLong
from process_gen.data.packing import PackedBatches, PackingReport, Policy, packing_stats
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Stage, stage_bits

SUBSETS = {"multi_turn": 32_012, "conflict": 15_201, "aligned": 5_000, "misaligned": 10_000}
REFINED = 8_296
"""Of the trajectories of `conflict`."""
SHORTEST, LONGEST = 40, 100
"""Tokens of a text."""
TRAJECTORIES = 6_000

Arrays = dict[str, np.ndarray]


def draw(layout: Layout, trajectories: int = TRAJECTORIES, seed: int = 0) -> list[Arrays]:
    """Trajectories of the mix as `encode_trajectory` gives them; images and latents have no pixels."""
    rng = np.random.default_rng(seed)
    names, sizes = zip(*SUBSETS.items(), strict=True)
    subsets = rng.choice(len(names), trajectories, p=np.array(sizes) / sum(sizes))
    return [_trajectory(layout, rng, names[subset]) for subset in subsets]


def _trajectory(layout: Layout, rng: np.random.Generator, subset: str) -> Arrays:
    single = subset in ("aligned", "misaligned")
    drafts = 1 if single else int(rng.integers(2, 6))
    refined = subset == "misaligned" or (
        subset == "conflict" and rng.random() < REFINED / SUBSETS["conflict"]
    )
    turns = drafts + refined
    refines = np.arange(turns) >= drafts
    inspected = ~refines & (subset != "multi_turn")
    target = np.zeros(turns, np.int32)
    if refined:
        target[-2] = 1
    ones = np.ones(turns, np.float32)
    fields = {
        "prompt_tokens": _text(layout.prompt, rng),
        "prompt_index": np.zeros(turns, np.int32),
        "present": np.ones(turns, bool),
        "is_first": np.arange(turns) == 0,
        "is_last": np.arange(turns) == turns - 1,
        "refines": refines,
        "has_image": np.ones(turns, bool),
        "source": np.zeros(turns, np.int32),
        "supervised": np.full(turns, stage_bits(Stage), np.int32),
        "before_tokens": np.stack([_text(layout.before, rng) for _ in range(turns)]),
        "after_tokens": np.stack([_text(layout.after, rng, there) for there in inspected]),
        "image": np.zeros((turns, 0), np.uint8),
        "target": target,
        **{f"{name}_weight": ones for name in ("before", "image", "after")},
    }
    if layout.prompt_image:
        fields |= {"prompt_image": np.zeros(0, np.uint8), "has_prompt_image": np.array(False)}
    if layout.instruction:
        fields["instruction_tokens"] = np.full(layout.instruction, PAD_ID, np.int32)
    return fields


def _text(slot: int, rng: np.random.Generator, there: bool = True) -> np.ndarray:
    tokens, longest = np.full(slot, PAD_ID, np.int32), min(LONGEST, slot)
    if there and slot:
        shortest = SHORTEST if longest == LONGEST else max(1, round(0.4 * longest))
        tokens[: rng.integers(shortest, longest + 1)] = 0
    return tokens


def rows(layout: Layout, trajectories: int = TRAJECTORIES, seed: int = 0) -> Iterator[Arrays]:
    """Batches of one packed row of the mix, until all trajectories have been read."""

    def encode(part: Arrays) -> Arrays:
        if (turns := len(part["present"])) > layout.turns:
            raise TooLong(turns, layout.turns)
        return part

    stream = grain.MapDataset.source(draw(layout, trajectories, seed))
    identity = {"mix": "paper"}
    return iter(PackedBatches({0: stream}, encode, layout, 8, Policy(), identity, epoch=trajectories))


def report(layout: Layout, trajectories: int = TRAJECTORIES) -> PackingReport:
    """What share of the tokens of a row is useful at the mix, and what the others are."""
    return packing_stats(rows(layout, trajectories), layout)

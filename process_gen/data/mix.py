"""Packing of a layout measured on texts alone, for any trajectories and for the paper's data mix.

Three subsets (paper, section 4; arXiv 2604.04746), of these sizes:

    32,012  multi-turn trajectories without inspections
    15,201  multi-turn trajectories, every step inspected; in 8,296 the last step is refined
     5,000  single drafts, inspected
    10,000  single drafts, inspected and refined

The paper gives 3.51 images of a trajectory on average and 5 at most: two to five are
drawn here, so that their mean is 3.5. It does not give lengths of texts: 40 to 100
tokens are assumed (in a slot below 100, 40% to all of it), their brackets included. No
prompt has an input image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from process_gen.data.loader import Loader, make_loader
from process_gen.data.packing import Policy
from process_gen.data.tokenizers import Tokenizer
from process_gen.trajectory import markup
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Trajectory, Turn

SUBSETS = {"multi_turn": 32_012, "conflict": 15_201, "aligned": 5_000, "misaligned": 10_000}
REFINED = 8_296
"""Trajectories of `conflict` whose last step is refined."""
SHORTEST, LONGEST = 40, 100
"""Tokens of a text."""
TRAJECTORIES = 6_000
NO_PIXELS = np.zeros((0, 0, 3), np.uint8)


def without_pixels(trajectory: Trajectory) -> Trajectory:
    """Returns what packing needs of a trajectory: images have no pixels, metadata and own fields are gone."""

    def bare(image: np.ndarray | None) -> np.ndarray | None:
        return None if image is None else NO_PIXELS

    turns = [dataclasses.replace(turn, image=bare(turn.image), extra={}) for turn in trajectory.turns]
    given = bare(trajectory.prompt_image)
    return dataclasses.replace(trajectory, turns=tuple(turns), prompt_image=given, metadata={})


def without_size(layout: Layout) -> Layout:
    """The layout of trajectories `without_pixels`."""
    return dataclasses.replace(layout, image_size=(0, 0), fields=())


def loader_of(
    layout: Layout, found: Sequence[Trajectory], tokenizer: Tokenizer, split: bool = False
) -> Loader:
    """Packs trajectories `without_pixels`, in their order, one row a batch; what does not fit is left out.

    `split` splits trajectories that are longer than a row, as `config.data.on_long=split` does.
    """
    policy = Policy("skip", 1.0, "split" if split else "drop")
    return make_loader(
        found, tokenizer, without_size(layout), 1, shuffle=False, epochs=1, prefetch=0, policy=policy
    )


# ------------------------------------------------------------- the mix


class Letters:
    """Stands for a tokenizer of the texts that `draw` makes: each letter `a` is a token, and nothing else."""

    im_start = im_end = 0

    def encode(self, text: str) -> list[int]:
        return [0] * text.count("a")


def paper_loader(layout: Layout, trajectories: int = TRAJECTORIES, seed: int = 0) -> Loader:
    """Packs trajectories of the paper's mix, in batches of one row; a step may be corrected in any layout."""
    found = draw(layout, trajectories, seed)
    return loader_of(dataclasses.replace(layout, corrections=max(1, layout.corrections)), found, Letters())


def draw(layout: Layout, trajectories: int = TRAJECTORIES, seed: int = 0) -> list[Trajectory]:
    """Draws trajectories of the paper's mix, without pixels, their texts for `Letters`."""
    rng = np.random.default_rng(seed)
    names, sizes = zip(*SUBSETS.items(), strict=True)
    subsets = rng.choice(len(names), trajectories, p=np.array(sizes) / sum(sizes))
    return [_trajectory(layout, rng, names[subset]) for subset in subsets]


def _trajectory(layout: Layout, rng: np.random.Generator, subset: str) -> Trajectory:
    single = subset in ("aligned", "misaligned")
    drafts = 1 if single else int(rng.integers(2, 6))
    refined = subset == "misaligned" or (
        subset == "conflict" and rng.random() < REFINED / SUBSETS["conflict"]
    )
    prompt = f"- {_text(layout.prompt, rng) or ''}"
    texts = [_text(layout.before, rng) for _ in range(drafts + refined)]
    turns = []
    for i, text in enumerate(texts):
        refines = i >= drafts
        if text is not None:
            text = markup.write_refine(text) if refines else markup.write_plan(markup.Plan(text, ""))
        after = None if refines or subset == "multi_turn" else _text(layout.after, rng)
        turns.append(Turn(NO_PIXELS, text, after, refines, image_ok=not (refined and i == drafts - 1)))
    return Trajectory(prompt, tuple(turns))


def _text(slot: int, rng: np.random.Generator) -> str | None:
    """Draws a text that fits a slot with its two brackets; None where there is no room for them."""
    longest = min(LONGEST, slot)
    if longest < 2:
        return None
    shortest = SHORTEST if longest == LONGEST else max(2, round(0.4 * longest))
    return "a" * (int(rng.integers(shortest, longest + 1)) - 2)

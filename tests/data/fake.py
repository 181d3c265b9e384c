"""Batches of random content and valid structure: for tests, tracing and timing.

A fake batch needs no data set, no tokenizer and no image: it has what a packed
batch may have (several trajectories in a row, drafts that are corrected once, twice
or not at all, slips, a trajectory without plan, empty slots at the end of a row) and
the shapes and types of `Batch.spec(layout, batch_size)`.
"""

from __future__ import annotations

import itertools

import numpy as np

from process_gen.trajectory.batch import EXTRA, PAD_ID, Batch, fill_value
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Stage, stage_bits

IM_START, IM_END = 3, 4
"""Ids of the two text brackets, as every tokenizer of this package has them."""
FIRST_WORD = 13
"""The first id that is neither control nor markup; where it is drawn, 0 stands."""


def fake_batch(layout: Layout, batch_size: int, seed: int = 0, vocab: int = 64) -> dict[str, np.ndarray]:
    """Returns the fields of a `Batch`, the same ones for the same arguments; ids stay below `vocab`."""
    rng = np.random.default_rng(seed)
    rows = [_fake_row(layout, rng, vocab) for _ in range(batch_size)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    extra = {name.removeprefix(EXTRA): batch.pop(name) for name in [*batch] if name.startswith(EXTRA)}
    return batch | ({"extra": extra} if extra else {})


def empty_row(layout: Layout) -> dict[str, np.ndarray]:
    """Returns one row without any trajectory: the shapes and types of all fields."""
    spec = dict(vars(Batch.spec(layout, 1)))
    spec |= {f"{EXTRA}{name}": field for name, field in (spec.pop("extra") or {}).items()}
    there = {name: field for name, field in spec.items() if field is not None}
    return {name: np.full(x.shape[1:], fill_value(name), x.dtype) for name, x in there.items()}


def _fake_row(layout: Layout, rng: np.random.Generator, vocab: int) -> dict[str, np.ndarray]:
    row = empty_row(layout)
    start = 0
    for index in range(layout.trajectories):
        free = layout.turns - start - (layout.trajectories - 1 - index)
        # The first trajectory may fill the row; later ones may leave slots empty.
        length = int(rng.integers(1, free + 1))
        row["prompt_tokens"][index] = _fake_text(layout.prompt, rng, vocab)
        _fake_input(row, index, rng, vocab)
        _fake_turns(row, start, length, index, layout.corrections, rng, vocab)
        start += length
    return row


def _fake_input(row, index: int, rng, vocab: int) -> None:
    """Fills what the layout has room for besides the text of a prompt, for most prompts, in place."""
    if "has_prompt_image" not in row or rng.random() < 0.3:
        return
    row["has_prompt_image"][index] = True
    row["prompt_image"][index] = rng.integers(0, 256, row["prompt_image"].shape[1:], np.uint8)
    if "instruction_tokens" in row:
        row["instruction_tokens"][index] = _fake_text(row["instruction_tokens"].shape[1], rng, vocab)


def _fake_turns(row, start: int, length: int, index: int, corrections: int, rng, vocab: int) -> None:
    """Fills the turn slots of one trajectory of `row` in place."""
    slots = range(start, start + length)
    refines = [False] * length
    for i in range(1, length):
        run = next((n for n in range(i) if not refines[i - 1 - n]), 0)  # corrections just before
        refines[i] = run < corrections and rng.random() < 0.4
    row["refines"][slots] = refines
    row["prompt_index"][slots], row["present"][slots] = index, True
    row["has_image"][slots], row["supervised"][slots] = True, stage_bits(Stage)
    row["is_first"][start] = row["is_last"][start + length - 1] = True
    image = row["image"]
    image[slots] = rng.integers(0, 256, (length, *image.shape[1:]), np.uint8)
    for name in ("before_weight", "image_weight", "after_weight"):
        row[name][slots] = 1.0
    for i, slot in enumerate(slots):
        corrected = sum(itertools.takewhile(bool, refines[i + 1 :]))  # how often, from here on
        if not (length == 1 and rng.random() < 0.3):  # else an image straight from the prompt
            row["before_tokens"][slot] = _fake_text(row["before_tokens"].shape[1], rng, vocab)
        if corrected or rng.random() < 0.4:
            row["after_tokens"][slot] = _fake_text(row["after_tokens"].shape[1], rng, vocab)
        if corrected:
            row["target"][slot] = corrected
            row["before_weight"][slot] = float(rng.random() < 0.7)
        elif i + 1 < length and rng.random() < 0.15:  # a slip that nobody noticed
            row["target"][slot] = -1


def _fake_text(slot: int, rng: np.random.Generator, vocab: int) -> np.ndarray:
    """Returns a text of random length with its brackets, padded to `slot`."""
    if slot < 2:
        return np.full(slot, PAD_ID, np.int32)
    words = rng.integers(FIRST_WORD, vocab, int(rng.integers(min(1, slot - 2), max(slot - 1, 1))))
    words[words == FIRST_WORD] = 0  # in published vocabularies 0 is a piece of text
    ids = [IM_START, *words.tolist(), IM_END]
    return np.asarray(ids[:slot] + [PAD_ID] * (slot - len(ids)), np.int32)

"""Batches of random content and valid structure: for tests, tracing and timing.

A fake batch needs no data set, no tokenizer and no image: it has what a packed
batch may have (several trajectories in a row, refined and unrefined steps,
slips, a trajectory without plan, empty slots at the end of a row) and the
shapes and types of `Batch.spec(layout, batch_size)`.
"""

from __future__ import annotations

import numpy as np

from process_gen.trajectory.batch import PAD_ID, Batch, blank
from process_gen.trajectory.layout import Layout

IM_START, IM_END = 3, 4
"""Ids of the two text brackets, as every tokenizer of this package has them."""
FIRST_WORD = 13
"""The first id that is neither control nor markup; where it is drawn, 0 stands."""


def fake_batch(layout: Layout, batch_size: int, seed: int = 0, vocab: int = 64) -> dict[str, np.ndarray]:
    """Returns the fields of a `Batch`, the same ones for the same arguments.

    Args:
      layout: sizes of a row.
      batch_size: number of rows.
      seed: draws everything.
      vocab: ids stay below it.
    """
    if vocab <= FIRST_WORD:
        raise ValueError(f"a fake batch needs a vocabulary of more than {FIRST_WORD} ids, got {vocab}")
    rng = np.random.default_rng(seed)
    rows = [_fake_row(layout, rng, vocab) for _ in range(batch_size)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def empty_row(layout: Layout) -> dict[str, np.ndarray]:
    """Returns one row without any trajectory: the shapes and types of all fields."""
    spec = vars(Batch.spec(layout, 1))
    there = {name: field for name, field in spec.items() if field is not None}
    return {name: np.full(x.shape[1:], blank(name), x.dtype) for name, x in there.items()}


def _fake_row(layout: Layout, rng: np.random.Generator, vocab: int) -> dict[str, np.ndarray]:
    row = empty_row(layout)
    start = 0
    for index in range(layout.trajectories):
        free = layout.steps - start - (layout.trajectories - 1 - index)
        # The first trajectory may fill the row; later ones may leave slots empty.
        length = int(rng.integers(1, free + 1))
        row["prompt_tokens"][index] = _fake_text(layout.prompt, rng, vocab)
        _fake_input(row, index, rng, vocab)
        for slot in range(start, start + length):
            _fake_step(row, slot, index, slot == start, slot == start + length - 1, rng, vocab)
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


def _fake_step(row, slot: int, index: int, first: bool, last: bool, rng, vocab: int) -> None:
    """Fills one step slot of `row` in place."""

    def text(name):
        row[name][slot] = _fake_text(row[name].shape[1], rng, vocab)

    row["prompt_index"][slot] = index
    row["present"][slot], row["reset"][slot], row["last"][slot] = True, first, last
    kind = rng.choice(["silent", "inspected", "refined", "slip"], p=[0.2, 0.3, 0.35, 0.15])
    if kind == "slip" and last:
        kind = "refined"
    if not (first and last and rng.random() < 0.3):  # else an image straight from the prompt
        text("plan_tokens")
    row["sketch"][slot] = rng.integers(0, 256, row["sketch"].shape[1:], np.uint8)
    row["sketch_ok"][slot] = kind in ("silent", "inspected")
    row["plan_ok"][slot] = kind != "refined" or slot % 2 == 0
    if kind in ("inspected", "refined"):
        text("inspect_tokens")
    if kind == "refined":
        text("refine_tokens")
        row["refined"][slot] = rng.integers(0, 256, row["refined"].shape[1:], np.uint8)


def _fake_text(slot: int, rng: np.random.Generator, vocab: int) -> np.ndarray:
    """Returns a text of random length with its brackets, padded to `slot`."""
    words = rng.integers(FIRST_WORD, vocab, int(rng.integers(min(1, slot - 2), max(slot - 1, 1))))
    words[words == FIRST_WORD] = 0  # in published vocabularies 0 is a piece of text
    ids = [IM_START, *words.tolist(), IM_END]
    return np.asarray(ids[:slot] + [PAD_ID] * (slot - len(ids)), np.int32)

"""What `check` says of a set: tables, histograms, and the layout that would hold it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from process_gen.data import lengths
from process_gen.data.checking import Findings
from process_gen.trajectory.layout import Layout

SLOTS = ("prompt", "instruction", "before", "after")
STEP = 8
"""Suggested slots are multiples of it."""
ROW = 8
"""Turn slots of a suggested row, at least: several trajectories fill it better than one."""
BARS = 12
"""Lines of a histogram."""


def quantile(counts: Mapping[int, int], share: float) -> int:
    """The smallest length that so large a share of the texts does not exceed; 0 of none."""
    if not counts:
        return 0
    values = sorted(counts)
    total = np.cumsum([counts[value] for value in values])
    return values[int(np.searchsorted(total, share * total[-1]))]


def suggest(found: Findings, layout: Layout) -> Layout:
    """The layout with slots for every text, and rows for every trajectory, of those that were read.

    A slot is as long as its longest text, rounded up. Images and context stay as they are.
    """

    def slot(name: str) -> int:
        longest = max(found.tokens.get(name, ()), default=0)
        return -(-longest // STEP) * STEP

    turns = max(max(found.turns, default=1), ROW)
    mean = sum(n * count for n, count in found.turns.items()) / max(found.good, 1)
    return dataclasses.replace(
        layout,
        **{name: slot(name) for name in SLOTS if name != "prompt"},
        prompt=max(slot("prompt"), STEP),
        prompt_image=any(one.prompt_image for one in found.lengths),
        turns=turns,
        trajectories=max(1, min(turns, round(turns / max(mean, 1.0)) + 1)),
        corrections=max(found.corrections, default=0),
    )


def flags(layout: Layout, other: Layout) -> str:
    """What makes a layout of another one, as flags of a config."""
    fields = (*SLOTS, "prompt_image", "turns", "trajectories", "corrections")
    return " ".join(
        f"--config.layout.{name}={getattr(other, name)}"
        for name in fields
        if getattr(layout, name) != getattr(other, name)
    )


def slots_table(found: Findings, layout: Layout) -> list[tuple]:
    """Rows of slot, texts, mean, median, 95%, 99%, longest, room in the layout, texts that do not fit."""
    rows = []
    for name in SLOTS:
        counts = found.tokens.get(name, collections.Counter())
        total, room = sum(counts.values()), getattr(layout, name)
        if not total:
            continue
        mean = sum(n * count for n, count in counts.items()) / total
        over = sum(count for n, count in counts.items() if n > room)
        shares = (quantile(counts, share) for share in (0.5, 0.95, 0.99))
        rows.append((name, total, mean, *shares, max(counts), room, over))
    return rows


SLOTS_HEADERS = ("slot", "texts", "mean", "median", "95%", "99%", "longest", "room", "too long")


def histogram(counts: Mapping[int, int], width: int = 40) -> Iterator[str]:
    """Lines of a bar chart of lengths, `BARS` of them at most."""
    if not counts:
        return
    low, high = min(counts), max(counts)
    size = max(1, -(-(high - low + 1) // BARS))
    bins = [0] * (-(-(high - low + 1) // size))
    for value, count in counts.items():
        bins[(value - low) // size] += count
    most, digits = max(bins), len(str(high))
    for place, count in enumerate(bins):
        start = low + place * size
        label = f"{start:>{digits}}" + (f"-{start + size - 1:<{digits}}" if size > 1 else "")
        yield f"  {label}  {'#' * -(-width * count // most)} {count:,}".rstrip()


def useful(found: Findings, layout: Layout, split: bool) -> float | None:
    """Share of the tokens of a row that hold something; None where no trajectory fits.

    `split` says whether those that are longer than a row are split or left out.
    """
    try:
        return lengths.report(layout, found.lengths, split).useful
    except ValueError:
        return None

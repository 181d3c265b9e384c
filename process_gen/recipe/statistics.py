"""What the subsets of a recipe hold, beside the paper's figures."""

from __future__ import annotations

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import tqdm

from process_gen.data.tokenizers import Tokenizer
from process_gen.recipe.building import SUBSETS
from process_gen.recipe.output import REJECTED, read_lines
from process_gen.reports.listing import NAME
from process_gen.reports.table import table

PAPER = {
    ("multi_turn", "samples: multi_turn"): 32_012,
    ("multi_turn", "intermediate images, mean"): 3.51,
    ("multi_turn", "intermediate images, most"): 5,
    ("multi_turn", "prompt tokens, mean"): 152.8,
    ("conflict", "samples: consistent"): 6_905,
    ("conflict", "samples: conflicting"): 8_296,
    ("alignment", "samples: aligned"): 5_000,
    ("alignment", "samples: misaligned"): 10_000,
}
"""Figures of arXiv 2604.04746; where it gives none there is none."""


@dataclasses.dataclass
class Subset:
    """Sums over the samples of a subset."""

    samples: int = 0
    turns: int = 0
    most: int = 0
    tokens: int = 0
    rewritten: int = 0
    corrections: int = 0
    imageless: int = 0
    kinds: Counter = dataclasses.field(default_factory=Counter)
    steps: Counter = dataclasses.field(default_factory=Counter)
    origins: Counter = dataclasses.field(default_factory=Counter)
    rejected: Counter = dataclasses.field(default_factory=Counter)

    def add(self, line: dict[str, Any], tokenizer: Tokenizer) -> None:
        """Counts a line of a listing."""
        facts, turns = line["metadata"], line["turns"]
        images = sum("image" in turn and "refine" not in turn for turn in turns)
        self.samples += 1
        self.turns += images
        self.most = max(self.most, images)
        self.tokens += len(tokenizer.encode(line["prompt"]))
        self.kinds[facts["kind"]] += 1
        steps = [set(kinds) - {"add"} for kinds in facts.get("kinds", ())]
        self.rewritten += any(steps)
        for step in steps:
            self.steps.update(step or {"add"})
        if "origin" in facts:
            self.origins[facts["origin"]] += 1
        refines = [turn for turn in turns if "refine" in turn]
        self.corrections += bool(refines)
        self.imageless += any("image" not in turn for turn in refines)

    def figures(self) -> Iterator[tuple[str, float]]:
        """Names and values."""
        for kind, count in sorted(self.kinds.items()):
            yield f"samples: {kind}", count
        yield "intermediate images, mean", self.turns / self.samples
        yield "intermediate images, most", self.most
        yield "prompt tokens, mean", self.tokens / self.samples
        if total := self.steps.total():
            yield "share of trajectories with a rewrite", self.rewritten / self.samples
            for kind, count in self.steps.most_common():
                yield f"share of steps: {kind}", count / total
        for origin, count in self.origins.most_common():
            yield f"share that is {origin}", count / self.samples
        if self.corrections:
            yield "share of corrections without an image", self.imageless / self.corrections
        for reason, count in self.rejected.most_common():
            yield f"rejected: {reason}", count


def count(workdir: pathlib.Path, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
    """The figures of every subset that is there, by name.

    Raises:
      ReportError: a listing is broken.
    """
    found = {}
    for name in SUBSETS:
        subset = Subset()
        for line in tqdm.tqdm(read_lines(workdir / name / NAME), desc=name, unit=" samples", mininterval=1.0):
            subset.add(line, tokenizer)
        for line in read_lines(workdir / name / REJECTED):
            subset.rejected[line["reason"]] += 1
        if subset.samples:
            found[name] = dict(subset.figures())
    return found


def describe(found: dict[str, dict[str, float]]) -> str:
    """The figures as a table, the paper's beside them."""
    rows = []
    for name, figures in found.items():
        for figure, value in figures.items():
            rows.append([name, figure, _shown(value), _shown(PAPER.get((name, figure)))])
    return table(rows, ("subset", "figure", "here", "paper"))


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"

"""What the subsets of a recipe hold, beside the paper's figures."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import tqdm

from process_gen.data.tokenizers import Tokenizer
from process_gen.recipe.building import SUBSETS
from process_gen.recipe.output import REJECTED, read_lines
from process_gen.reports.listing import NAME
from process_gen.reports.table import cell, table

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


def count(workdir: pathlib.Path, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
    """The figures of every subset that is there, by name.

    Raises:
      ReportError: a listing is broken.
    """
    found = {}
    for name in SUBSETS:
        lines, rejected = (read_lines(workdir / name / listing) for listing in (NAME, REJECTED))
        lines = tqdm.tqdm(lines, desc=name, unit=" samples", mininterval=1.0)
        if figures := _figures(lines, rejected, tokenizer):
            found[name] = figures
    return found


def _figures(
    lines: Iterable[dict[str, Any]], rejected: Iterable[dict[str, Any]], tokenizer: Tokenizer
) -> dict[str, float]:
    """Names and values of a subset, from the lines of its listings; none where it has no sample."""
    kinds, steps, origins = Counter(), Counter(), Counter()
    images, tokens = [], 0
    rewritten = corrections = imageless = 0
    for line in lines:
        facts, turns = line["metadata"], line["turns"]
        images.append(sum("image" in turn and "refine" not in turn for turn in turns))
        tokens += len(tokenizer.encode(line["prompt"]))
        kinds[facts["kind"]] += 1
        changes = [set(step) - {"add"} for step in facts.get("kinds", ())]
        rewritten += any(changes)
        for change in changes:
            steps.update(change or {"add"})
        if "origin" in facts:
            origins[facts["origin"]] += 1
        refines = [turn for turn in turns if "refine" in turn]
        corrections += bool(refines)
        imageless += any("image" not in turn for turn in refines)
    reasons = Counter(line["reason"] for line in rejected)
    if not (samples := len(images)):
        return {}
    found: dict[str, float] = {f"samples: {kind}": count for kind, count in sorted(kinds.items())}
    found["intermediate images, mean"] = sum(images) / samples
    found["intermediate images, most"] = max(images)
    found["prompt tokens, mean"] = tokens / samples
    if total := steps.total():
        found["share of trajectories with a rewrite"] = rewritten / samples
        found |= {f"share of steps: {kind}": count / total for kind, count in steps.most_common()}
    found |= {f"share that is {origin}": count / samples for origin, count in origins.most_common()}
    if corrections:
        found["share of corrections without an image"] = imageless / corrections
    return found | {f"rejected: {reason}": count for reason, count in reasons.most_common()}


def describe(found: dict[str, dict[str, float]]) -> str:
    """The figures as a table, the paper's beside them."""
    rows = []
    for name, figures in found.items():
        for figure, value in figures.items():
            rows.append([name, figure, cell(value, 2), cell(PAPER.get((name, figure)), 2)])
    return table(rows, ("subset", "figure", "here", "paper"))

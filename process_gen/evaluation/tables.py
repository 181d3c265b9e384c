"""Cells side by side: tables, comparisons, and the refusal of what cannot be compared."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from process_gen.evaluation.outsiders import ROLES
from process_gen.evaluation.results import Cell, ResultsError
from process_gen.evaluation.statistics import Interval, difference, holm, p_value

Table = tuple[list[str], list[list[Any]]]
"""Headers and rows; an entry may be an `Interval`, which is formatted when it is printed."""

COSTS = {"steps": "steps", "sampling_steps": "Euler steps per image", "seconds": "seconds per image"}
"""Means that tables show, and what they are called there."""

MUST_AGREE = ("version", "prompts", "judge", "flow_steps")
"""What cells of one table have in common; of the judge it is name, revision and protocol."""


FEW = 6
"""Most cells that get a column each; more of them are rows (`ranking`)."""


class Incomparable(ResultsError):
    """Cells that would mislead in one table; the message says what differs and how to allow it."""


def check_comparable(cells: Sequence[Cell], allow: Collection[str] = ()) -> None:
    """Checks that cells of one task may stand in one table; `allow` is what of `MUST_AGREE` may differ.

    Raises:
      Incomparable: names the first two cells that differ, and in what.
    """
    names = labels(cells)
    for key in MUST_AGREE:
        if key in allow:
            continue
        # Images of another program have no settings.
        some = [
            (name, _told(cell, key))
            for name, cell in zip(names, cells, strict=True)
            if key != "flow_steps" or cell.settings
        ]
        for name, value in some[1:]:
            if value != some[0][1]:
                raise Incomparable(
                    f"{some[0][0]} and {name} cannot stand in one table: their {key} differ "
                    f"({some[0][1]} and {value}); --allow={key} compares them all the same"
                )


def _told(cell: Cell, key: str) -> str:
    if key == "judge":
        return " ".join(map(str, cell.judge.values()))
    return str(cell.settings.get(key) if key == "flow_steps" else getattr(cell, key))


def labels(cells: Sequence[Cell], without: Collection[str] = ()) -> list[str]:
    """A name for each cell: its arm and the facts in which the cells differ, except those in `without`."""
    facts = [
        {
            "checkpoint": run,
            **({} if step is None else {"step": step}),
            **({"which": which} if (which := cell.checkpoint.get("which")) else {}),
            **{key: value for key, value in cell.settings.items() if key not in _OF_ARMS},
        }
        for cell in cells
        for run, step in [run_and_step(cell)]
    ]
    keys = dict.fromkeys(key for one in facts for key in one if key not in without)
    told, arms = list(zip(cells, facts, strict=True)), {cell.arm for cell in cells}
    for role in ROLES:  # left out where each arm has one outsider, whom its name tells
        if len({(cell.arm, one.get(role)) for cell, one in told}) == len(arms):
            keys.pop(role, None)
    differ = [key for key in keys if len({str(one[key]) for one in facts if key in one}) > 1]
    made = []
    for cell, one in told:
        words = [
            str(one[key]) if key == "checkpoint" else f"{key}={one[key]}" for key in differ if key in one
        ]
        made.append(" ".join([cell.arm, *words]))
    return made


def run_and_step(cell: Cell) -> tuple[str, int | None]:
    """The source of the weights and None; for a checkpoint of a run, the run's folder and the step."""
    source = str(cell.checkpoint.get("source", ""))
    run, found, step = source.rpartition("/checkpoints/")
    return (run, int(step)) if found and step.isdigit() else (source, None)


_OF_ARMS = ("mode", "max_steps", "inspections", "digest", "source", "task", "version", "which")
"""Settings that `labels` leaves out, since the arm's name or the checkpoint tells them."""


def by_task(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells of each task."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.task, []).append(cell)
    return found


def group_table(cells: Sequence[Cell]) -> Table:
    """One row per group with each cell's mean score and 95% interval; then scores, costs, missing images."""
    groups = dict.fromkeys(group for cell in cells for group in cell.groups)
    rows: list[list[Any]] = []
    for group in groups:
        n = max(len(cell.of_group(group)) for cell in cells)
        rows.append([group, n, *(cell.groups.get(group) for cell in cells)])
    for name in dict.fromkeys(name for cell in cells for name in cell.scores):
        n = max(sum(len(cell.of_group(g)) for g in cell.formulas.get(name, ())) for cell in cells)
        rows.append([name, n, *(cell.scores.get(name) for cell in cells)])
    for name in dict.fromkeys(name for cell in cells for name in cell.summary):
        rows.append([name, None, *(_short(cell.summary.get(name)) for cell in cells)])
    means = [cell.means() for cell in cells]
    for key, name in COSTS.items() if any(means) else ():
        rows.append([name, None, *(_short(one.get(key)) for one in means)])
    for key in ("unjudged", "missing"):
        counts = [getattr(cell, key) for cell in cells]
        if any(counts):
            rows.append([key, None, *counts])
    return ["group", "images", *(f"{name} (95% interval)" for name in labels(cells))], rows


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def ranking(cells: Sequence[Cell]) -> Table:
    """A row for each of many cells, the best one first: score and costs."""
    rows = []
    for name, cell in zip(labels(cells), cells, strict=True):
        means, score = cell.means(), next(iter(cell.scores.values()), None)
        costs = [_short(means.get(key)) for key in COSTS]
        gaps = [getattr(cell, key) or None for key in ("unjudged", "missing")]
        rows.append([name, len(cell.outcomes), score, *costs, *gaps])
    rows.sort(key=lambda row: row[2].mean if row[2] else -1.0, reverse=True)
    return ["cell", "images", "score (95% interval)", *COSTS.values(), "unjudged", "missing"], rows


def process_table(cells: Sequence[Cell]) -> Table:
    """One row per measure of the steps (`process`, then those by the judge), then one per kind of failure."""
    rows: list[list[Any]] = []
    for kind in ("process", "states"):
        found = [getattr(cell, kind) for cell in cells]
        for measure in dict.fromkeys(measure for one in found for measure in one):
            shown = [one.get(measure) for one in found]
            name = measure if kind == "process" else f"{measure} (by the judge)"
            rows.append([name, *shown])
    for kind in dict.fromkeys(kind for cell in cells for kind in cell.failures):
        shown = (f"{cell.failures.get(kind, 0)} of {len(cell.outcomes)}" for cell in cells)
        rows.append([f"failed: {kind}", *shown])
    return ["measure", *labels(cells)], rows


def comparison_table(cells: Sequence[Cell]) -> Table | None:
    """Compares the main score of every two cells on the images that both have; None if no two share any.

    Of more than `FEW` cells each is compared with the first. P-values are corrected for the number of rows
    (Holm).
    """
    found = list(_pairs(cells))
    corrected = holm([p for *_, p in found])
    rows = [
        [name, gap.mean, f"{gap.low:+.3f} to {gap.high:+.3f}", n, _p(p), _p(q)]
        for (name, gap, n, p), q in zip(found, corrected, strict=True)
    ]
    headers = ["difference of the score", "mean", "95% interval (paired)", "images", "p", "p (Holm)"]
    return (headers, rows) if rows else None


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def _pairs(cells: Sequence[Cell]) -> Iterator[tuple[str, Interval, int, float]]:
    named = list(zip(labels(cells), cells, strict=True))
    several = len(cells) > FEW
    pairs = ((named[0], other) for other in named[1:]) if several else itertools.combinations(named, 2)
    for (first, a), (second, b) in pairs:
        of_a, of_b = _by_image(a), _by_image(b)
        weights = next(iter(a.formulas.values()), {})
        shared = [key for key in of_a if key in of_b and of_a[key].group in weights]
        there = {of_a[key].group for key in shared}
        whole = sum(weight for group, weight in weights.items() if group in there)
        if not whole or a.version != b.version:
            continue
        weights = {group: weight / whole for group, weight in weights.items() if group in there}
        groups, docs = [of_a[key].group for key in shared], [key[0] for key in shared]
        gaps = [of_b[key].score - of_a[key].score for key in shared]
        told = groups, docs, gaps, weights
        yield f"{second} - {first}", difference(*told), len(shared), p_value(*told)


def _by_image(cell: Cell) -> Mapping[tuple, Any]:
    return {(one.doc_id, one.doc_hash, one.seed, one.index): one for one in cell.outcomes}


def bars(cells: Sequence[Cell]) -> dict[str, dict[str, Interval]]:
    """cell -> group -> (mean, low, high), scores last: what `reports.plots.bars` draws."""
    return {name: {**cell.groups, **cell.scores} for name, cell in zip(labels(cells), cells, strict=True)}

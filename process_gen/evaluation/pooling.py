"""Merges cells of a sweep that differ in some of its settings alone, as in the seed of the training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from process_gen.evaluation.counts import add_to
from process_gen.evaluation.results import COUNTED, Cell, ResultsError
from process_gen.evaluation.tables import check_comparable


class Given(NamedTuple):
    """A cell to compare: the file that was given for it, and its settings in the sweep of that file."""

    path: str
    cell: Cell
    settings: Mapping[str, Any]


def pooled(given: Sequence[Given], keys: Collection[str], allow: Collection[str] = ()) -> list[Cell]:
    """Merges cells of one file that differ in `keys` (say `config.seed`) alone.

    The other settings name the checkpoint of a merged cell, and the file if there are several. Each value of
    `keys` gets a range of evaluation seeds of its own, the same in every merged cell, so comparisons pair
    trainings of one value. Prompts stay the clusters.

    Raises:
      ResultsError: a file has no such settings, or two cells to be merged have the same values of them.
      Incomparable: cells that would be merged differ in what is not in `allow` (`tables.check_comparable`).
    """
    paths = dict.fromkeys(one.path for one in given)
    for path in paths:
        known = {key for one in given if one.path == path for key in one.settings}
        if lacking := [key for key in keys if key not in known]:
            raise ResultsError(
                f"{path} has no setting {lacking[0]!r} to pool over: give results.jsonl of a sweep; it has "
                f"{', '.join(sorted(known)) or 'some'}"
            )
    values = [json.dumps([one.settings.get(key) for key in keys]) for one in given]
    rank = {value: number for number, value in enumerate(sorted(set(values)))}
    most = 1 + max((one.seed for _, cell, _ in given for one in cell.outcomes), default=0)
    groups: dict[tuple[str, ...], dict[int, Cell]] = {}
    for (path, cell, settings), value in zip(given, values, strict=True):
        rest = {key: value for key, value in settings.items() if key not in keys}
        name = ", ".join(str(x) if key == "config" else f"{key}={x}" for key, x in rest.items()) or "all"
        name = f"{path}: {name}" if len(paths) > 1 else name
        group = groups.setdefault((cell.task, cell.arm, name), {})
        if rank[value] in group:
            raise ResultsError(f"{name}: two cells of {cell.task} and {cell.arm} have {[*keys]} = {value}")
        group[rank[value]] = cell
    for group in groups.values():
        check_comparable([*group.values()], allow)
    return [_merged(name, most, group) for (*_, name), group in groups.items()]


def _merged(name: str, most: int, cells: Mapping[int, Cell]) -> Cell:
    first = next(iter(cells.values()))
    sums: dict[str, dict[str, Any]] = {key: {} for key in (*COUNTED, "seen")}
    for cell in cells.values():
        for key, found in sums.items():
            for doc, counts in getattr(cell, key).items():
                add_to(found, doc, counts)
    return dataclasses.replace(
        first,
        checkpoint={**first.checkpoint, "source": name},
        seeds=[number * most + seed for number, cell in cells.items() for seed in cell.seeds],
        outcomes=tuple(
            dataclasses.replace(one, seed=number * most + one.seed)
            for number, cell in cells.items()
            for one in cell.outcomes
        ),
        **{key: sum(getattr(one, key) for one in cells.values()) for key in ("wanted", "judged", "unjudged")},
        summary={},  # an official scorer's figures are those of one cell
        **sums,
    )

"""Writes the files of an evaluation, for people and for other programs.

results.json       every cell with its outcomes: what `--compare` reads
results.jsonl      a line for each judged image of the trajectories that the scores are made from
results.parquet    the same as a table
results.png        groups and scores with 95% intervals
cost.png           score against Euler steps, where there are several cells
learning.png       score against the training step, where there are several steps of a run
index.html         some trajectories step by step, wrong and right ones; their images are beside it
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import pyarrow as pa
from pyarrow import parquet

import process_gen
from process_gen.common.files import whole
from process_gen.evaluation import pipeline, results, tables
from process_gen.evaluation.pipeline import CellSpec
from process_gen.evaluation.pooling import Given, pooled
from process_gen.evaluation.results import Cell
from process_gen.evaluation.statistics import Interval
from process_gen.evaluation.tasks.base import Judge
from process_gen.reports import files, page, plots
from process_gen.reports.table import table

Scored = tuple[CellSpec, Judge, Cell]
"""A cell as it was asked for, its judge, and its scores."""

Shown = tuple[CellSpec, Judge | None, Cell | None]
"""The same; judge and cell are None where no judge exists or nothing is judged yet."""

THUMBNAIL = 320
"""Pixels of the longer side of an image on the page."""

JSON_COLUMNS = ("target", "constraints", "details", "resps")
"""Columns of the table of judged images that hold JSON."""

COLUMNS = pa.schema(
    [
        *((name, pa.string()) for name in ("task", "arm", "checkpoint", "uid", "doc_id", "doc_hash")),
        *((name, pa.string()) for name in ("group", "input", "role", "image", "judge", "revision")),
        ("protocol", pa.string()),
        *((name, pa.int64()) for name in ("seed", "index", "step")),
        ("final", pa.bool_()),
        ("score", pa.float64()),
        ("failures", pa.list_(pa.string())),
        *((name, pa.float64()) for name in results.FACTS),
        ("stopped", pa.string()),
        *((name, pa.string()) for name in JSON_COLUMNS),
    ]
)
"""All of its columns."""


def text_of(cells: Sequence[Cell], allow: Sequence[str] = ()) -> str:
    """The tables of some cells as text; of more than `tables.FEW` without those with a column per cell.

    Raises:
      Incomparable: cells of one task that may not stand in one table (`tables.check_comparable`).
    """
    return "\n\n".join(part for part, _ in _parts(cells, allow))


def _parts(cells: Sequence[Cell], allow: Sequence[str], wide: bool = False) -> Iterator[tuple[str, bool]]:
    """Yields titles and tables, each with whether it is too wide for a terminal; wide ones only if `wide`."""
    for task, found in tables.by_task(cells).items():
        tables.check_comparable(found, allow)
        judge = found[0].judge
        yield f"{task}, judged by {judge['name']} ({judge['protocol']})", False
        many = len(found) > tables.FEW
        made = [(tables.ranking(found), False)] if many else []
        if wide or not many:
            made += [(tables.group_table(found), many), (tables.process_table(found), many)]
        made.append((tables.comparison_table(found), False))
        yield from ((table(one[1], one[0]), too_wide) for one, too_wide in made if one and one[1])


def write_results(
    folder: pathlib.Path, scored: Sequence[Scored], config: Mapping[str, Any]
) -> list[pathlib.Path]:
    """Writes every file that the module names except the page; returns those to look at.

    `config` is that of the training run, as JSON; empty where there is none.
    """
    cells = [cell for _, _, cell in scored]
    known = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"process_gen": process_gen.__version__, "jax": jax.__version__},
        "machine": {
            "backend": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "cpus": os.cpu_count(),
        },
        "config": config,
    }
    written = [results.save(folder / "results.json", cells, known)]
    _write_lines(folder, scored)
    return written + _plots(folder, cells, "results")


def _write_lines(folder: pathlib.Path, scored: Sequence[Scored]) -> None:
    """`results.jsonl` and `results.parquet`, cell by cell."""
    rows = (
        {"task": cell.task, "arm": cell.arm, "checkpoint": cell.checkpoint.get("digest", "")} | row
        for asked, judge, cell in scored
        for row in pipeline.verdicts_of(folder, asked, judge, cell)
    )
    with (
        whole(folder / "results.jsonl") as lines,
        whole(folder / "results.parquet") as columns,
        lines.open("w") as text,
        parquet.ParquetWriter(str(columns), COLUMNS) as writer,
    ):
        while some := list(itertools.islice(rows, 1_000)):
            text.writelines(json.dumps(row, allow_nan=False) + "\n" for row in some)
            writer.write_table(pa.Table.from_pylist(list(map(_columns, some)), COLUMNS))


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row of the table; `from_pylist` takes what `COLUMNS` names of it."""
    return {**row, **row.get("facts", {}), **{name: json.dumps(row.get(name)) for name in JSON_COLUMNS}}


def _plots(folder: pathlib.Path, cells: Sequence[Cell], stem: str) -> list[pathlib.Path]:
    """Plots for each task the groups of few cells, and score against Euler steps and training step."""
    written, by_task = [], tables.by_task(cells)
    for task, found in by_task.items():
        end = ".png" if len(by_task) == 1 else f"_{task}.png"
        shown = {label: row for label, row in tables.bars(found).items() if row}
        if shown and len(found) <= tables.FEW:
            written.append(
                plots.bars(shown, folder / f"{stem}{end}", title=task, ylabel="score, 95% interval")
            )
        first = "" if stem == "results" else f"{stem}_"
        costs = _series(found, "flow_steps", lambda cell: cell.means().get("sampling_steps"))
        if sum(map(len, costs.values())) > 1:
            path = folder / f"{first}cost{end}"
            written.append(plots.points(costs, path, task, "Euler steps per image", "score"))
        learning = _series(found, "step", lambda cell: tables.run_and_step(cell)[1])
        if any(len({step for step, _ in one}) > 1 for one in learning.values()):
            path = folder / f"{first}learning{end}"
            written.append(plots.points(learning, path, task, "training step", "score"))
    return written


def _series(
    cells: Sequence[Cell], setting: str, place: Callable[[Cell], float | None]
) -> dict[str, list[tuple[float, Interval]]]:
    """Label -> (x, score) of cells that differ in `setting` alone; `place` gives x, or None to skip one."""
    found: dict[str, list[tuple[float, Interval]]] = {}
    for name, cell in zip(tables.labels(cells, without=(setting,)), cells, strict=True):
        if (x := place(cell)) is not None and cell.scores:
            found.setdefault(name, []).append((x, next(iter(cell.scores.values()))))
    return dict(sorted(found.items()))


def write_page(folder: pathlib.Path, cells: Sequence[Shown], pictures: int) -> list[pathlib.Path]:
    """Writes the page: the first task's table and at most `pictures` trajectories of each cell.

    Returns [] without a page if there is no trajectory to show.
    """
    shown, links = [], {}
    for number, (asked, judge, cell) in enumerate(cells):
        for one in pipeline.pictured(folder, asked, judge, cell, pictures, THUMBNAIL):
            uid = f"{asked.arm}_{one.uid}" if len(cells) == 1 else f"{number}_{asked.arm}_{one.uid}"
            links[uid] = [f"{asked.place}/{path}" for path in one.metadata.get("images", ())]
            shown.append(dataclasses.replace(one, uid=uid))
    if not shown:
        return []
    asked, judge, _ = cells[0]
    summary = {
        "checkpoint": asked.checkpoint.get("source", "unknown"),
        "weights": asked.checkpoint.get("which", "unknown"),
        "benchmark": ", ".join(dict.fromkeys(asked.task for asked, *_ in cells)),
        "judge": f"{judge.name} ({judge.protocol})" if judge else "none",
    }
    found = tables.by_task([cell for *_, cell in cells if cell is not None])
    first = tables.group_table(next(iter(found.values()))) if found else None
    return [page.write_page(folder / "index.html", shown, "Evaluation", summary, first, links)]


def compare(
    paths: Sequence[str], folder: str | os.PathLike[str], allow: Sequence[str] = (), pool: Sequence[str] = ()
) -> tuple[str, list[pathlib.Path]]:
    """Compares several results files; returns tables for a terminal, and the files written.

    Args:
      paths: of `results.json`, or of the `results.jsonl` of a sweep, which stands for those of its cells.
      folder: to write to.
      allow: keys of `tables.MUST_AGREE` that may differ.
      pool: settings of the sweep, as `config.seed`; cells that differ in these alone are merged.

    Raises:
      ResultsError: a file is missing, is no results file or is given twice; or cells cannot be merged
        (`pooling.pooled`).
      Incomparable: cells of one task that may not stand in one table.
    """
    found = [(path, *one) for path in paths for one in _of_sweep(path)]
    if len({os.path.abspath(path) for _, path, _ in found}) < len(found):
        raise results.ResultsError("the same results file is given twice")
    given = [(path, Given(of, cell, settings)) for of, path, settings in found for cell in results.load(path)]
    if pool:
        cells = pooled([one for _, one in given], pool, allow)
    else:
        cells = _apart([path for path, _ in given], [one.cell for _, one in given])
    parts, folder = list(_parts(cells, allow, wide=True)), files.check_writable(folder)
    text, told = "\n\n".join(one for one, wide in parts if not wide), "\n\n".join(one for one, _ in parts)
    written = _plots(folder, cells, "comparison")
    return text, [*written, files.write_bytes(folder / "comparison.txt", f"{told}\n".encode())]


def _apart(paths: Sequence[str], cells: Sequence[Cell]) -> list[Cell]:
    """Names the results file of cells that would have one label, as evaluations of one checkpoint have."""
    made = list(cells)
    for task in {cell.task for cell in cells}:
        places = [place for place, cell in enumerate(cells) if cell.task == task]
        names = tables.labels([cells[place] for place in places])
        for place, name in zip(places, names, strict=True):
            if names.count(name) > 1:
                told = {**cells[place].checkpoint}
                told["source"] = f"{told.get('source', '')} ({paths[place]})".strip()
                made[place] = dataclasses.replace(cells[place], checkpoint=told)
    return made


def _of_sweep(path: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The results files that a path stands for, and the settings of each in its sweep.

    Of a folder that is the one in it of an evaluation, or else of a sweep.
    """
    if os.path.isdir(path):
        single = os.path.join(path, "results.json")
        path = single if os.path.exists(single) else os.path.join(path, "results.jsonl")
    if not path.endswith(".jsonl"):
        return [(path, {})]
    try:
        rows = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
        found = [(str(pathlib.Path(path).parent / row["results"]), row.get("settings", {})) for row in rows]
    except OSError as error:
        raise results.ResultsError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise results.ResultsError(
            f"{path} lists no results of a sweep's cells: give the results.jsonl of its workdir, or "
            "results.json files"
        ) from error
    if not found:
        raise results.ResultsError(f"{path}: no cell of the sweep has results yet")
    return found

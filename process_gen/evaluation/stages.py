"""Runs the stages of an evaluation: `images` draws, `judge` judges the images, `report` computes the scores.

    cells = [pipeline.ask(sampler, "scenes", {}, "process", checkpoint=described)]
    text, written, scored = evaluate(cells, "runs/quick/evaluation")

The command `process_gen.evaluate` and the evaluations of a training call it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from process_gen.distributed import hosts, lock
from process_gen.evaluation import forced, pipeline, results, scoring, writing
from process_gen.evaluation.draws import ProgressFn, draw, silent
from process_gen.evaluation.pipeline import CellSpec
from process_gen.evaluation.tasks.base import Judge
from process_gen.reports import files
from process_gen.reports.listing import Listing
from process_gen.sampling import Sampler

STAGES = ("all", "images", "judge", "report")


def evaluate(
    cells: Sequence[tuple[CellSpec, Sampler | None]],
    folder: str | os.PathLike[str],
    *,
    stage: str = "all",
    states: str = "all",
    config: Mapping[str, Any] | None = None,
    pictures: int = 24,
    allow: Sequence[str] = (),
    show: ProgressFn = silent,
    warm: bool = True,
    host: tuple[int, int] = (0, 1),
    forced_steps: bool = False,
    wait: bool = False,
) -> tuple[str, list[pathlib.Path], list[results.Cell]]:
    """Runs the stages for some cells; a cell is one task drawn in one way.

    Args:
      cells: each with the sampler that draws it (`pipeline.ask`); None where nothing is to be drawn.
      stage: one of `STAGES`.
      states: one of `judging.STATES`: which images of a trajectory are judged.
      config: of the training run, as JSON.
      pictures: trajectories of each cell on the page.
      allow: those of `tables.MUST_AGREE` that may differ between cells of one table.
      show: called with lines of progress.
      warm: draws one prompt before, so that the seconds per image do not count compilation.
      forced_steps: also draws steps that follow the teacher's own, of the scenes (`evaluation.forced`).
      host: (index, number of hosts). All hosts must call this alike; host 0 reports.
      wait: waits for the end of another evaluation in the folder.

    Returns:
      The text to print, the files written, and the scored cells; all empty on hosts other than the first.

    Raises:
      TaskError, ServiceError, ResultsError, ReportError: bad input; the message is fit for a user.
      Occupied: another evaluation is going on in the folder, and `wait` is False.
    """
    root, lead = files.check_writable(folder), host[0] == 0
    check = functools.partial(show, "waiting for another evaluation")
    with lock.hold(root, "an evaluation", wait, check) if lead else contextlib.nullcontext():
        _wait("the folder is held", host)
        written, asked = [], [one for one, _ in cells]
        judges = (
            _judges(asked) if stage != "images" else [None] * len(asked)
        )  # raises where one cannot be made
        judged = list(zip(asked, judges, strict=True))
        if stage in ("all", "images"):
            if lead:
                pipeline.remember(root, asked)
            for one, sampler in cells:
                if sampler is None:
                    continue
                with _listed(root, one, host) as listing:
                    draw(sampler, one.wanted, listing, host, show, warm)
                if forced_steps and pipeline.has_teacher(one):
                    with _listed(root, one, host, forced.FOLDER) as listing:
                        forced.draw_steps(sampler, one.wanted, one.benchmark.requests, listing, host, show)
            written = [path for one in asked for path in pipeline.lay_out(root, one)] if lead else []
        if stage in ("all", "judge"):
            for one, judge in judged:
                if judge is not None:
                    pipeline.judge_cell(root, one, judge, states, host, show)
            _wait("the images are judged", host)
        try:
            if not lead or stage not in ("all", "report"):
                return "", written, []
            text, more, scored = _report(root, judged, stage, config or {}, pictures, allow, show)
            return text, list(dict.fromkeys(written + more)), scored
        finally:
            _wait("the report is written", host)  # JAX aborts a process that works on after others exit


def _report(
    root: pathlib.Path,
    judged: Sequence[tuple[CellSpec, Judge | None]],
    stage: str,
    config: Mapping[str, Any],
    pictures: int,
    allow: Sequence[str],
    show: ProgressFn,
) -> tuple[str, list[pathlib.Path], list[results.Cell]]:
    """Computes the scores, and writes tables and pages; see `evaluate`."""
    text, written, shown = "", [], []
    for one, judge in judged:
        cell = None
        if judge is not None:
            show(f"{pathlib.Path(one.place).name}: adding up")
            cell, official = scoring.score_cell(root, one, judge)
            written += official
            if cell is None:
                text += f"{one.task}, {one.arm or 'images'}: nothing is judged yet\n\n"
        shown.append((one, judge, cell))
    scored = [told for told in shown if told[2] is not None]
    if scored:
        show("writing the results")
        written += writing.write_results(root, scored, config)
    show("writing the page")
    written += writing.write_page(root, shown, pictures)
    for one, _, cell in scored:
        if stage == "report" or (one.way and one.way.needs_judge):  # the others are laid out already
            show(f"{pathlib.Path(one.place).name}: laying out the images")
            written += pipeline.lay_out(root, one, cell)
    if scored:  # last, as it raises where cells cannot be compared
        text += writing.text_of([cell for *_, cell in scored], allow)
    return text, written, [cell for *_, cell in scored]


def _judges(asked: Sequence[CellSpec]) -> list[Judge | None]:
    """The judge of each cell, one for all cells with the same task and options."""
    keys = [(one.task, *sorted(one.options.items())) for one in asked]
    made = {key: one.benchmark.judge() for key, one in dict(zip(keys, asked, strict=True)).items()}
    return [made[key] for key in keys]


@contextlib.contextmanager
def _listed(root: pathlib.Path, one: CellSpec, host: tuple[int, int], below: str = "") -> Iterator[Listing]:
    """Opens the listing of a cell for all hosts; at the end host 0 gathers what each has added."""
    with hosts.lead_first("the images are listed") if host[1] > 1 else contextlib.nullcontext():
        listing = pipeline.listing_of(root, one, host, below)
    yield listing
    _wait("the images are drawn", host)
    if host[0] == 0:
        listing.gather()
    _wait("the images are listed", host)


def _wait(name: str, host: tuple[int, int]) -> None:
    if host[1] > 1:
        hosts.barrier(name, hosts.PREPARE_SECONDS)

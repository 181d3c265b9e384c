"""An evaluation from prompts to scores. Each stage reads from disk what the one before wrote.

OUT/cells.json      what was asked for: tasks with their options, arms, seeds, where their images are
OUT/draws/...       images and verdicts (`draws`, `judging`)
OUT/layout/...      the same images as the tools of a task want them
OUT/results.json    and what else `writing` makes of the scores
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_origin, get_type_hints

from process_gen.common import files
from process_gen.evaluation import draws, judging
from process_gen.evaluation.arms import Arm, chosen, make_arm
from process_gen.evaluation.draws import Draw, ProgressFn, silent
from process_gen.evaluation.outsiders import make_outside
from process_gen.evaluation.results import Cell
from process_gen.evaluation.tasks import make_task
from process_gen.evaluation.tasks.base import Doc, Judge, Task, TaskError
from process_gen.evaluation.tasks.scenes import Scenes
from process_gen.reports import files as reports
from process_gen.reports.listing import Listing
from process_gen.sampling import Sampler
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Mode

CELLS = "cells.json"

WHICH_PROMPTS = ("data", "metadata", "edition", "categories", "level", "split", "groups", "prompt_seed")
"""Options of tasks that say which prompts they have."""


@dataclasses.dataclass(frozen=True)
class CellSpec:
    """One cell of an evaluation, as it stands in `cells.json`.

    Attributes:
      task, options: name and options of the benchmark.
      arm: the name of the way to draw; empty for images of another program.
      seeds: the evaluation's `--seeds`.
      limit, per_group: which of its prompts (`draws.take`); 0 for all.
      place: its folder below that of the evaluation; for images of another program, that of the verdicts.
      images: the folder of another program; empty for images of ours.
      checkpoint: who drew: `source`, `which`, `digest` and what else is known.
      settings: of the sampler, as JSON.
    """

    task: str
    options: dict[str, str]
    arm: str
    seeds: list[int]
    limit: int
    per_group: int
    place: str
    images: str
    checkpoint: dict[str, Any]
    settings: dict[str, Any]

    @property
    def name(self) -> tuple[str, ...]:
        """Identity of the cell, which does not depend on its judge or the number of its prompts."""
        return self.place, self.arm, *(str(self.options.get(key, "")) for key in WHICH_PROMPTS)

    @functools.cached_property
    def benchmark(self) -> Task:
        return make_task(self.task, self.options)

    @functools.cached_property
    def docs(self) -> list[Doc]:
        """The prompts that were asked for."""
        return draws.take(self.benchmark.docs(), self.limit, self.per_group)

    @functools.cached_property
    def way(self) -> Arm | None:
        return make_arm(self.arm) if self.arm else None

    @functools.cached_property
    def wanted(self) -> list[Draw]:
        """The trajectories to draw, seed by seed; none for images of another program."""
        if self.way is None:
            return []
        numbers = range(self.benchmark.images * self.way.candidates)
        asked = itertools.product(self.seeds, self.docs, numbers)
        return [Draw(doc, seed, index, self.way.prompt(doc)) for seed, doc, index in asked]


def ask(
    sampler: Sampler,
    task: str,
    options: Mapping[str, str],
    arm: str,
    seeds: Sequence[int] = (0,),
    *,
    checkpoint: Mapping[str, Any],
    limit: int = 0,
    per_group: int = 0,
    arm_options: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[CellSpec, Sampler]:
    """Makes a cell of an evaluation, and the sampler that draws it.

    Args:
      sampler: of the checkpoint.
      task, options, arm, seeds, checkpoint, limit, per_group: see `CellSpec`.
      arm_options: role -> options of who takes it in the model's place (`outsiders`).

    Raises:
      TaskError, ServiceError, SamplerError: the task, the arm or the settings are not possible.
    """
    options = _absolute(options)
    way, benchmark = make_arm(arm), make_task(task, options)
    if way.needs_judge and benchmark.judge() is None:
        raise TaskError(
            f"arm {arm}: {task} has no judge here, which this arm needs to choose among candidates"
        )
    of_arm = sampler.with_config(**way.settings)
    if way.outside:
        check_roles(arm, way, of_arm)
        docs = draws.take(benchmark.docs(), limit, per_group) if isinstance(benchmark, Scenes) else []
        asked = {way.prompt(doc): benchmark.requests[doc.doc_id] for doc in docs}
        of_arm = of_arm.with_outside(**vars(make_outside(way.outside, asked, arm_options or {})))
    place, settings = draws.place(benchmark, way, checkpoint, of_arm)
    told = (task, dict(options), arm, list(seeds), limit, per_group, place, "", dict(checkpoint), settings)
    return CellSpec(*told), of_arm


def check_roles(arm: str, way: Arm, sampler: Sampler) -> None:
    """Raises TaskError if an outside planner or inspector of the arm would never be asked."""
    config, layout = sampler.config, sampler.model.layout
    if "planner" in way.outside and (config.mode == Mode.SINGLE_PASS or not layout.before):
        raise TaskError(f"arm {arm}: nothing is planned in mode {config.mode.value} with this model")
    inspects = config.mode == Mode.PROCESS and config.inspections and layout.before and layout.corrections
    if "inspector" in way.outside and not inspects:
        raise TaskError(f"arm {arm}: nothing is inspected in mode {config.mode.value} with these settings")


PATHS = frozenset({"cache", "clip", "data", "detector", "extra", "metadata", "question", "rubric", "system"})
"""Options of tasks that may name a file or a folder; `data` several with colons between them."""


def _absolute(options: Mapping[str, str]) -> dict[str, str]:
    """Makes paths absolute, so that options mean the same from any working directory.

    What does not exist stays as it is, since some options take a text as well; but a cache is made when it
    is first used.
    """

    def absolute(key: str, value: str) -> str:
        if key not in PATHS or not value:
            return value
        parts = value.split(os.pathsep) if key == "data" else [value]
        return os.pathsep.join(
            os.path.abspath(part) if key == "cache" or os.path.exists(part) else part
            for part in map(os.path.expanduser, parts)
        )

    return {key: absolute(key, value) for key, value in options.items()}


def ask_foreign(task: str, options: Mapping[str, str], images: str, limit: int, per_group: int) -> CellSpec:
    """Makes a cell of images that another program left in the layout of the task.

    Raises:
      TaskError: the task is not possible, has no judge here, or there is no such folder.
    """
    folder = str(pathlib.Path(images).absolute())
    place = f"foreign/{re.sub(r'[^A-Za-z0-9.-]+', '_', pathlib.Path(folder).name)}"
    place += f"-{hashlib.sha256(folder.encode()).hexdigest()[:8]}"
    source = {"source": folder, "which": "", "digest": ""}
    options = _absolute(options)
    if not os.path.isdir(folder):
        raise TaskError(f"--images: there is no folder {folder}")
    if make_task(task, options).judge() is None:
        raise TaskError(f"{task} has no judge here: its own tools read {folder}")
    return CellSpec(task, dict(options), "", [0], limit, per_group, place, folder, source, {})


def remember(folder: pathlib.Path, cells: Iterable[CellSpec]) -> None:
    """Notes cells in `cells.json`, so that later stages need neither the model nor the flags."""
    known = {one.name: one for one in remembered(folder)} | {one.name: one for one in cells}
    files.write_json(folder / CELLS, [dataclasses.asdict(one) for one in known.values()], indent=1)


def remembered(folder: pathlib.Path) -> list[CellSpec]:
    """The cells of an evaluation. Raises TaskError: the file is broken."""
    path = folder / CELLS
    if not path.exists():
        return []
    try:
        found = [CellSpec(**one) for one in files.read_json(path)]
        kinds = {name: get_origin(hint) or hint for name, hint in get_type_hints(CellSpec).items()}
        for one in found:
            for name, kind in kinds.items():
                if not isinstance(getattr(one, name), kind):
                    raise TypeError(f"{name} is no {kind.__name__}")
            reports.inside(folder, one.place)
        return found
    except (OSError, ValueError, TypeError) as error:
        raise TaskError(f"{path} is no list of cells ({error}): move it away to start over") from None


# ---------------------------------------------------------------------- stages


def listing_of(
    folder: pathlib.Path, one: CellSpec, host: tuple[int, int] | None = None, below: str = ""
) -> Listing:
    """Opens the listing of a cell's trajectories: to read, or with `host` to write (the first host first).

    `below` is a folder inside the cell's: `forced.FOLDER` for teacher-forced steps.

    Raises:
      ReportError: the folder cannot be written, or holds something else.
    """
    place, read_only = folder / one.place / below, host is None
    return Listing(place, one.settings, host=host or (0, 1), strips=False, read_only=read_only)


def judge_cell(
    folder: pathlib.Path,
    one: CellSpec,
    judge: Judge,
    which: str = "all",
    host: tuple[int, int] = (0, 1),
    show: ProgressFn = silent,
) -> None:
    """Judges the images of a cell that have no verdict yet; see `judging.judge_states`."""
    path = judging.verdicts_path(folder / one.place, judge)

    def states() -> Iterator[judging.State]:
        if one.images:
            return judging.foreign_states(one.benchmark, pathlib.Path(one.images), one.docs)
        return judging.states_of(one.benchmark, listing_of(folder, one), one.wanted, which)

    if hasattr(judge, "announce") and host[0] == 0:
        done = judging.judged(path)
        if waiting := [state.doc for state in states() if state.key not in done]:
            judge.announce(waiting, tuple(one.settings.get("image_size", (1024, 1024))))
    judging.judge_states(judge, states(), path, host, show)


def has_teacher(one: CellSpec) -> bool:
    """Whether a cell can have teacher-forced steps (`forced`): task, candidates and planner allow them."""
    way, known = one.way, isinstance(one.benchmark, Scenes)
    return known and way is not None and way.candidates == 1 and "planner" not in way.outside


def layout_of(folder: pathlib.Path, one: CellSpec) -> pathlib.Path:
    """The folder of a cell's images in the layout of its task, and of the official scorer's files."""
    name = re.sub(r"[^\w.=+-]+", "_", "-".join(filter(None, [pathlib.Path(one.place).name, one.arm])))[:120]
    return folder / "layout" / f"{name}-{hashlib.sha256(repr(one.name).encode()).hexdigest()[:6]}"


def verdicts_of(folder: pathlib.Path, one: CellSpec, judge: Judge, cell: Cell) -> Iterator[dict[str, Any]]:
    """Yields the latest verdict on every image of the trajectories that a cell's outcomes are made from.

    What all candidates of a chosen image took stands with that image, as in the outcome.
    """
    outcomes = {outcome.uid: outcome for outcome in cell.outcomes}
    rows = judging.read_verdicts(judging.verdicts_path(folder / one.place, judge))
    latest = {judging.key_of(row): row for row in rows if row["uid"] in outcomes and "error" not in row}
    for row in latest.values():
        facts = outcomes[row["uid"]].facts
        yield {**row, "facts": facts} if row["final"] and facts else row


def lay_out(folder: pathlib.Path, one: CellSpec, cell: Cell | None = None) -> list[pathlib.Path]:
    """Writes the images of a cell in the layout of its task, a folder for each seed; returns the folders.

    There are none where the task has no layout, another program made the images, or the judge chooses among
    candidates and `cell`, which holds its scores, is None.
    """
    task, way = one.benchmark, one.way
    if way is None or not one.docs or task.place(one.docs[0], 0) is None:
        return []
    if way.needs_judge and cell is None:
        return []
    kept = {outcome.uid for outcome in cell.outcomes} if cell else set()
    drawn, listing = {}, listing_of(folder, one)
    for draw, record in draws.listed(listing, one.wanted):
        told = float(record.uid in kept), judging.facts(record)
        drawn[draw.uid] = listing.folder / record.turns[-1].image, told
    images = collections.defaultdict(list)  # by seed
    for number in range(0, len(one.wanted), way.candidates):
        if found := [draw for draw in one.wanted[number : number + way.candidates] if draw.uid in drawn]:
            draw = found[chosen(way, [drawn[draw.uid][1] for draw in found])]
            images[draw.seed].append((draw.doc, draw.index // way.candidates, drawn[draw.uid][0]))
    places = {seed: layout_of(folder, one) / f"seed_{seed}" for seed in images}
    for seed, place in places.items():
        shutil.rmtree(place, ignore_errors=True)  # may hold other prompts or another judge's choice
        task.lay_out(place, images[seed])
    return list(places.values())


def pictured(
    folder: pathlib.Path, one: CellSpec, judge: Judge | None, cell: Cell | None, most: int, side: int | None
) -> list[SampledTrajectory]:
    """At most `most` trajectories to look at, with verdicts: of every group in turn, a wrong and a right one.

    Without a cell they are the first ones, without verdicts. `side` limits the longer side, in pixels.
    """
    if one.images or not most:
        return []
    listing = listing_of(folder, one)
    order = _worth_seeing(cell, most) if cell else [draw.uid for draw in one.wanted[:most]]
    records = {record.uid: record for record in listing.records() if record.uid in order}
    verdicts = {}
    for row in verdicts_of(folder, one, judge, cell) if judge and cell else ():
        if row["final"] and row["uid"] in order:
            told = {name: row[name] for name in ("constraints", "failures", "group")}
            verdicts[row["uid"]] = {"ok": row["score"] >= 1, **told}
    shown = []
    for record in (records[uid] for uid in order if uid in records):
        images = {"images": [turn.image for turn in record.turns]}
        trajectory, verdict = listing.sampled(record, side), verdicts.get(record.uid)
        shown.append(dataclasses.replace(trajectory, verdict=verdict, metadata=images))
    return shown


def pictured_in(folder: pathlib.Path, cell: Cell, most: int) -> list[SampledTrajectory]:
    """Some trajectories of a cell of the evaluation in `folder`; see `pictured`."""
    for one in remembered(folder):
        judge = one.benchmark.judge()
        if (one.task, one.arm) == (cell.task, cell.arm) and judge is not None:
            return pictured(folder, one, judge, cell, most, None)
    return []


def _worth_seeing(cell: Cell, most: int) -> list[str]:
    """Names of outcomes: wrong and right ones of every group take turns, so that a short list has both."""
    queues: dict[tuple[bool, str], list[str]] = {}
    for outcome in cell.outcomes:
        queues.setdefault((outcome.ok, outcome.group), []).append(outcome.uid)
    wrong, right = ([q for (ok, _), q in queues.items() if ok is which] for which in (False, True))
    turns = [queue for pair in itertools.zip_longest(wrong, right) for queue in pair if queue]
    return [uid for row in itertools.zip_longest(*turns) for uid in row if uid][:most]

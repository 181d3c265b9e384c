"""Judges a checkpoint on the scenes benchmark.

    python -m process_gen.evaluate                                  # the shipped weights
    python -m process_gen.evaluate --workdir=runs/quick --which=ema --per_group=40 --split=heldout
    python -m process_gen.evaluate --workdir=runs/quick --modes=process,plan_only
    python -m process_gen.evaluate --compare=runs/a/evaluation/results.json,runs/b/evaluation/results.json

Prints the tables and leaves in the output folder:

    results.json    every outcome, with what was judged and how
    results.png     groups and score with 95% intervals
    index.html      some trajectories step by step, wrong ones among them
"""

from __future__ import annotations

from process_gen.experiment import cli  # before what reads its settings when it is imported

# isort: split
import ast
import dataclasses
import datetime
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from absl import flags

import process_gen
from process_gen.common.names import check_name
from process_gen.distributed.mesh import mesh_of_flag
from process_gen.evaluation import results as tables
from process_gen.evaluation.benchmark import GROUPS, Benchmark, BenchmarkError, make_benchmark
from process_gen.evaluation.evaluator import Scores, Show, predict_with
from process_gen.evaluation.evaluator import evaluate as score
from process_gen.evaluation.results import Results
from process_gen.reports import files, listing, page, plots
from process_gen.reports.table import table
from process_gen.sampling import Sampler
from process_gen.trajectory.record import to_json
from process_gen.trajectory.stages import Mode
from process_gen.weights import restore
from process_gen.weights.restore import load_sampler

MODES = tuple(mode.value for mode in Mode)


def evaluate(
    sampler: Sampler,
    benchmark: Benchmark,
    modes: Iterable[str | Mode] = (Mode.PROCESS,),
    *,
    checkpoint: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    warm: bool = True,
    show: Show | None = None,
) -> Results:
    """Judges a sampler on a benchmark.

    Args:
      sampler: of the model, with the settings to judge it with.
      benchmark: the tasks.
      modes: each is judged on the same prompts with the same seeds.
      checkpoint, config: what is known of the model, for the record.
      warm: samples one prompt first, so that seconds per image do not count compilation.
      show: is told how far it is.
    """
    found, first = {}, benchmark.tasks[0]
    for mode in map(Mode, modes):
        if warm:
            predict_with(sampler, mode)([first.request.text], [first.seed])
        found[mode.value] = score(predict_with(sampler, mode, show), benchmark, mode)
    versions = {"process_gen": process_gen.__version__, "jax": jax.__version__}
    machine = {"backend": jax.default_backend(), "devices": jax.device_count(), "cpus": os.cpu_count()}
    settings = to_json(dataclasses.asdict(sampler.config)) | {"rows": sampler.rows}
    return Results(
        checkpoint={**(checkpoint or {}), "versions": versions, "machine": machine},
        config=config or {},
        sampler={key: value for key, value in settings.items() if key not in ("mode", "seed")},
        benchmark=benchmark.to_json(),
        modes=found,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def tables_of(arms: Mapping[str, Scores]) -> str:
    """Every table of some arms, for a terminal."""
    made = [tables.group_table(arms), tables.process_table(arms), tables.difference_table(arms)]
    return "\n\n".join(table(rows, headers) for headers, rows in filter(None, made))


def write_results(found: Results, folder: str | os.PathLike[str], pictures: int = 24) -> list[pathlib.Path]:
    """Writes results, plot and page; returns the files to look at.

    Args:
      pictures: trajectories of each mode on the page; 0 leaves the page out.
    """
    folder, benchmark = files.check_writable(folder), found.benchmark
    title = f"scenes {benchmark['level']}, {benchmark['split']}, {benchmark['per_group']} prompts a group"
    written = [found.save(folder / "results.json")]
    written.append(plots.bars(tables.bars(found.modes), folder / "results.png", title=title))
    chosen = [
        dataclasses.replace(one, uid=f"{mode}_{index:03d}")
        for mode, scores in found.modes.items()
        for index, one in enumerate(scores.selection(pictures))
    ]
    if chosen:
        lines = [listing.save_trajectory(folder, one) for one in chosen]
        files.write_bytes(folder / listing.NAME, b"".join(lines))
        summary = {
            "checkpoint": found.checkpoint.get("source", "unknown"),
            "weights": found.checkpoint.get("which", "unknown"),
            "benchmark": title,
            "created": found.created,
        }
        table_of_groups = tables.group_table(found.modes)
        written.append(page.write_page(folder / "index.html", chosen, "Evaluation", summary, table_of_groups))
    return written


def compare(paths: Sequence[str], folder: str | os.PathLike[str]) -> tuple[str, list[pathlib.Path]]:
    """The tables and the plot of several results files side by side.

    Raises:
      ResultsError: a file is missing or is something else, or stands there twice.
    """
    arms, folder = _arms_of(paths), files.check_writable(folder)
    text = tables_of(arms)
    if len(arms) > 1 and tables.difference_table(arms) is None:
        text += "\n\nThe prompts differ between these results: no paired difference."
    picture = plots.bars(tables.bars(arms), folder / "comparison.png", title="comparison")
    return text, [picture, files.write_bytes(folder / "comparison.txt", f"{text}\n".encode())]


def _arms_of(paths: Sequence[str]) -> dict[str, Scores]:
    """The modes of several results; where two are called alike, with the part of the path that differs."""
    places = [pathlib.Path(os.path.abspath(path)) for path in paths]
    common = os.path.commonpath([place.parent for place in places])
    labels = [place.relative_to(common).with_suffix("").as_posix() for place in places]
    if len(set(labels)) < len(labels):
        raise tables.ResultsError("the same results file is given twice")
    found = [
        (label, mode, scores)
        for label, path in zip(labels, paths, strict=True)
        for mode, scores in Results.load(path).modes.items()
    ]
    unique = len({mode for _, mode, _ in found}) == len(found)
    return {mode if unique else f"{label}: {mode}": scores for label, mode, scores in found}


def run(values: Any, show: Show | None = None) -> str:
    """Does what the command does; returns what it prints at the end.

    Args:
      values: the flags.
      show: is told how far it is.

    Raises:
      One of `ERRORS`: bad input; the message is fit for a user.
    """
    for mode in values.modes:
        check_name(mode, MODES, "mode", BenchmarkError)
    if values.compare:
        text, written = compare(values.compare, _folder(values))
    else:
        settings, mesh = dict(map(_setting, values.sampling)), mesh_of_flag(values.mesh)
        sampler, restored = load_sampler(
            values.workdir, values.which, values.batch_size, mesh=mesh, **settings
        )
        if restored.level_name is None:
            raise BenchmarkError(
                f"{restored.source} was not trained on scenes: this benchmark cannot judge it"
            )
        benchmark = make_benchmark(
            restored.level_name, values.split, values.per_group, values.seed, values.groups
        )
        folder = files.check_writable(_folder(values))
        found = evaluate(
            sampler,
            benchmark,
            values.modes or (sampler.config.mode,),
            checkpoint={"source": str(restored.source), "which": values.which},
            config=restored.config,
            show=show,
        )
        text, written = tables_of(found.modes), write_results(found, folder, values.pictures)
    return "\n".join([text, "", *map(str, written)])


def _folder(values: Any) -> pathlib.Path:
    """Where the files go: `evaluation` in the run's folder, or here."""
    if values.output_dir:
        return pathlib.Path(values.output_dir)
    of_run = values.workdir and not values.compare and os.path.isdir(values.workdir)
    return pathlib.Path(values.workdir if of_run else ".") / "evaluation"


def define_flags() -> None:
    """The flags of the command."""
    flags.DEFINE_string("workdir", None, "Run folder or weights file; the shipped weights by default.")
    flags.DEFINE_string("which", "ema", "Weights of a run: ema or params.")
    flags.DEFINE_list("modes", [], f"Of {', '.join(MODES)}; what it was trained for by default.")
    flags.DEFINE_list("groups", [], f"Groups of prompts, all by default: {', '.join(GROUPS)}.")
    flags.DEFINE_string("split", "heldout", "heldout (compositions never trained on) or train.")
    flags.DEFINE_integer("per_group", 40, "Prompts of each group.")
    flags.DEFINE_integer("seed", 0, "Of the prompts and of the sampler.")
    flags.DEFINE_integer("batch_size", 64, "Trajectories sampled side by side.")
    flags.DEFINE_string("mesh", "", "Devices to spread the work over, as data=8; one by default.")
    flags.DEFINE_multi_string("sampling", [], "A setting that differs from the run's, e.g. flow_steps=10.")
    flags.DEFINE_string("output_dir", None, "Folder to write to; `evaluation` in the workdir by default.")
    flags.DEFINE_integer("pictures", 24, "Trajectories of each mode on the page.")
    flags.DEFINE_list("compare", [], "Results files to put side by side; nothing is sampled then.")


def _setting(text: str) -> tuple[str, Any]:
    """Reads `key=value`; a value that is no Python literal is a string."""
    key, equals, value = text.partition("=")
    if not equals:
        raise BenchmarkError(f"--sampling takes key=value, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


ERRORS = (BenchmarkError, tables.ResultsError, *restore.ERRORS, OSError)
"""What a user can get wrong; each says so in one line."""


def main(argv: Sequence[str]) -> None:
    """Prints the results."""
    del argv
    print(run(flags.FLAGS, cli.show_progress))


if __name__ == "__main__":
    define_flags()
    cli.run(main, ERRORS)

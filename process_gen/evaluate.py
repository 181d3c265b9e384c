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
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from absl import flags

import process_gen
from process_gen.distributed.mesh import mesh_of_flag
from process_gen.evaluation import results as tables
from process_gen.evaluation.benchmark import GROUPS, Benchmark, BenchmarkError, check_name, make_benchmark
from process_gen.evaluation.evaluator import Scores, Show, predict_with
from process_gen.evaluation.evaluator import evaluate as score
from process_gen.evaluation.results import Results, arms_of
from process_gen.reports import files, plots
from process_gen.reports.report import write_report
from process_gen.reports.table import table
from process_gen.sampling import Sampler
from process_gen.scenes.splits import SPLITS
from process_gen.trajectory.stages import Mode
from process_gen.weights import restore
from process_gen.weights.restore import load_sampler

MODES = tuple(mode.value for mode in Mode)


@dataclasses.dataclass(frozen=True)
class Options:
    """What the flags say; see their help."""

    workdir: str | None = None
    which: str = "ema"
    modes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    split: str = "heldout"
    per_group: int = 40
    seed: int = 0
    batch_size: int = 64
    mesh: str = ""
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    output_dir: str | None = None
    pictures: int = 24
    compare: tuple[str, ...] = ()

    def __post_init__(self):
        for mode in self.modes:
            check_name(mode, MODES, "mode")
        check_name(self.which, ("ema", "params"), "weights")
        check_name(self.split, SPLITS, "split")
        for group in self.groups:
            check_name(group, GROUPS, "group")
        for name in ("per_group", "batch_size"):
            if getattr(self, name) < 1:
                raise BenchmarkError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def folder(self) -> pathlib.Path:
        """Where the files go: `evaluation` in the run's folder, or here."""
        if self.output_dir:
            return pathlib.Path(self.output_dir)
        of_run = self.workdir and not self.compare and os.path.isdir(self.workdir)
        return pathlib.Path(self.workdir if of_run else ".") / "evaluation"


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
      warm: samples one prompt first (see `warm_up`).
      show: is told how far it is.
    """
    found = {}
    for mode in map(Mode, modes):
        if warm:
            warm_up(sampler, benchmark, mode)
        found[mode.value] = score(predict_with(sampler, mode, show), benchmark, mode)
    versions = {"process_gen": process_gen.__version__, "jax": jax.__version__}
    machine = {"backend": jax.default_backend(), "devices": jax.device_count(), "cpus": os.cpu_count()}
    settings = _plain(dataclasses.asdict(sampler.config)) | {"rows": sampler.rows}
    return Results(
        checkpoint={**(checkpoint or {}), "versions": versions, "machine": machine},
        config=config or {},
        sampler={key: value for key, value in settings.items() if key not in ("mode", "seed")},
        benchmark=benchmark.to_json(),
        modes=found,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def warm_up(sampler: Sampler, benchmark: Benchmark, mode: Mode) -> None:
    """Samples one prompt, so that seconds per image do not count compilation."""
    task = benchmark.tasks[0]
    predict_with(sampler, mode)([task.request.text], [task.seed])


def _plain(value: Any) -> Any:
    """Settings as JSON has them."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value.value if isinstance(value, Mode) else value


def tables_of(arms: Mapping[str, Scores]) -> str:
    """Every table of some arms, for a terminal."""
    made = [tables.group_table(arms), tables.process_table(arms)]
    difference = tables.difference_table(arms)
    if difference:
        made.append(difference)
    return "\n\n".join(table(rows, headers) for headers, rows in made)


def write_results(found: Results, folder: str | os.PathLike[str], pictures: int = 24) -> list[pathlib.Path]:
    """Writes results, plot and page; returns the files to look at.

    Args:
      pictures: trajectories of each mode on the page; 0 leaves the page out.
    """
    folder = files.check_writable(folder)
    benchmark = found.benchmark
    title = f"scenes {benchmark['level']}, {benchmark['split']}, {benchmark['per_group']} prompts a group"
    written = [found.save(folder / "results.json")]
    written.append(plots.bars(tables.bars(found.modes), folder / "results.png", title=title))
    chosen = [
        dataclasses.replace(one, uid=f"{mode}_{index:03d}")
        for mode, scores in found.modes.items()
        for index, one in enumerate(scores.selection(pictures))
    ]
    if chosen:
        summary = {
            "checkpoint": found.checkpoint.get("source", "unknown"),
            "weights": found.checkpoint.get("which", "unknown"),
            "benchmark": title,
            "created": found.created,
        }
        headers, rows = tables.score_table(found.modes)
        written.append(write_report(folder, chosen, "Evaluation", summary, (headers, rows)).page)
    return written


def compare(paths: Sequence[str], folder: str | os.PathLike[str]) -> tuple[str, list[pathlib.Path]]:
    """The tables and the plot of several results files side by side.

    Raises:
      ResultsError: a file is missing or is something else.
    """
    loaded = list(zip(_labels(paths), map(Results.load, paths), strict=True))
    arms, folder = arms_of(loaded), files.check_writable(folder)
    text = tables_of(arms)
    first = next(iter(arms.values()))
    if not all(tables.same_tasks(first, other) for other in arms.values()):
        text += "\n\nThe prompts differ between these results: no paired difference."
    picture = plots.bars(tables.bars(arms), folder / "comparison.png", title="comparison")
    return text, [picture, files.write_bytes(folder / "comparison.txt", f"{text}\n".encode())]


def _labels(paths: Sequence[str]) -> list[str]:
    """Short names of files: the part of their path that tells them apart."""
    parts = [pathlib.PurePath(path).with_suffix("").parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(one[-depth:]) for one in parts]
        if len(set(labels)) == len(labels):
            return labels
    raise tables.ResultsError("the same results file is given twice")


def run(options: Options, show: Show | None = None) -> str:
    """Does what the command does; returns what it prints at the end.

    Raises:
      One of `ERRORS`: bad input; the message is fit for a user.
    """
    if options.compare:
        text, written = compare(options.compare, options.folder)
    else:
        mesh = mesh_of_flag(options.mesh)
        sampler, restored = load_sampler(
            options.workdir, options.which, options.batch_size, mesh=mesh, **options.sampling
        )
        if restored.level_name is None:
            raise BenchmarkError(
                f"{restored.source} was not trained on scenes: this benchmark cannot judge it"
            )
        files.check_writable(options.folder)
        benchmark = make_benchmark(
            restored.level_name, options.split, options.per_group, options.seed, options.groups
        )
        found = evaluate(
            sampler,
            benchmark,
            options.modes or (sampler.config.mode,),
            checkpoint={"source": str(restored.source), "which": options.which},
            config=restored.config,
            show=show,
        )
        text, written = tables_of(found.modes), write_results(found, options.folder, options.pictures)
    return "\n".join([text, "", *map(str, written)])


def define_flags() -> None:
    """The flags of the command: one for every field of `Options`."""
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


def read_flags() -> Options:
    """The flags as options; BenchmarkError says what is wrong."""
    values = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Options)}
    values |= {name: tuple(values[name]) for name in ("modes", "groups", "compare")}
    return Options(**{**values, "sampling": dict(map(_setting, values["sampling"]))})


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


def main(argv: Sequence[str]) -> int:
    """Prints the results; 2 where the input was bad."""
    try:
        if argv[1:]:
            raise BenchmarkError(f"unexpected arguments: {' '.join(argv[1:])}")
        print(run(read_flags(), _line_of_progress))
    except ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _line_of_progress(text: str) -> None:
    end = "\r" if sys.stderr.isatty() else "\n"
    print(text, file=sys.stderr, end=end, flush=True)


if __name__ == "__main__":
    define_flags()
    cli.run(main)

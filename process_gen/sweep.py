"""Runs a command with many settings, each a cell: here, on many hosts, or by your scheduler.

    python -m process_gen.sweep --config=configs/sweeps/guidance.py --workdir=sweeps/guidance

`--jobs=local` runs the cells here, `--parallel` at a time, and ends with 1 where one failed.
`--jobs=claim` is for many processes, on any hosts that share the workdir: each takes cells until
none is left, and ends with 0 even if some failed, since launchers restart on other exit codes.
`--jobs=print` prints the command of every cell that nobody runs and that has no results, for a
scheduler of yours; once more after that, it lists what has results in results.jsonl.
Started again, a sweep skips cells that are done, and repeats failed ones with `--retry` only. It
says which cells were run with another config, as before an edit; remove their folders to run them.

A sweep file has

    COMMAND = ("process_gen.train", "--config=configs/scenes.py:debug")  # a module and its fixed flags

    def get_hyper(hyper):
        return hyper.sweep("config.optimizer.learning_rate", [1e-3, 2e-3])

with keys `config.a.b`, `sampling.x`, `task_args.x`, `arm_args.x` or the name of any other flag; see
`process_gen.sweeps.hyper`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import re
import shlex
import sys
from collections.abc import Sequence

from absl import flags

import process_gen
from process_gen.common import buckets
from process_gen.experiment import cli
from process_gen.reports.table import table
from process_gen.sweeps.cells import Cell, expand, gather, results_of, write_manifest
from process_gen.sweeps.hyper import SweepError
from process_gen.sweeps.running import LOG, Sweep

JOBS = ("local", "claim", "print")
ERRORS = (SweepError, cli.CommandError, OSError)
"""What a user can get wrong; each says so in one line."""


def load_sweep(path: str) -> list[Cell]:
    """The cells of a sweep file; those that train are checked against their config.

    Raises:
      CommandError: there is no such file, it is broken, or a key is not in the config that it trains.
      SweepError: it does not define a valid sweep.
    """
    found, module = cli.load_module(path, "get_hyper")
    if not hasattr(module, "COMMAND"):
        raise SweepError(f'{found} has no COMMAND = ("process_gen.train", "--config=...")')
    with cli.errors_of(found):
        cells = expand(module.get_hyper, module.COMMAND, process_gen.__version__)
    return [_with_content(cell, found) if cell.command[0] == "process_gen.train" else cell for cell in cells]


def _with_content(cell: Cell, path: str) -> Cell:
    """A cell that trains, with a digest of its config and of its losses' code; raises as `load_sweep`."""
    from process_gen.losses.registry import source_of  # imports JAX, which takes seconds

    specs = [word.partition("=")[2] for word in cell.command if word.startswith("--config=")]
    if not specs:
        raise SweepError(f"{path}: COMMAND needs --config=FILE.py:VARIANT")
    for word, value in itertools.pairwise(cell.command):
        if re.fullmatch(r"--?config\.[^=]*", word) and not value.startswith("-"):
            raise SweepError(f"{path}: write {word}={value} as one word")
    overrides = [word for word in cell.command if re.match(r"--?(?:no)?config\.", word)]
    config = cli.config_with(specs[-1], overrides)
    parts = [config.to_json_best_effort(sort_keys=True)]
    for row in filter(None, config.losses.values()):
        with contextlib.suppress(KeyError):  # an unknown loss, or none: the training says so
            parts.append(source_of(row["loss"]))
    return dataclasses.replace(cell, content=hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16])


def table_of(sweep: Sweep) -> str:
    """The cells, their settings and how each ended."""
    keys = list(dict.fromkeys(key for cell in sweep.cells for key in cell.settings))
    rows = []
    for cell in sweep.cells:
        settings = ["-" if (value := cell.settings.get(key)) is None else str(value) for key in keys]
        state = "done, old config" if sweep.is_stale(cell) else sweep.state(cell)
        rows.append([cell.id, *settings, state, sweep.outcome(cell).get("seconds")])
    return table(rows, ["cell", *keys, "state", "seconds"], digits=1)


def main(argv: Sequence[str]) -> int:
    del argv
    values = flags.FLAGS
    for name in ("config", "workdir"):
        if not values[name].value:
            raise cli.CommandError(f"--{name}=... is required")
    buckets.check_on_disk(values.workdir)
    cells = load_sweep(values.config)
    write_manifest(cells, values.workdir)
    sweep = Sweep(cells, values.workdir, retry=values.retry)
    for cell in filter(sweep.is_stale, cells):
        print(f"config changed since it was run: {cell.folder(values.workdir)}", file=sys.stderr)
    if values.jobs == "print":
        gather(cells, values.workdir)
        for cell in cells:
            if sweep.state(cell) in ("open", "failed") and not results_of(cell, values.workdir):
                print(shlex.join(["python", *cell.python_args(values.workdir)]))
        return 0
    try:
        sweep.run(values.parallel, wait=values.jobs == "local", show=cli.show_progress)
    finally:
        gathered = gather(cells, values.workdir)
    failed = [cell for cell in cells if sweep.state(cell) == "failed"]
    print("\n".join([table_of(sweep), "", str(gathered)]))
    for cell in failed:
        last = (sweep.outcome(cell).get("tail") or [""])[-1]
        print(f"failed: {cell.folder(values.workdir) / LOG}: {last}")
    return 1 if failed and values.jobs == "local" else 0


def define_flags() -> None:
    flags.DEFINE_string("config", None, "File of the sweep, e.g. configs/sweeps/guidance.py.")
    flags.DEFINE_string("workdir", None, "Folder of the sweep; all processes that run it share it.")
    flags.DEFINE_enum("jobs", "local", JOBS, "Who runs the cells.")
    flags.DEFINE_integer("parallel", 1, "Cells that this process runs side by side.", lower_bound=1)
    flags.DEFINE_bool("retry", False, "Run failed cells once more.")


if __name__ == "__main__":
    define_flags()
    cli.run(main, ERRORS)

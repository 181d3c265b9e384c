"""Speed of the train step against rows, turn slots and layout, on this machine; nothing is asserted.

    python tests/benchmarks/sweep.py --output_dir=sweep
    python tests/benchmarks/sweep.py --config=configs/scenes.py:debug --rows=1,2 --slots=2

Every setting is a config of its own: `--config` with other rows, turn slots or
one changed leaf of `config.layout`, the rest as it stands. All are given as shares of the best
square matrix product, which is measured right after each of them: on a machine with
other work the ratio says more than the seconds. Leaves a table, `sweep.json`
and `sweep.png`.
"""

from __future__ import annotations

from absl import flags

from process_gen.experiment import cli

if __name__ == "__main__":  # bad flags are found before the slow imports
    flags.DEFINE_list("rows", ["1", "2", "4", "8"], "Rows of the batch to try.")
    flags.DEFINE_list("slots", ["2", "6", "12"], "Step slots of a row to try.")
    flags.DEFINE_list(
        "layouts",
        ["context=last", "context=full", "copies=1", "vit_grid=(4;4)"],
        "Leaves of config.layout to change, one at a time; a tuple is written with semicolons.",
    )
    flags.DEFINE_integer("repeats", 5, "Train steps that are timed for each setting.", lower_bound=2)
    flags.DEFINE_string("output_dir", "sweep", "Folder for the JSON and the plot.")
    cli.read_flags(config="configs/scenes.py:quick")

# isort: split
import ast
import copy
import json
import os
import pathlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict
from speed import TrainTiming, time_train

from process_gen.experiment import builders
from process_gen.reports import files, plots
from process_gen.reports.table import table
from process_gen.training import metering


def settings(
    config: ConfigDict, rows: Sequence[str], slots: Sequence[str], layouts: Sequence[str]
) -> Iterator[tuple[str, ConfigDict]]:
    """The config as it stands, then one change at a time, by what is changed.

    Raises:
      ConfigError: a value that the config cannot have.
    """
    yield f"rows={config.train.batch_size} slots={config.layout.turns}", config
    changes = [("train.batch_size", n, f"rows={n}") for n in rows]
    changes += [("layout.turns", n, f"slots={n}") for n in slots]
    for text in layouts:
        key, _, value = text.partition("=")
        changes.append((f"layout.{key}", value.replace(";", ","), text.replace(";", ",")))
    for key, text, name in changes:
        changed = copy.deepcopy(config)
        try:
            changed.update_from_flattened_dict({key: _value(text)})
        except (KeyError, TypeError) as error:
            raise builders.ConfigError(f"config.{key}={text}: {error}") from error
        layout = changed.layout
        with layout.unlocked():
            layout.trajectories = min(layout.trajectories, layout.turns)
        builders.check(changed)
        if changed.to_dict() != config.to_dict():
            yield name, changed


def _value(text: str) -> Any:
    """A number or a tuple as what it is, a word as text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def measured(name: str, timing: TrainTiming, peak: float) -> dict[str, Any]:
    """What is kept of a setting."""
    parts = timing.flops["useful"]
    return {
        "setting": name,
        "rows": timing.rows,
        "turn_slots": timing.slots,
        "peak_gflops": peak / 1e9,
        "compile_seconds": timing.compile_seconds,
        "step_seconds": {
            "best": timing.best,
            "median": statistics.median(timing.seconds),
            "worst": max(timing.seconds),
        },
        "tokens_per_second": {of: timing.tokens(of) for of in ("useful", "slots")},
        "share_of_peak": {of: timing.share(of, peak) for of in ("useful", "executed")},
        "share_of_peak_by_part": {part: flops / timing.best / peak for part, flops in parts.items()},
    }


def main(argv: Sequence[str]) -> None:
    """Measures every setting, prints the table, writes JSON and plot."""
    del argv
    values = flags.FLAGS
    folder = files.check_writable(values.output_dir)
    builders.check(values.config)
    about = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "model": f"{values.config.model.size}, {values.config.model.dtype}",
    }
    found: list[dict[str, Any]] = []
    for name, config in list(settings(values.config, values.rows, values.slots, values.layouts)):
        timing = time_train(config, values.repeats)
        peak = metering.measured_peak(config.model.dtype)  # right after it: other work comes and goes
        found.append(measured(name, timing, peak))
        print(f"{name}: {found[-1]['step_seconds']['best'] * 1e3:.0f} ms", flush=True)
        _write(folder, about, found)  # what was measured so far is worth keeping
    print("\n" + _table(found))
    print(f"{about['model']} on {about['device']}; load average {os.getloadavg()[2]:.1f} over 15 minutes")
    print(f"wrote {folder / 'sweep.json'} and {folder / 'sweep.png'}")


def _write(folder: pathlib.Path, about: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """The JSON and the plot."""
    content = json.dumps({**about, "settings": found}, indent=1) + "\n"
    files.write_bytes(folder / "sweep.json", content.encode())
    bars = {of: {one["setting"]: _whisker(one, of) for one in found} for of in ("executed", "useful")}
    ylabel = "share of the matrix product's FLOP/s, best to median"
    plots.bars(bars, folder / "sweep.png", about["model"], ylabel)


def _table(found: list[dict[str, Any]]) -> str:
    rows = [
        (
            one["setting"],
            f"{one['peak_gflops']:,.0f}",
            f"{one['step_seconds']['best'] * 1e3:.0f}",
            f"{one['step_seconds']['median'] * 1e3:.0f}",
            f"{one['tokens_per_second']['useful']:,.0f}",
            f"{one['tokens_per_second']['slots']:,.0f}",
            f"{one['share_of_peak']['useful']:.1%}",
            f"{one['share_of_peak']['executed']:.1%}",
        )
        for one in found
    ]
    headers = ("setting", "GFLOP/s", "best ms", "median ms", "tokens/s", "slots/s", "of peak", "executed")
    return table(rows, headers)


def _whisker(one: dict[str, Any], of: str) -> tuple[float, float, float]:
    """The share of the best step, and how low that of the median is."""
    share, seconds = one["share_of_peak"][of], one["step_seconds"]
    return share, share * seconds["best"] / seconds["median"], share


if __name__ == "__main__":
    cli.run(main, (builders.ConfigError, OSError))

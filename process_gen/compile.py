"""Compiles a config for absent hardware and reports memory, traffic between devices and estimated time.

    python -m process_gen.compile --topology=v5p:4x4x4 --config.train.batch_size=64 \\
        --config.mesh.data=2 --config.mesh.fsdp=32
    python -m process_gen.compile --config=configs/bagel_7b.py --topology=v6e:8x8 --slices=2 \\
        --config.train.batch_size=128 --config.mesh.data=2 --config.mesh.fsdp=32 \\
        --json=v6e.json --trajectories=62000
    python -m process_gen.compile --config=configs/bagel_7b.py:paper --topology=h100:8
    python -m process_gen.compile --config=configs/bagel_7b.py --topology=v5p:2x2x2 --step=sample

Compiles the train step that `process_gen.train` runs, or with `--step=sample`
every program of the sampler, with the compiler of the hardware. For TPUs that
takes `pip install libtpu` and no TPU, for GPUs `pip install -e ".[cuda13]"` and
no GPU (`--slices` counts nodes there). `cpu:8` stands for eight devices of a CPU:
their shardings and collectives are exact, their memory is approximate (a CPU
computes bfloat16 in float32).

Exit code: 0 if the program fits or the memory of a device is unknown; 3 if it does
not fit, with hints on what to change; 2 if the command line or the config is invalid.
"""

from __future__ import annotations

from absl import flags

from process_gen.experiment import cli

if __name__ == "__main__":  # bad flags are found before the slow imports
    flags.DEFINE_string("topology", None, "Devices, such as v5p:4x4x4, v6e:8x8, h100:8, cpu:8 or gpu.")
    flags.DEFINE_integer(
        "slices", 1, "Slices, or nodes of GPUs, that a data-centre network joins.", lower_bound=1
    )
    flags.DEFINE_enum("step", "train", ("train", "sample"), "What to compile.")
    flags.DEFINE_string("json", None, "File for everything that is printed, as JSON.")
    flags.DEFINE_integer(
        "trajectories", 0, "Number of trajectories to estimate device hours for.", lower_bound=0
    )
    flags.DEFINE_string("chip", None, "Chip whose memory and speed count, if not the topology's own.")
    flags.DEFINE_float(
        "hbm",
        None,
        "GiB of a device, if not the chip's. Of a GPU a share counts (XLA_CLIENT_MEM_FRACTION).",
        lower_bound=0.0,
    )
    flags.DEFINE_float(
        "efficiency", 0.6, "Share of the peak that matrix products reach: an assumption.", 0.01, 1.0
    )
    flags.DEFINE_enum(
        "mix", "paper", ("paper", "full"), "What rows hold: the paper's data, or every slot full."
    )
    flags.DEFINE_string("hlo", None, "File for the text of the compiled train step.")
    flags.DEFINE_bool("quick", False, "Whether to stop once memory is assigned (TPUs, train step only).")
    flags.DEFINE_string("dump_to", None, "Folder for the dumps of the compiler (without --quick).")
    cli.read_flags(config="configs/bagel_7b.py:paper")

# isort: split
import dataclasses
import json
import math
import os
import pathlib
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from process_gen.capacity import fit, topology
from process_gen.capacity.measured import Measured, bytes_per_device, measure
from process_gen.capacity.topology import Topology, TopologyError
from process_gen.data.tokenizers import Tokenizer, scenes_tokenizer
from process_gen.distributed import sharding
from process_gen.distributed.chips import GIB
from process_gen.distributed.mesh import MeshConfig, make_mesh
from process_gen.experiment import builders, vocabulary
from process_gen.models import partition
from process_gen.reports.table import table
from process_gen.sampling import SamplerConfig
from process_gen.sampling.pieces import pieces
from process_gen.sampling.text import text_specs
from process_gen.training import amounts
from process_gen.training.program import TrainProgram

DOES_NOT_FIT = 3
"""Exit code where the program needs more memory than a device has."""


Progress = Callable[[str], None]


def compile_train(
    config: ConfigDict, where: Topology, ask: fit.Ask, progress: Progress = print, **options: Any
) -> dict[str, Any]:
    """Compiles the train step of a config for some devices; see `capacity.fit.train_report`.

    `options` are those of `capacity.measured.measure`; raises as `train_program` and `capacity.fit.where`.
    """
    program, slices = train_program(config, where)
    fit.where(program.mesh, where, ask)  # raises for an invalid share before the slow part
    progress(f"train step on {where.name}: {len(where.devices)} devices, lowering")
    started = time.perf_counter()
    lowered = program.step.lower(*program.abstract)
    lowering = time.perf_counter() - started
    progress(f"train step: lowered in {lowering:.0f} s, compiling")
    found = measure("train step", lowered, program.mesh, slices, progress, lowering=lowering, **options)
    return fit.train_report(config, program, where, found, ask)


def train_program(config: ConfigDict, where: Topology) -> tuple[TrainProgram, dict[str, int]]:
    """The train step of a config, and how many slices each mesh axis spans.

    With several image shapes, it is the step of the shape with the most tokens per row.

    Raises:
      ConfigError, MeshError: the config cannot work there.
    """
    builders.check(config)
    mesh, slices = mesh_of(config, where)
    layout = max(builders.build_layouts(config).values(), key=lambda one: one.row_tokens)
    model = builders.build_model(config, tokenizer_of(config)).clone(layout=layout)
    return TrainProgram.of(config, model, mesh), slices


def compile_sample(
    config: ConfigDict, where: Topology, ask: fit.Ask, progress: Progress = print
) -> dict[str, Any]:
    """Compiles every program of a config's sampler for some devices.

    Raises:
      ConfigError, MeshError, SamplerError: the config cannot work there.
    """
    builders.check(config)
    mesh, slices = mesh_of(config, where)
    place = fit.where(mesh, where, ask)
    tokenizer = tokenizer_of(config)
    model = builders.build_model(config, tokenizer)
    settings = SamplerConfig.of(config.sampling.to_dict(), mode=config.data.mode)
    with config.unlocked():  # sampling ignores it, but it must divide over the mesh
        config.train.batch_size = sharding.row_shards(mesh) * config.train.accumulate
    state = TrainProgram.of(config, model, mesh).abstract[0]
    rows = config.eval.batch_size
    axes = sharding.sampling_axes(rows, mesh)
    if not axes:
        progress(f"{rows} rows (config.eval.batch_size) do not divide: every device has them all")
    texts = text_specs(model, tokenizer, settings)
    pool, compiling = futures.ThreadPoolExecutor(_TOGETHER), []
    try:
        with partition.on_mesh(mesh, sharding.ACTIVATION_RULES):
            for piece in pieces(model, texts, settings, state.average, state.autoencoder, rows, mesh, axes):
                started = time.perf_counter()
                lowered = piece.lower()
                lowering = time.perf_counter() - started
                one = pool.submit(measure, piece.name, lowered, mesh, slices, progress, lowering=lowering)
                compiling.append((one, bytes_per_device(piece.held)[0]))
        progress(f"sampler on {where.name}: {len(compiling)} programs, compiling {_TOGETHER} at a time")
        found = [dataclasses.replace(one.result(), resident=held) for one, held in compiling]
    finally:
        pool.shutdown(cancel_futures=True)
    verdicts = [fit.fits(one, place["hbm"]) for one in found]
    return {
        "config": config.name,
        "step": "sample",
        **place,
        "rows": rows,
        "held": {
            "parameters": bytes_per_device(state.average)[0],
            "autoencoder": bytes_per_device(state.autoencoder)[0],
        },
        "pieces": [_piece(one) for one in found],
        "fits": False if False in verdicts else None if None in verdicts else True,
    }


_TOGETHER = min(os.cpu_count() or 1, 4)
"""Programs that are compiled at once. Each uses one thread most of the time, and up to about 6 GiB."""


def _piece(one: Measured) -> dict[str, Any]:
    found = dataclasses.asdict(one) | {"resident": max(one.resident, one.arguments)}
    found["peak"] = one.peak if math.isfinite(one.peak) else None  # refused, without a figure
    return found | {"received": sum(exchange.bytes for exchange in one.traffic)}


def describe_sample(report: dict[str, Any]) -> str:
    """The report of the sampler's programs for a terminal."""
    peaks = [piece["peak"] for piece in report["pieces"]]
    name, unit = fit.unit_of(max(filter(None, peaks), default=0))
    headers = ("piece", "resident", "temporaries", "all at once", "received", "compiled in, s")
    kept = ("resident", "temporaries", "peak", "received")
    rows = [
        (p["name"], *("" if p[key] is None else p[key] / unit for key in kept), p["seconds"][1])
        for p in report["pieces"]
    ]
    lines = [
        f"{report['config']}, sampler on {report['topology']}: {report['devices']} devices, "
        f"{report['rows']} rows at once; {name} of one device",
        "",
        table(rows, headers, digits=2),
        "",
        "`resident`: weights and contexts, whether the piece reads them or not.",
        f"`received`: {fit.RECEIVED}.",
    ]
    lines.append(fit.fit_line(None if None in peaks else max(peaks), report))
    if report["fits"] is False:
        lines.append(
            f"Take fewer rows (--config.eval.batch_size={max(report['rows'] // 2, 1)}), or split the "
            "parameters over more devices (--config.mesh.fsdp)."
        )
    return "\n".join(lines)


# ---------------------------------------------------------------------- pieces


def mesh_of(config: ConfigDict, where: Topology) -> tuple[Mesh, dict[str, int]]:
    """The mesh of a config over some devices, and the slices that axes span, where more than one.

    Raises:
      MeshError: it does not fit the devices, or the slices.
    """
    asked = MeshConfig(**config.mesh.to_dict())
    if where.platform == "cpu" and where.slices > 1:  # even if the config has no axis between slices
        asked = dataclasses.replace(asked, dcn=dict(asked.dcn) | {"data": where.slices})
    _, between = asked.split(len(where.devices), where.slices)
    # Devices of a CPU and absent GPUs have no slice index, so the mesh gets the sizes between slices.
    mesh = make_mesh(dataclasses.replace(asked, dcn=between), where.devices)
    return mesh, {axis: n for axis, n in between.items() if n > 1}


def tokenizer_of(config: ConfigDict) -> Tokenizer:
    """The config's tokenizer, or the scenes tokenizer if the config's folder is missing.

    A program has its ids as constants only: no array size depends on them.
    """
    try:
        return vocabulary.build_tokenizer(config)
    except builders.ConfigError as error:
        logging.info("the scenes tokenizer stands in for config.data.tokenizer (%s)", error)
        return scenes_tokenizer()


# --------------------------------------------------------------------- command


def main(argv: Sequence[str]) -> int:
    """Compiles, prints and writes the report; returns 3 if the program does not fit, else 0."""
    del argv
    values = flags.FLAGS
    if not values.topology:
        raise TopologyError(f"--topology is required: {topology.EXAMPLES}")
    name = topology.parse(values.topology, values.slices)
    if values.quick and (values.step != "train" or name.generation not in topology.TPUS):
        raise TopologyError("--quick is for the train step on TPUs: leave it out")
    topology.prepare(name)
    where = topology.get(name, values.chip)
    ask = fit.Ask(
        amounts.of_a_row if values.mix == "paper" else amounts.of_a_full_row,
        values.efficiency,
        values.trajectories,
        None if values.hbm is None else values.hbm * GIB,
    )
    started = time.perf_counter()

    def progress(line: str) -> None:
        print(f"[{time.perf_counter() - started:5.0f} s] {line}", flush=True)

    if values.step == "sample":
        report = compile_sample(values.config, where, ask, progress)
        print("\n" + describe_sample(report))
    else:
        options = {"dump": values.dump_to, "hlo_file": values.hlo, "quick": values.quick}
        report = compile_train(values.config, where, ask, progress, **options)
        print("\n" + fit.describe(report))
    given = [word for word in sys.argv[1:] if not re.match("--?json(=|$)", word)]
    report["command"] = shlex.join(["python", "-m", "process_gen.compile", *given])
    if values.json:
        pathlib.Path(values.json).write_text(json.dumps(report, indent=1) + "\n")
        print(f"wrote {values.json}")
    code = DOES_NOT_FIT if report["fits"] is False else 0
    if values.quick:  # the compiler still runs, in a thread that cannot be stopped
        sys.stdout.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    cli.run(main, (ValueError, OSError))

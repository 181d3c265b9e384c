"""Whether a train step fits a topology, what it costs there, and what to change if it does not fit."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from process_gen.capacity import roofline
from process_gen.capacity.measured import Measured, bytes_per_device
from process_gen.capacity.topology import Topology
from process_gen.distributed.chips import GIB, GPU_TARGETS
from process_gen.models import cost
from process_gen.models.config import ModelConfig
from process_gen.reports.table import table
from process_gen.training.program import TrainProgram
from process_gen.trajectory.layout import Layout

RECEIVED = (
    "by `sample_image` for a whole image; by `decode_text`, which ends with the last row's text, for the "
    "start of a text and one token more"
)
"""What the bytes received by each of the sampler's programs cover; for the report."""

GPU_SHARE, _OLDER = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
"""The environment variable for the share of GPU memory that JAX may take, and its older name."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """Options of a report.

    Attributes:
      counts: from a layout to what a row holds on average, as `training.amounts.of_a_row`.
      efficiency: share of the peak FLOP/s that matrix products reach, in (0, 1].
      trajectories: how many are to be trained on, for an estimate of device hours; 0 for none.
      hbm: bytes of memory of a device, instead of the chip's. On GPUs only `GPU_SHARE` of it counts.
    """

    counts: Callable[[Layout], Mapping[str, float]]
    efficiency: float = roofline.EFFICIENCY
    trajectories: int = 0
    hbm: float | None = None


def train_report(
    config: ConfigDict, program: TrainProgram, topology: Topology, found: Measured, ask: Ask
) -> dict[str, Any]:
    """Collects all figures of a compiled train step in a dict of plain JSON values; see `describe`."""
    model, layout = program.recipe.model.config, program.recipe.model.layout
    rows, share = config.train.batch_size, config.train.batch_size / len(topology.devices)
    counts = ask.counts(layout)
    useful_tokens = counts["und_tokens"] + counts["gen_tokens"]
    how = cost.Program(config.train.unroll, topology.platform, not config.data.get("latents", ""))
    once = cost.computed(model, layout, counts, how)
    flops = {
        "useful": cost.useful(model, layout, counts, how.encode),
        "padded": {p: flops * (how.encode if p == "autoencoder" else 3.0) for p, flops in once.items()},
        "executed": cost.executed(model, layout, counts, how),
    }
    report = {
        "config": config.name,
        "step": "train",
        **where(program.mesh, topology, ask),
        "rows": rows,
        "rows_per_device": share,
        "unroll": config.train.unroll,
        "tokens_per_row": layout.row_tokens,
        "useful_tokens_per_row": useful_tokens,
        "executed_flops_per_useful_token": sum(flops["executed"].values()) / useful_tokens,
        "holds": dict(counts),
        "seconds": {"lower": found.seconds[0], "compile": found.seconds[1]},
        "memory": memory(program, found),
        "traffic": [dataclasses.asdict(one) for one in found.traffic],
        "flops_per_device": {
            kind: {part: value * share for part, value in parts.items()} for kind, parts in flops.items()
        },
        "unknown_loops": found.unknown_loops,
        "refused": found.refused,
    }
    report["fits"] = fits(found, report["hbm"])
    report["notes"] = notes(model, topology, report)
    report["hints"] = hints(config, program, report) if report["fits"] is False else []
    if topology.chip is not None and found.needed is None:
        report |= _time(report, topology, layout, found, ask)
    return report


_TILE_ROWS = 16
"""Rows of bfloat16 in one tile of a TPU's memory."""


def notes(model: ModelConfig, topology: Topology, report: dict[str, Any]) -> list[str]:
    """Warnings about a program that works: costly collectives, loops that could not be counted."""
    found, fsdp = [], report["mesh"]["fsdp"]
    sent = collections.Counter()
    for one in report["traffic"]:
        if "fsdp" in one["axes"]:
            sent[one["kind"]] += one["bytes"]
    in_tiles = model.width % (fsdp * _TILE_ROWS) == 0
    if topology.platform == "tpu" and sent["all-reduce"] > sent["all-gather"] and not in_tiles:
        fitting = [n for n in range(1, fsdp) if not fsdp % n and not model.width % (n * _TILE_ROWS)]
        found.append(
            f"A device has {model.width} / {fsdp} = {model.width / fsdp:g} rows of a matrix, no multiple of "
            f"the {_TILE_ROWS} of a tile: the compiler gathers weights by all-reduce, at twice the bytes."
        )
        if fitting:
            found[-1] += (
                f" With --config.mesh.data={report['mesh']['data'] * fsdp // fitting[-1]} "
                f"--config.mesh.fsdp={fitting[-1]} it gathers them, and each device holds more of the state."
            )
    if report["unknown_loops"]:
        found.append(f"{report['unknown_loops']} loops of unknown length count once in the exchanges.")
    return found


def where(mesh: Mesh, topology: Topology, ask: Ask) -> dict[str, Any]:
    """The fields of a report about its devices; raises ValueError unless `GPU_SHARE` is in (0, 1]."""
    chip = topology.chip
    hbm = ask.hbm if ask.hbm is not None else chip and chip.hbm
    on_gpu = topology.platform == "gpu" or (chip is not None and chip.name in GPU_TARGETS)
    share = _share_of_gpu() if on_gpu else 1.0
    return {
        "topology": topology.name,
        "slices": topology.slices,
        "devices": len(topology.devices),
        "mesh": dict(mesh.shape),
        "chip": chip and chip.name,
        "hbm": hbm and hbm * share,
        "hbm_share": share,
    }


def _share_of_gpu() -> float:
    """The share that the environment sets, else 0.9, as `launch/env.sh`; raises ValueError for no share."""
    name = GPU_SHARE if os.environ.get(GPU_SHARE) else _OLDER
    text = os.environ.get(name) or "0.9"
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0.0 < share <= 1.0:
        raise ValueError(f"{name}={text} is no share of a GPU's memory: give a number above 0, at most 1")
    return share


def fits(found: Measured, hbm: float | None) -> bool | None:
    """Whether a program fits into `hbm` bytes; False if the compiler refused it, None if `hbm` is unknown."""
    if found.needed is not None:
        return False
    return None if hbm is None else found.peak <= hbm


def memory(program: TrainProgram, found: Measured) -> dict[str, float]:
    """Bytes by what they hold, on one device; `host` is in host memory, `peak` None where it is unknown."""
    state, batch = program.abstract
    parts = {
        "parameters": state.params,
        "average": state.ema,
        "optimizer": state.opt_state,
        "autoencoder": state.autoencoder,
        "frozen networks": state.networks,
        "batch": batch,
    }
    sizes = {name: bytes_per_device(tree) for name, tree in parts.items()}
    return {name: device for name, (device, _) in sizes.items()} | {
        "host": sum(host for _, host in sizes.values()),
        "temporaries": found.temporaries,
        "outputs": found.outputs - found.aliased,
        "code": found.code,
        "peak": found.peak if math.isfinite(found.peak) else None,
    }


def _time(
    report: dict[str, Any], topology: Topology, layout: Layout, found: Measured, ask: Ask
) -> dict[str, Any]:
    """The fields of a report that follow from its estimated step time: throughput, MFU, device hours."""
    chip, held, row = topology.chip, report["memory"], report["holds"]
    gathered = sum(one.bytes for one in found.traffic if one.kind == "all-gather")
    arguments = sum(held[name] for name in ("parameters", "average", "optimizer", "batch"))
    moved = 2 * (arguments + held["temporaries"] + gathered)
    sides = 3 if topology.name.startswith(("v5p", "tpu7x")) else 2
    flops = {kind: sum(parts.values()) for kind, parts in report["flops_per_device"].items()}
    estimate = roofline.estimate(chip, flops["executed"], moved, found.traffic, ask.efficiency, sides)
    seconds, devices = estimate["worst"], report["devices"]
    trajectories_per_second = report["rows"] * row["trajectories"] / seconds
    share = report["hbm_share"]
    result = {
        "estimate": estimate,
        "assumptions": [
            *roofline.assumptions(chip, ask.efficiency),
            *([f"a program has {share:.0%} of a GPU's memory ({GPU_SHARE})"] if share < 1.0 else []),
            f"a row holds {row['trajectories']:.2f} trajectories and {row['turns']:.2f} of "
            f"{layout.turns} turns, and {row['useful']:.1%} of its tokens hold something",
        ],
        "tokens_per_second_per_device": report["useful_tokens_per_row"] * report["rows_per_device"] / seconds,
        "trajectories_per_second": trajectories_per_second,
        "mfu": flops["useful"] / seconds / chip.flops,
    }
    if ask.trajectories:
        result["trajectories"] = ask.trajectories
        result["device_hours"] = ask.trajectories / trajectories_per_second / 3600 * devices
    return result


# ----------------------------------------------------------------------- hints


def hints(config: ConfigDict, program: TrainProgram, report: dict[str, Any]) -> list[dict[str, Any]]:
    """Changes that could make it fit, with roughly the bytes that each saves on a device; largest first."""
    model, held = program.recipe.model.config, report["memory"]
    state = sum(held[name] for name in ("parameters", "average", "optimizer"))
    frozen = held["autoencoder"] + held["frozen networks"]
    taken = (held["peak"] or 0.0) - state - frozen - held["batch"]
    temporaries = held["temporaries"] or max(taken, 0.0)
    mesh, rows, turns = report["mesh"], report["rows_per_device"], config.layout.turns
    dense, copies = model.attention == "dense", mesh["data"] / report["slices"]
    inputs = 2.0 * model.layers * model.width * rows * report["tokens_per_row"]
    fewer = config.train.batch_size // math.ceil(rows)
    ways = [  # (whether it applies, bytes saved, reason, keys to set)
        (dense, 0.8 * temporaries, "no scores in memory", {"model.attention": "flash"}),
        (not dense, temporaries / 2, "the tokens of a row are split over devices",
         {"mesh.context": 2 * mesh["context"]}),
        (model.remat not in ("full", "offload"), 0.6 * temporaries, "layers are computed again",
         {"model.remat": "full"}),
        (model.remat == "full", inputs, "layers' inputs wait on the host", {"model.remat": "offload"}),
        (config.train.unroll == "layers" and model.remat != "none", 0.2 * temporaries,
         "turns one after the other, each computed again", {"train.unroll": "scan"}),
        (copies > 1, state * (1 - 1 / copies), "the state is split over more devices",
         {"mesh.data": report["slices"], "mesh.fsdp": -1}),
        (config.train.get("offload") == "none", held["optimizer"], "moments wait on the host",
         {"train.offload": "optimizer"}),
        (rows > 1, temporaries * (1 - 1 / rows), "fewer rows at once", {"train.batch_size": fewer}),
        (turns > 1, 0.4 * temporaries, "shorter rows: less context, and its gradient",
         {"layout.turns": turns // 2}),
    ]  # fmt: skip
    found = [
        {"change": " ".join(_flag(config, *item) for item in changes.items()), "saves": saved, "because": why}
        for possible, saved, why, changes in ways
        if possible and saved > 0
    ]
    found.append({"change": "twice the devices", "saves": state / 2, "because": "half the state on each"})
    return sorted(found, key=lambda one: -one["saves"])


def _flag(config: ConfigDict, key: str, value: Any) -> str:
    """How to set a key: a flag, or a line of the config file where the config does not have the key yet."""
    there = config
    for part in key.split("."):
        there = there.get(part) if isinstance(there, ConfigDict) else None
    return f"--config.{key}={value}" if there is not None else f"config.{key} = {value!r} in the config file"


# ---------------------------------------------------------------------- tables


def describe(report: dict[str, Any]) -> str:
    """Formats the report of a train step for a terminal."""
    slices = f" x {report['slices']} slices" if report["slices"] > 1 else ""
    mesh = " x ".join(f"{size} {axis}" for axis, size in report["mesh"].items() if size > 1) or "1 device"
    head = (
        f"{report['config']} on {report['topology']}{slices}: {report['devices']} devices, mesh {mesh}, "
        f"{report['rows']} rows of {report['tokens_per_row']:,} tokens"
    )
    lines = [head, "", _memory_table(report), "", _traffic_table(report), "", _flops_table(report)]
    if "estimate" in report:
        lines += ["", _time_table(report), "", "Assumed, not measured:"]
        lines += [f"  - {line}" for line in report["assumptions"]]
    for note in report["notes"]:
        lines += ["", f"Note: {note}"]
    return "\n".join([*lines, "", verdict(report)])


def unit_of(value: float | None) -> tuple[str, float]:
    """Name and bytes of the unit to show a value in: MiB below a quarter of a GiB, else GiB."""
    return ("MiB", 2.0**20) if value is not None and value < GIB / 4 else ("GiB", float(GIB))


_HELD = {
    "average": "moving average",
    "optimizer": "optimizer state",
    "outputs": "outputs besides the state",
    "code": "program",
    "peak": "all at once",
}
"""Names in the table for keys of the memory report, where they differ."""


def _memory_table(report: dict[str, Any]) -> str:
    held = {_HELD.get(name, name): value for name, value in report["memory"].items()}
    on_host, hbm = held.pop("host"), report["hbm"]
    name_of_unit, unit = unit_of(report["memory"]["peak"])
    if hbm:
        held[f"memory of a device ({report['chip'] or 'as given'})"] = hbm
    rows = [
        (name, None, "") if size is None else (name, size / unit, f"{size / hbm:.0%}" if hbm else "")
        for name, size in held.items()
    ]
    if on_host:
        rows.append(("on the host", on_host / unit, ""))
    return table(rows, ("memory of one device", name_of_unit, "share"), digits=2)


def _traffic_table(report: dict[str, Any]) -> str:
    name, unit = unit_of(max((one["bytes"] for one in report["traffic"]), default=0.0))
    rows = [
        (one["kind"], " ".join(one["axes"]) or "-", "network" if one["network"] else "links",
         one["bytes"] / unit, int(one["runs"]))
        for one in report["traffic"]
    ]  # fmt: skip
    rows.append(("all", "", "", sum(row[3] for row in rows), sum(row[4] for row in rows)))
    return table(rows, ("exchange", "axes", "over", f"{name} received", "times"), digits=3)


def _flops_table(report: dict[str, Any]) -> str:
    kinds = report["flops_per_device"]
    name, unit = ("TFLOP", 1e12) if sum(kinds["padded"].values()) > 1e11 else ("GFLOP", 1e9)
    rows = [(part, *(kinds[kind][part] / unit for kind in kinds)) for part in cost.PARTS]
    rows.append(("all", *(sum(kinds[kind].values()) / unit for kind in kinds)))
    names = (f"{name} of one device", "useful", "every slot", "with recomputation")
    useful = report["useful_tokens_per_row"]
    share = sum(kinds["useful"].values()) / sum(kinds["executed"].values())
    return table(rows, names, digits=2) + (
        f"\nuseful: {useful / report['tokens_per_row']:.1%} of the tokens, {share:.1%} of the FLOP; "
        f"{report['executed_flops_per_useful_token'] / 1e9:.1f} GFLOP per useful token"
    )


def _time_table(report: dict[str, Any]) -> str:
    one = report["estimate"]
    alone = ("compute", "memory", "links", "network", "hops")
    rows = [
        *(("arithmetic" if name == "compute" else name, _seconds(one[name])) for name in alone),
        ("a step", f"{_seconds(one['best'])} to {_seconds(one['worst'])}, bound by {one['bound']}"),
        ("tokens a second and device", f"{report['tokens_per_second_per_device']:,.0f}"),
        ("trajectories a second", f"{report['trajectories_per_second']:.2f}"),
        ("share of the peak (useful FLOP)", f"{report['mfu']:.0%}"),
    ]
    if "device_hours" in report:
        rows.append(
            (f"{report['trajectories']:,} trajectories", f"{report['device_hours']:,.0f} device hours")
        )
    return table(rows, ("estimated time", "each by itself"))


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1e3:.2f} ms"


def verdict(report: dict[str, Any]) -> str:
    """Whether it fits, and what to change if it does not."""
    lines = [fit_line(report["memory"]["peak"], report)]
    if report["fits"] is False:
        if report["refused"]:
            lines.append(f"The compiler says: {report['refused']}")
        lines.append("What to change, the most helpful first (saved bytes are estimates):")
        lines += [
            f"  {hint['change']}  (about {hint['saves'] / GIB:.1f} GiB: {hint['because']})"
            for hint in report["hints"]
        ]
    return "\n".join(lines)


def fit_line(peak: float | None, report: dict[str, Any]) -> str:
    """Says whether `peak` bytes, None if unknown, fit the devices of a report, by its field `fits`."""
    if report["fits"] is None:
        return "Whether it fits is not known: a CPU has no memory of its own; --chip=h100 lends it one."
    hbm, share = f"{(report['hbm'] or 0) / GIB:.2f} GiB", report["hbm_share"]
    hbm += f", {share:.0%} of a GPU's memory ({GPU_SHARE})" if share < 1.0 else ""
    if report["fits"]:
        return f"It fits: {peak / GIB:.2f} of {hbm}."
    taken = "more" if peak is None else f"{peak / GIB:.2f} GiB"
    return f"It does NOT fit: it takes {taken}, a device has {hbm}."

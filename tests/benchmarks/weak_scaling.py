"""Weak scaling on paper: what one device holds and receives as devices and rows grow together.

    python tests/benchmarks/weak_scaling.py --output_dir=launch/capacity
    python tests/benchmarks/weak_scaling.py --sizes=2x2x4,4x4x4 --output_dir=/tmp/scaling

Compiles the train step with one row per device for TPU slices from 16 to 4,096
devices (unless the folder has the report of a size already), and draws memory
and time of one device. `--fsdp` devices hold one copy of the state; more devices
hold more copies (`mesh.data`).

Where exchanges would overtake arithmetic beyond the largest size is a formula:
those among copies take more hops along the sides of the torus, and bring as many
bytes as before. Nothing of this has run on a TPU.
"""

from __future__ import annotations

from absl import flags

from process_gen.experiment import cli

if __name__ == "__main__":  # bad flags are found before the slow imports
    flags.DEFINE_string("config_file", "configs/bagel_7b.py:paper", "Config whose train step is compiled.")
    flags.DEFINE_string("generation", "v5p", "TPU generation.")
    flags.DEFINE_string("sizes", "2x2x4,4x4x4,4x4x8,4x8x8,8x8x16,16x16x16", "Slices to compile for.")
    flags.DEFINE_integer("fsdp", 32, "Devices that hold one copy of the state, at most 128 for the 7B.", 1)
    flags.DEFINE_string("output_dir", "launch/capacity", "Folder for reports, plot and summary.")
    cli.read_flags()

# isort: split
import json
import math
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from process_gen.capacity import roofline
from process_gen.distributed.chips import CHIPS, GIB


def compiled(config: str, generation: str, size: str, fsdp: int, folder: pathlib.Path) -> dict[str, Any]:
    """The report of one size, compiled now unless it is there."""
    path = folder / f"{generation}_{size}.json"
    if not path.exists():
        rows = math.prod(int(side) for side in size.split("x"))
        command = [sys.executable, "-m", "process_gen.compile", f"--config={config}", "--quick"]
        command += ["--trajectories=62000"]
        command += [f"--topology={generation}:{size}", f"--config.train.batch_size={rows}", f"--json={path}"]
        if rows > fsdp:
            command += [f"--config.mesh.data={rows // fsdp}", f"--config.mesh.fsdp={fsdp}"]
        print(" ".join(command[1:]), flush=True)
        done = subprocess.run(command, check=False).returncode
        if done not in (0, 3):
            sys.exit(f"error: {generation}:{size} has not compiled (exit code {done})")
    return json.loads(path.read_text())


def exchange_seconds(report: dict[str, Any], devices: np.ndarray) -> np.ndarray:
    """Seconds that the exchanges of one device would take with more copies of what was compiled."""
    sides = 3 if report["topology"].startswith(("v5p", "tpu7x")) else 2

    def hops(n):
        return sides * np.maximum(np.ceil(n ** (1 / sides)) // 2, 1)

    estimate, own = report["estimate"], np.array([report["devices"]])
    runs = sum(one["runs"] for one in report["traffic"] if "data" in one["axes"])
    more = runs * (hops(devices) - hops(own)) * roofline.HOP_SECONDS
    return estimate["links"] + estimate["hops"] + more


def crossing(report: dict[str, Any]) -> dict[str, float | None]:
    """Where exchanges would take as long as the arithmetic.

    Returns:
      `devices`: with one row per device, how many it takes; None if a thousand million are not enough;
      `tokens`: per device, at the compiled size, below which exchanges take longer;
      `network_share`: seconds of the same bytes over the data-centre network, in seconds of arithmetic.
    """
    estimate = report["estimate"]
    many = np.round(np.logspace(math.log10(report["devices"]), 9, 4000))
    over = many[exchange_seconds(report, many) > estimate["compute"]]
    here = exchange_seconds(report, np.array([report["devices"]]))[0]
    tokens = report["tokens_per_row"] * report["rows_per_device"]
    chip = CHIPS[report["chip"]]
    network = estimate["links"] * chip.link_bandwidth / chip.network_bandwidth
    return {
        "devices": float(over[0]) if len(over) else None,
        "tokens": float(tokens * here / estimate["compute"]),
        "network_share": network / estimate["compute"],
    }


def draw(reports: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws memory, bytes and time of one device."""
    base, devices = reports[-1], [r["devices"] for r in reports]
    figure, panels = plt.subplots(1, 3, figsize=(13, 3.8))
    memory, received, time = panels
    memory.plot(devices, [r["memory"]["peak"] / GIB for r in reports], "o-", label="at once")
    memory.plot(devices, [r["memory"]["temporaries"] / GIB for r in reports], "s-", label="temporaries")
    memory.axhline(base["hbm"] / GIB, color="0.6", linestyle="--", label=f"a device of {base['chip']}")
    memory.set(title="memory of one device", ylabel="GiB", ylim=(0, None))
    for kind, chosen in (("all", lambda axes: True), ("among copies", lambda axes: "data" in axes)):
        sums = [sum(t["bytes"] for t in r["traffic"] if chosen(t["axes"])) / GIB for r in reports]
        received.plot(devices, sums, "o-", label=kind)
    received.set(title="received by one device in a step", ylabel="GiB", ylim=(0, None))
    for name, key in (("arithmetic", "compute"), ("links", "links"), ("hops", "hops")):
        time.plot(devices, [r["estimate"][key] for r in reports], "o-", label=name)
    time.set(title="one step, one row per device", ylabel="seconds, estimated", yscale="log")
    for axes in panels:
        axes.set(xscale="log", xlabel="devices")
        axes.set_xticks([16, 64, 256, 1024, 4096], ["16", "64", "256", "1,024", "4,096"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(
        f"{base['config']} on {base['chip']}, compiled, rows of {base['tokens_per_row']:,.0f} tokens"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str]) -> None:
    """Compiles what is missing, draws, and says where lines cross."""
    del argv
    values = flags.FLAGS
    folder = pathlib.Path(values.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = values.sizes.split(",")
    reports = [compiled(values.config_file, values.generation, size, values.fsdp, folder) for size in sizes]
    draw(reports, folder / "weak_scaling.png")
    found = crossing(reports[-1])
    rows = [
        {
            "devices": r["devices"],
            "mesh": r["mesh"],
            "memory": r["memory"],
            "received": sum(one["bytes"] for one in r["traffic"]),
            "exchanges": sum(one["runs"] for one in r["traffic"]),
            "estimate": r["estimate"],
        }
        for r in reports
    ]
    summary = {
        "config": values.config_file,
        "generation": values.generation,
        "sizes": rows,
        "crossing": found,
    }
    (folder / "weak_scaling.json").write_text(json.dumps(summary, indent=1) + "\n")
    for r in rows:
        print(
            f"{r['devices']:5d} devices: {r['memory']['peak'] / GIB:6.2f} GiB, "
            f"receives {r['received'] / GIB:7.1f} GiB in {r['exchanges']:.0f} exchanges, "
            f"{r['estimate']['best']:.2f} to {r['estimate']['worst']:.2f} s"
        )
    print("exchanges would take longer than arithmetic:")
    devices = found["devices"]
    print("  with one row per device: " + (f"from {devices:,.0f} devices on" if devices else "at no size"))
    print(f"  with fewer than {found['tokens']:,.0f} tokens per device at {rows[-1]['devices']:,} devices")
    print(f"  over the data-centre network: {found['network_share']:.1f} times as long as arithmetic")
    print(f"wrote {folder}/weak_scaling.png and .json")


if __name__ == "__main__":
    cli.run(main, (ValueError, OSError))

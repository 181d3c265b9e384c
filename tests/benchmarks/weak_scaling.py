"""Weak scaling on paper: what one device holds and receives as devices and rows grow together.

    python tests/benchmarks/weak_scaling.py --output_dir=launch/capacity
    python tests/benchmarks/weak_scaling.py --sizes=2x2x4,4x4x4 --output_dir=/tmp/scaling

Compiles the train step with one row per device for several TPU slices (unless
the folder has the report of a size already), and draws memory and time of one
device from 16 to 4,096 devices. Lines between and beyond the compiled sizes are
formulas: the state falls as 1 / n, temporaries stay, a ring of n devices brings
(n - 1) / n of what it gathers, and an exchange takes one hop after the other
along the sides of the torus. Nothing of this has run on a TPU.

128 devices are the most over which the 7B model's arrays divide; beyond them, copies (`mesh.data`) of the
state stand beside one another, so the line of its memory is a lower bound there.
"""

from __future__ import annotations

from absl import flags

from process_gen import cli

if __name__ == "__main__":  # bad flags are found before the slow imports
    flags.DEFINE_string("config_file", "configs/bagel_7b.py:paper", "Config whose train step is compiled.")
    flags.DEFINE_string("generation", "v5p", "TPU generation.")
    flags.DEFINE_string("sizes", "2x2x4,4x4x4,4x4x8", "Slices to compile for.")
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

from process_gen.distributed import roofline
from process_gen.distributed.chips import CHIPS, GIB

FROM, TO = 16, 4096


def compiled(config: str, generation: str, size: str, folder: pathlib.Path) -> dict[str, Any]:
    """The report of one size, compiled now unless it is there."""
    path = folder / f"{generation}_{size}.json"
    if not path.exists():
        rows = math.prod(int(side) for side in size.split("x"))
        command = [sys.executable, "-m", "process_gen.compile", f"--config={config}", "--quick"]
        command += [f"--topology={generation}:{size}", f"--config.train.batch_size={rows}", f"--json={path}"]
        print(" ".join(command[1:]), flush=True)
        done = subprocess.run(command, check=False).returncode
        if done not in (0, 3):
            sys.exit(f"error: {generation}:{size} has not compiled (exit code {done})")
    return json.loads(path.read_text())


def held(report: dict[str, Any], devices: np.ndarray) -> np.ndarray:
    """Bytes of one device: what is split over all of them, and what is not."""
    memory = report["memory"]
    split = sum(memory[name] for name in ("parameters", "average", "optimizer")) * report["devices"]
    return split / devices + memory["peak"] - split / report["devices"]


def seconds(report: dict[str, Any], devices: np.ndarray) -> dict[str, np.ndarray]:
    """Seconds of one device by what takes them: arithmetic, links, hops."""
    own, given = report["devices"], roofline.Assumptions()
    sides = 3 if report["topology"].startswith(("v5p", "tpu7x")) else 2
    ring = (devices - 1) / devices / ((own - 1) / own)
    runs = sum(one["runs"] for one in report["traffic"] if one["size"] == own)
    hops = runs * sides * np.maximum(np.ceil(devices ** (1 / sides)) // 2, 1) * given.hop_seconds
    return {
        "arithmetic": np.full_like(devices, report["estimate"]["compute"], dtype=float),
        "links": report["estimate"]["links"] * ring,
        "hops": hops,
    }


def crossing(report: dict[str, Any]) -> dict[str, float | None]:
    """Where exchanges would take as long as the arithmetic.

    Returns:
      `devices`: with one row per device, how many it takes; None if a thousand million are not enough;
      `tokens`: per device, at the compiled size and at `TO` devices, below which exchanges take longer;
      `network_share`: seconds of the same bytes over the data-centre network, in seconds of arithmetic.
    """
    many = np.round(np.logspace(1, 9, 4000))
    found = seconds(report, many)
    over = many[found["links"] + found["hops"] > found["arithmetic"]]
    here, there = (seconds(report, np.array([n])) for n in (report["devices"], TO))
    tokens = report["tokens_per_row"]["all"] * report["rows_per_device"]

    def least(one):
        return float(tokens * (one["links"] + one["hops"])[0] / one["arithmetic"][0])

    chip = CHIPS[report["chip"]]
    network = report["estimate"]["links"] * chip.link_bandwidth / chip.network_bandwidth
    return {
        "devices": float(over[0]) if len(over) else None,
        "tokens": least(here),
        f"tokens_at_{TO}": least(there),
        "network_share": network / report["estimate"]["compute"],
    }


def draw(reports: Sequence[dict[str, Any]], path: pathlib.Path) -> dict[str, float | None]:
    """Draws memory and time; returns where they cross."""
    base = reports[-1]
    devices = np.logspace(math.log2(FROM), math.log2(TO), 100, base=2)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    left.plot(devices, held(base, devices) / GIB, label="formula")
    left.plot(
        [r["devices"] for r in reports], [r["memory"]["peak"] / GIB for r in reports], "o", label="compiled"
    )
    left.plot(
        [r["devices"] for r in reports],
        [r["memory"]["temporaries"] / GIB for r in reports],
        "s",
        label="temporaries, compiled",
    )
    left.axhline(base["hbm"] / GIB, color="0.6", linestyle="--", label=f"a device of {base['chip']}")
    left.set(title="memory of one device", ylabel="GiB", ylim=(0, None))
    for name, values in seconds(base, devices).items():
        (line,) = right.plot(devices, values, label=f"{name}, formula")
        key = {"arithmetic": "compute"}.get(name, name)
        points = [r["estimate"][key] for r in reports]
        right.plot([r["devices"] for r in reports], points, "o", color=line.get_color())
    right.set(title="one step, one row per device", ylabel="seconds, estimated", yscale="log")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="devices")
        axes.set_xticks([16, 64, 256, 1024, 4096], ["16", "64", "256", "1,024", "4,096"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(
        f"{base['config']} on {base['chip']}, rows of {base['tokens_per_row']['all']:,.0f} tokens"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return crossing(base)


def main(argv: Sequence[str]) -> None:
    """Compiles what is missing, draws, and says where lines cross."""
    del argv
    values = flags.FLAGS
    folder = pathlib.Path(values.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = values.sizes.split(",")
    reports = [compiled(values.config_file, values.generation, size, folder) for size in sizes]
    found = draw(reports, folder / "weak_scaling.png")
    rows = [
        {
            "devices": r["devices"],
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
    least, there = found["tokens"], found[f"tokens_at_{TO}"]
    print(f"  with fewer than {least:,.0f} tokens per device ({there:,.0f} at {TO:,})")
    print(f"  over the data-centre network: {found['network_share']:.1f} times as long as arithmetic")
    print(f"wrote {folder}/weak_scaling.png and .json")


if __name__ == "__main__":
    cli.run(main, (ValueError, OSError))

"""Puts reports of `process_gen.compile` into one page.

    python -m process_gen.compile --topology=v5p:2x2x4 --config.train.batch_size=16 --quick --json=launch/capacity/a.json
    python tests/benchmarks/capacity_table.py --reports=launch/capacity --output=launch/CAPACITY.md

Every figure of the page comes out of a report; nothing is typed in.
"""  # noqa: E501

from __future__ import annotations

from absl import flags

from process_gen.experiment import cli

if __name__ == "__main__":  # bad flags are found before the slow imports
    flags.DEFINE_string("reports", "launch/capacity", "Folder of reports of the train step.")
    flags.DEFINE_string("scaling", "launch/capacity/weak_scaling.json", "Summary of weak_scaling.py.")
    flags.DEFINE_string("output", "launch/CAPACITY.md", "File to write.")
    cli.read_flags()

# isort: split
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from process_gen.capacity.fit import RECEIVED
from process_gen.distributed.chips import GIB
from process_gen.models.cost import PARTS

Report = dict[str, Any]


def markdown(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; all columns but the first stand to the right."""
    lines = [headers, ["---", *["---:"] * (len(headers) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def title(report: Report) -> str:
    """What a report is of, in a few words."""
    slices = f" x {report['slices']}" if report["slices"] > 1 else ""
    chip = f" as {report['chip']}" if report["topology"].startswith("cpu") and report["chip"] else ""
    mesh = " ".join(f"{size} {axis}" for axis, size in report["mesh"].items() if size > 1)
    rows = f"{report['rows']} x {report['tokens_per_row']:,.0f}"
    remat = re.search(r"model\.remat=(\w+)", report.get("command", ""))
    kept = f", remat {remat[1]}" if remat else ""
    return f"{report['topology']}{slices}{chip}, {mesh}, {rows} tokens{kept}"


def gib(value: float | None) -> str:
    return "-" if value is None else f"{value / GIB:.2f}"


def memory_rows(reports: Sequence[Report]) -> Iterable[list[str]]:
    """What one device holds."""
    for report in reports:
        held = report["memory"]
        state = [gib(held[name]) for name in ("parameters", "average", "optimizer", "autoencoder")]
        fits = {True: "yes", False: "NO", None: "?"}[report["fits"]]
        yield [title(report), *state, gib(held["temporaries"]), gib(held["peak"]), gib(report["hbm"]), fits]


def traffic_rows(reports: Sequence[Report]) -> Iterable[list[str]]:
    """What one device receives, by kind and axes; a tenth of a GiB and more."""
    for report in reports:
        for one in report["traffic"]:
            if one["bytes"] > 0.1 * GIB:
                over = "network" if one["network"] else "links"
                cells = [one["kind"], " ".join(one["axes"]), over, f"{one['bytes'] / GIB:.2f}"]
                yield [title(report), *cells, f"{one['runs']:,.0f}"]


def time_rows(reports: Sequence[Report]) -> Iterable[list[str]]:
    """What a step costs, estimated."""
    for report in reports:
        if "estimate" not in report:
            continue
        flops, one = report["flops_per_device"], report["estimate"]
        totals = [f"{sum(flops[kind].values()) / 1e12:,.0f}" for kind in ("useful", "padded", "executed")]
        spans = [f"{one[name]:.2f}" for name in ("compute", "links", "network", "best", "worst")]
        hours = f"{report['device_hours']:,.0f}" if "device_hours" in report else "-"
        yield [
            title(report),
            *totals,
            f"{report['executed_flops_per_useful_token'] / 1e9:.1f}",
            *spans,
            f"{report['tokens_per_second_per_device']:,.0f}",
            f"{report['trajectories_per_second']:.1f}",
            f"{report['mfu']:.0%}",
            hours,
        ]


def part_rows(reports: Sequence[Report]) -> Iterable[list[str]]:
    """FLOP of one device by part, each layout once."""
    seen = set()
    for report in reports:
        key = (report["tokens_per_row"], report["rows_per_device"], report["mesh"]["context"])
        if key in seen:
            continue
        seen.add(key)
        for kind, parts in report["flops_per_device"].items():
            cells = [f"{parts[part] / 1e12:,.1f}" for part in PARTS]
            yield [
                f"{key[0]:,.0f} tokens x {key[1]:g} row, {kind}",
                *cells,
                f"{sum(parts.values()) / 1e12:,.1f}",
            ]


def scaling_text(path: pathlib.Path) -> list[str]:
    """The section on weak scaling, if its summary is there."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    crossing = found["crossing"]
    rows = [
        [
            f"{one['devices']:,}",
            " ".join(f"{size} {axis}" for axis, size in one["mesh"].items() if size > 1),
            gib(one["memory"]["peak"]),
            gib(one["memory"]["temporaries"]),
            f"{one['received'] / GIB:,.0f}",
            f"{one['exchanges']:,.0f}",
            f"{one['estimate']['compute']:.2f}",
            f"{one['estimate']['links'] + one['estimate']['hops']:.2f}",
        ]
        for one in found["sizes"]
    ]
    names = (
        "devices",
        "mesh",
        "GiB at once",
        "temporaries",
        "GiB received",
        "exchanges",
        "arithmetic, s",
        "exchange, s",
    )
    devices = crossing["devices"]
    where = f"from {devices:,.0f} devices on" if devices and devices < 1e5 else "at no size that is built"
    return [
        "## Weak scaling",
        "",
        f"`{found['config']}` on {found['generation']}, one row per device, compiled; estimated seconds:",
        "",
        markdown(names, rows),
        "",
        f"![Memory and time of one device from 16 to 4,096]({path.parent.name}/weak_scaling.png)",
        "",
        f"With one row per device exchanges would overtake arithmetic {where}; at the largest compiled "
        f"size they would with fewer than {crossing['tokens']:,.0f} tokens per device. The same bytes over "
        f"the data-centre network would take {crossing['network_share']:.1f} times as long as the "
        "arithmetic: parameters are "
        "to be split inside a slice only, and copies (`mesh.dcn.data`) to stand between slices.",
        "",
    ]


def sampler_text(reports: Sequence[Report]) -> list[str]:
    """The section on sampling, if there are reports of it."""
    if not reports:
        return []
    rows = []
    for report in reports:
        mesh = " ".join(f"{size} {axis}" for axis, size in report["mesh"].items() if size > 1)
        fits = {True: "yes", False: "NO", None: "?"}[report["fits"]]
        for piece in report["pieces"]:
            cells = [gib(piece[key]) for key in ("resident", "temporaries", "peak", "received")]
            where = f"{report['topology']}, {mesh or 'no mesh'}, {report['rows']} rows"
            rows.append([f"{where}: `{piece['name']}`", *cells, gib(report["hbm"]), fits])
    names = ("piece of the sampler", "resident", "temporaries", "at once", "received", "has", "fits")
    return [
        "## Sampling",
        "",
        "GiB of one device. Resident are weights and contexts, whether a piece reads them or not. What is "
        f"received: {RECEIVED}.",
        "",
        markdown(names, rows),
        "",
    ]


def page(reports: Sequence[Report], samplers: Sequence[Report], scaling: pathlib.Path, command: str) -> str:
    """The whole page."""
    held = (
        "train step",
        "parameters",
        "average",
        "optimizer",
        "autoencoder",
        "temporaries",
        "at once",
        "has",
        "fits",
    )
    sent = ("train step", "exchange", "axes", "over", "GiB received", "times")
    time = (
        "train step", "TFLOP useful", "every slot", "with recomputation", "GFLOP a useful token",
        "arithmetic, s", "links, s", "network, s", "at best, s", "at worst, s",
        "useful tokens/s/device", "trajectories/s", "of the peak", "device hours",
    )  # fmt: skip
    bill = next((f"{r['trajectories']:,} trajectories" for r in reports if "trajectories" in r), "a run")
    assumed = dict.fromkeys(
        f"{line} ({r['chip']})" if "B/s" in line or "FLOP/s" in line else line
        for r in reports
        for line in r.get("assumptions", ())
    )
    lines = [
        "# What fits where",
        "",
        f"Made by `{command}` from reports of `python -m process_gen.compile`. Memory and exchanges are what "
        "the compiler of the hardware assigns; nothing here has run on it. On `cpu` meshes they are "
        "the CPU's, which computes bfloat16 in float32.",
        "",
        "## Memory of one device, GiB",
        "",
        markdown(held, memory_rows(reports)),
        "",
        "## Time, estimated",
        "",
        f"Device hours are for {bill}. The rates are those of the worst case, in which only compute and "
        "memory overlap.",
        "",
        markdown(time, time_rows(reports)),
        "",
        *(f"- {line}" for line in assumed),
        "",
        "## Exchanges of one step",
        "",
        markdown(sent, traffic_rows(reports)),
        "",
        *dict.fromkeys(f"- {note}" for r in reports for note in r.get("notes", ())),
        "",
        "## TFLOP of one device and step, by part",
        "",
        markdown(("row", *PARTS, "all"), part_rows(reports)),
        "",
        *sampler_text(samplers),
        *scaling_text(scaling),
        "## Commands",
        "",
        *(f"    {r['command']}" for r in (*reports, *samplers) if "command" in r),
        "",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Writes the page."""
    values = flags.FLAGS
    folder, output = pathlib.Path(values.reports), pathlib.Path(values.output)
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    reports, samplers = ([one for one in found if one.get("step") == step] for step in ("train", "sample"))
    if not reports:
        raise ValueError(
            f"{folder} holds no reports: make some with `python -m process_gen.compile --json=...`"
        )
    command = f"python {os.path.relpath(argv[0])} --reports={values.reports} --output={values.output}"
    output.write_text(page(reports, samplers, pathlib.Path(values.scaling), command))
    print(f"wrote {output}")


if __name__ == "__main__":
    cli.run(main, (ValueError, OSError))

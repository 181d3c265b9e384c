"""Counts the collectives of a compiled program: bytes by kind and by mesh axis.

Bytes are what one device receives, averaged over devices, with ring algorithms
over n devices: (n - 1) / n of the result of an all-gather, (n - 1) / n of the
operand of a reduce-scatter, and both for an all-reduce.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from process_gen.capacity import hlo

KINDS = (
    "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All collectives of a program of one kind over the same mesh axes, in groups of `size` devices.

    A device runs them `runs` times in one run of the program and receives `bytes` in total. `kind` is one of
    `KINDS`, or the runtime's name of one between slices. `network`: whether they cross slices.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    network: bool
    bytes: float
    runs: float


def traffic(program: hlo.Program, mesh: Mapping[str, int], slices: Mapping[str, int]) -> list[Traffic]:
    """Sums the collectives of a program by kind, axes and group size; most bytes first.

    `mesh`: size of each mesh axis, in order. `slices`: number of slices that an axis spans, for those axes
    that span several.
    """
    inside = {axis: size // slices.get(axis, 1) for axis, size in mesh.items()}
    across = {axis for axis, count in slices.items() if count > 1}
    # With several slices, a program compiled for TPUs has the devices of one slice only.
    alone = math.prod(slices.values()) > 1 and program.partitions < math.prod(mesh.values())
    shape = inside if alone else mesh
    total: dict[tuple, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    chained = set()
    for name, runs in program.runs.items():
        for one in program.computations[name].values():
            kind = one.op.removesuffix("-start")
            if kind in KINDS:
                # A fused collective is split over a chain of fusions: it is counted at the first of them.
                if chain := re.search(r'chain_id="(\w+)"', one.rest):
                    link = (program.callers[name], chain[1], one.attribute("channel_id"))
                    if link in chained:
                        continue
                    chained.add(link)
                kind, axes, size, received = _local(kind, one, name, shape)
                network = not alone and not across.isdisjoint(axes)
            elif one.op == "send" and "xla_megascale" in one.rest:
                size, network = math.prod(slices.values()), True
                axes = tuple(axis for axis in slices if axis in across)
                kind, received = _between_slices(one, size)
            else:
                continue
            if received:
                sums = total[kind, axes, size, network]
                sums[0] += received * runs
                sums[1] += runs
    return sorted((Traffic(*key, *sums) for key, sums in total.items()), key=lambda one: -one.bytes)


def _local(
    kind: str, one: hlo.Instruction, computation: str, shape: Mapping[str, int]
) -> tuple[str, tuple[str, ...], int, float]:
    """Kind, axes, group size and bytes of a collective that is an instruction of the program."""
    result = one.type
    if one.op.endswith("-start") and kind in ("all-gather", "collective-permute", "reduce-scatter"):
        result = hlo.members(one.type)[1]  # operands, then results, then semaphores
    size, devices = hlo.type_bytes(result), math.prod(shape.values())
    if kind == "collective-permute":
        listed = re.findall(r"\{(\d+),(\d+)\}", one.attribute("source_target_pairs"))
        pairs = np.array([pair for pair in listed if pair[0] != pair[1]], int).reshape(-1, 2)
        return kind, _varying(pairs, shape), 2, size * len(pairs) / devices
    groups = device_groups(one.attribute("replica_groups"), devices)
    n = groups.shape[1]
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        kind, moved = "reduce-scatter", size * (n - 1) / n  # how programs for TPUs write a reduce-scatter
    elif kind == "reduce-scatter":
        moved = size * (n - 1)
    elif kind == "all-reduce":
        moved = 2 * size * (n - 1) / n
    else:
        moved = size * (n - 1) / n
    return kind, _varying(groups, shape), n, moved


def _between_slices(one: hlo.Instruction, count: int) -> tuple[str, float]:
    """Kind and bytes of a collective between `count` slices, carried out by the TPU runtime (megascale)."""
    match = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.rest)
    kind = match[1].lower().replace("_", "-") if match else "send"
    share = (count - 1) / count
    times = {"all-reduce": 2 * share, "all-gather": count - 1}.get(kind, share)
    return kind, times * hlo.type_bytes(hlo.members(one.type)[0])


def _varying(groups: np.ndarray, shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ."""
    if not groups.size:
        return ()
    places = np.unravel_index(groups, tuple(shape.values()))
    return tuple(axis for axis, place in zip(shape, places, strict=True) if (place != place[:, :1]).any())


# ---------------------------------------------------------------------- groups


def device_groups(text: str, total: int) -> np.ndarray:
    """Parses `replica_groups`, in any of the forms that XLA writes, to device ids [groups, group size].

    `{{0,1},{2,3}}` lists ids; `[2,2]<=[4]` and `[2,2]<=[2,2]T(1,0)` reshape an iota (transposed) to rows;
    `mesh['a'=2,'b'=2] {'b'}` names axes of a mesh; `{}` is one group of all `total` devices.

    Raises:
      ValueError: any other form.
    """
    if match := re.fullmatch(rf"\[([\d,]+)\]<=({_COUNT})", text):
        return _counted(match[2]).reshape(_numbers(match[1]))
    if match := re.fullmatch(rf"mesh\[(.*?)\](?:, device_ids=\(({_COUNT}|[\d,]+)\))? \{{(.*)\}}", text):
        return _of_mesh(match[1], match[2] or "", match[3])
    if text in ("", "{}"):
        return np.arange(total)[None]
    groups = [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", text)]
    if len({len(group) for group in groups}) != 1:
        raise ValueError(f"replica_groups={text[:80]} has a form that is not known here")
    return np.array(groups)


_COUNT = r"\[[\d,]+\](?:T\([\d,]+\))?"


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _counted(text: str) -> np.ndarray:
    """The iota of `[2,4]T(1,0)`: 0, 1, ... in an array of shape [2, 4], its axes transposed to (1, 0)."""
    shape, _, order = text.partition("T")
    sides = _numbers(shape[1:-1])
    grid = np.arange(math.prod(sides)).reshape(sides)
    return grid.transpose(_numbers(order[1:-1])) if order else grid


def _of_mesh(sizes: str, devices: str, axes: str) -> np.ndarray:
    """Device groups over axes of a mesh. An axis may be split, as `'b':(2)2`, and device ids be listed."""
    chosen = {name: (pre, size) for name, pre, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)}
    shape, moved = [], []
    for name, size in re.findall(r"'([^']+)'=(\d+)", sizes):
        pre, part = chosen.get(name, ("", ""))
        if name in chosen:
            moved.append(len(shape) + bool(pre))
        shape += [int(pre), int(part), int(size) // int(pre) // int(part)] if pre else [int(size)]
    if devices.startswith("["):
        ids = _counted(devices)
    else:
        ids = np.array(_numbers(devices)) if devices else np.arange(math.prod(shape))
    kept = [axis for axis in range(len(shape)) if axis not in moved]
    grid = ids.reshape(shape).transpose([*kept, *moved])
    return grid.reshape(-1, math.prod(shape[axis] for axis in moved))

"""What devices send each other in a compiled program: bytes by kind and by mesh axis.

Bytes are those that one device receives, on the average over the devices, when
n devices exchange along a ring: an all-gather brings (n - 1) / n of its result,
a reduce-scatter as much of its operand, an all-reduce both.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from process_gen.capacity import hlo

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction that exchanges data.

    Attributes:
      kind: one of `KINDS`.
      bytes: received by one device each time.
      runs: how often in one run of the program.
      axes: the mesh axes along which devices exchange.
      size: devices that exchange with each other.
      network: between slices, over the data-centre network.
      source: the operation in the Python program that it comes from.
    """

    kind: str
    bytes: float
    runs: float
    axes: tuple[str, ...]
    size: int
    network: bool
    source: str


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind along the same axes.

    Attributes:
      kind, axes, size, network: see `Collective`.
      bytes: received by one device in one run of the program.
      runs: how many exchanges there are in it.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    network: bool
    bytes: float
    runs: float


def traffic(collectives: Sequence[Collective]) -> list[Traffic]:
    """The sums by kind and axes, the largest first."""
    total: dict[tuple, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for one in collectives:
        entry = total[one.kind, one.axes, one.size, one.network]
        entry[0] += one.bytes * one.runs
        entry[1] += one.runs
    return sorted((Traffic(*key, *sums) for key, sums in total.items()), key=lambda one: -one.bytes)


def collectives(program: hlo.Program, mesh: Mapping[str, int], slices: Mapping[str, int]) -> list[Collective]:
    """Every exchange of a program.

    Args:
      program: a compiled module.
      mesh: size of each mesh axis, in the order of the mesh.
      slices: how many slices each axis runs over; axes inside a slice may be left out.
    """
    inside = {axis: size // slices.get(axis, 1) for axis, size in mesh.items()}
    across = tuple(axis for axis, count in slices.items() if count > 1)
    count = math.prod(slices.values())
    # Of several slices, a program for TPUs knows the devices of its own slice only.
    alone = count > 1 and program.partitions < math.prod(mesh.values())
    shape = inside if alone else dict(mesh)
    found, chained = [], set()
    for name, caller, runs in _running(program):
        computation = program.computations[name]
        for one in computation.instructions:
            kind = one.op.removesuffix("-start")
            if kind in KINDS:
                # A fused exchange goes on through a chain of fusions: one exchange, seen several times.
                link = _chain(one)
                if link and (caller, link) in chained:
                    continue
                chained.add((caller, link))
                found.append(_local(kind, one, computation, runs, shape, () if alone else across))
            elif one.op == "send" and "xla_megascale" in one.rest:
                found.append(_between_slices(one, runs, across, count))
    return [one for one in found if one.bytes]


def _running(program: hlo.Program) -> list[tuple[str, str, float]]:
    """Computations that run, what calls them, and how often."""
    callers = {}
    for computation in program.computations.values():
        for one in computation.instructions:
            for callee, _ in program.calls(computation, one):
                callers.setdefault(callee, computation.name)
    return [(name, callers.get(name, ""), runs) for name, runs in program.runs.items()]


def _chain(one: hlo.Instruction) -> tuple[str, str] | None:
    chain = re.search(r'chain_id="(\w+)"', one.rest)
    return (chain[1], one.attribute("channel_id") or "") if chain else None


def _source(one: hlo.Instruction) -> str:
    match = re.search(r'op_name="([^"]*)"', one.rest)
    return match[1] if match else ""


def _local(
    kind: str,
    one: hlo.Instruction,
    computation: hlo.Computation,
    runs: float,
    shape: Mapping[str, int],
    across: Sequence[str],
) -> Collective:
    """An exchange that the compiler lays out itself."""
    result = one.type
    if one.op.endswith("-start") and kind in ("all-gather", "collective-permute", "reduce-scatter"):
        result = hlo.members(one.type)[1]  # operands, then results, then semaphores
    size = hlo.type_bytes(result)
    total = math.prod(shape.values())
    if kind == "collective-permute":
        pairs = np.array(re.findall(r"\{(\d+),(\d+)\}", one.attribute("source_target_pairs") or ""), int)
        pairs = pairs.reshape(-1, 2)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        axes = _varying(pairs, shape)
        moved = size * len(pairs) / total
        return Collective(kind, moved, runs, axes, 2, bool(set(axes) & set(across)), _source(one))
    groups = device_groups(one.attribute("replica_groups") or "", one.rest, total)
    axes, n = _varying(groups, shape), groups.shape[1]
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        kind, moved = "reduce-scatter", size * (n - 1) / n  # the form it has in programs for TPUs
    elif kind == "reduce-scatter":
        moved = size * (n - 1)
    elif kind == "all-reduce":
        moved = 2 * size * (n - 1) / n
    else:
        moved = size * (n - 1) / n
    return Collective(kind, moved, runs, axes, n, bool(set(axes) & set(across)), _source(one))


def _between_slices(one: hlo.Instruction, runs: float, across: Sequence[str], count: int) -> Collective:
    """An exchange that TPU programs hand to the runtime, which carries it over the network."""
    match = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.rest)
    kind = match[1].lower().replace("_", "-") if match else "send"
    size = hlo.type_bytes(hlo.members(one.type)[0])
    share = (count - 1) / count
    times = {"all-reduce": 2 * share, "all-gather": count - 1}.get(kind, share)
    return Collective(kind, times * size, runs, tuple(across), count, True, _source(one))


def _varying(groups: np.ndarray, shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ."""
    if not groups.size:
        return ()
    places = np.unravel_index(groups, tuple(shape.values()))
    return tuple(axis for axis, place in zip(shape, places, strict=True) if (place != place[:, :1]).any())


# ---------------------------------------------------------------------- groups


def device_groups(text: str, rest: str, total: int) -> np.ndarray:
    """[groups, devices of a group] ids from `replica_groups`, in any of the forms that XLA writes.

    `{{0,1},{2,3}}` names them, `[2,2]<=[4]` and `[2,2]<=[2,2]T(1,0)` cut a count of all into rows, and
    `mesh['a'=2,'b'=2] {'b'}` names the axes of a mesh; `{}` is one group of all `total` devices.

    Raises:
      ValueError: another form.
    """
    if text.startswith("mesh"):
        return _of_mesh(rest[rest.index("replica_groups=") :])
    if match := re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        return _iota(*(match[i] for i in (2, 3))).reshape(_numbers(match[1]))
    if re.fullmatch(r"\{\s*\}|", text):
        return np.arange(total)[None]
    groups = [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", text)]
    if not groups or len({len(group) for group in groups}) > 1:
        raise ValueError(f"replica_groups={text[:80]} has a form that is not known here")
    return np.array(groups)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _iota(sides: str, transposed: str | None) -> np.ndarray:
    shape = _numbers(sides)
    grid = np.arange(math.prod(shape)).reshape(shape)
    return grid.transpose(_numbers(transposed)) if transposed else grid


def _of_mesh(text: str) -> np.ndarray:
    """`mesh['a'=2,'b'=4] {'b'}`; an axis may be cut, as in `'b':(2)2`, and devices may be listed."""
    listed = r"\[[\d,]+\](?:T\([\d,]+\))?|[\d,]+"
    match = re.match(rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(({listed})\))? \{{([^}}]*)\}}", text)
    if not match:
        raise ValueError(f"{text[:80]} has a form that is not known here")
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
    ids = np.arange(math.prod(sizes.values()))
    if match[2] and (order := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", match[2])):
        ids = _iota(order[1], order[2]).reshape(-1)
    elif match[2]:
        ids = np.array(_numbers(match[2]))
    chosen = {name: (pre, size) for name, pre, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match[3])}
    shape, moved = [], []
    for name, size in sizes.items():
        pre, part = chosen.get(name, ("", ""))
        pieces = [int(pre), int(part), size // int(pre) // int(part)] if pre else [size]
        if name in chosen:
            moved.append(len(shape) + (1 if pre else 0))
        shape += pieces
    kept = [axis for axis in range(len(shape)) if axis not in moved]
    grid = ids.reshape(shape).transpose([*kept, *moved])
    return grid.reshape(-1, math.prod(shape[axis] for axis in moved))

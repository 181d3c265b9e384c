"""Compiles programs for a topology and measures them: memory, exchanges, time of compilation.

All figures are those of one device, in bytes, as the compiler assigns them.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from process_gen.distributed import collectives, hlo

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Measured:
    """A compiled program.

    Attributes:
      name: for a table.
      seconds: of lowering and of compiling.
      arguments, outputs, aliased, temporaries, code: bytes; outputs that take the place of arguments
        (donated ones) are `aliased`. Of a program that the compiler refused, only `needed` is known.
      traffic: what a device receives in one run.
      unknown_loops: loops that count once, since their trips were not found.
      needed: bytes that the compiler asked for in vain; None if it compiled.
      refused: what it said then.
    """

    name: str
    seconds: tuple[float, float]
    arguments: int = 0
    outputs: int = 0
    aliased: int = 0
    temporaries: int = 0
    code: int = 0
    traffic: tuple[collectives.Traffic, ...] = ()
    unknown_loops: int = 0
    needed: float | None = None
    refused: str = ""

    @property
    def peak(self) -> float:
        """Bytes that are taken at once, at most."""
        if self.needed is not None:
            return self.needed
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


def measure(
    name: str,
    lower: Callable[[], jax.stages.Lowered],
    mesh: Mesh,
    slices: Mapping[str, int],
    report: Report,
    keep: Callable[[str], None] | None = None,
) -> Measured:
    """Lowers and compiles a program.

    Args:
      name: for a table and for progress.
      lower: gives the lowered program.
      mesh: the devices.
      slices: how many slices each mesh axis runs over.
      report: takes lines of progress.
      keep: takes the text of the compiled program, if it is to be kept.
    """
    started = time.perf_counter()
    lowered = lower()
    lowering = time.perf_counter() - started
    report(f"{name}: lowered in {lowering:.0f} s, compiling")
    started = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        seconds = (lowering, time.perf_counter() - started)
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        report(f"{name}: refused after {seconds[1]:.0f} s")
        return Measured(name, seconds, needed=needed_bytes(str(error)), refused=_gist(str(error)))
    seconds = (lowering, time.perf_counter() - started)
    report(f"{name}: compiled in {seconds[1]:.0f} s")
    text, memory = compiled.as_text(), compiled.memory_analysis()
    if keep is not None:
        keep(text)
    program = hlo.parse(text)
    found = collectives.collectives(program, dict(mesh.shape), slices)
    return Measured(
        name,
        seconds,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        traffic=tuple(collectives.traffic(found)),
        unknown_loops=len(program.unknown_loops),
    )


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def needed_bytes(message: str) -> float:
    """The bytes that a compiler asked for in vain, from what it said; infinite if it did not say."""
    patterns = (
        r"total memory required[^(]*\(([\d.]+)([KMGT]?)\)",
        r"Used ([\d.]+)([KMGT]?)i?B? of",
        r"trying to allocate ([\d.]+)([KMGT]?)i?B",
    )
    for pattern in patterns:
        if match := re.search(pattern, message):
            return float(match[1]) * _UNITS[match[2]]
    return math.inf


def _gist(message: str) -> str:
    return message.splitlines()[0][:400]


def bytes_per_device(tree: Any) -> tuple[int, int]:
    """Bytes of one device's share of some arrays with shardings: in its memory, and in its host's."""
    device = host = 0
    for leaf in jax.tree.leaves(tree):
        size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        if getattr(leaf.sharding, "memory_kind", None) in ("pinned_host", "unpinned_host"):
            host += size
        else:
            device += size
    return device, host

"""Compiles programs for a topology and measures them: memory, exchanges, time of compilation.

All figures are those of one device, in bytes, as the compiler assigns them.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from process_gen.capacity import collectives, hlo

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
      resident: bytes that are in memory meanwhile, arguments or not; 0 if nothing but those is known.
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
    resident: int = 0
    needed: float | None = None
    refused: str = ""

    @property
    def peak(self) -> float:
        """Bytes that are taken at once, at most."""
        if self.needed is not None:
            return self.needed
        return max(self.arguments, self.resident) + self.outputs - self.aliased + self.temporaries + self.code


def measure(
    name: str,
    lower: Callable[[], jax.stages.Lowered],
    mesh: Mesh,
    slices: Mapping[str, int],
    report: Report,
    keep: Callable[[str], None] | None = None,
    dump: str | None = None,
) -> Measured:
    """Lowers and compiles a program.

    Args:
      name: for a table and for progress.
      lower: gives the lowered program.
      mesh: the devices.
      slices: how many slices each mesh axis runs over.
      report: takes lines of progress.
      keep: takes the text of the compiled program, if it is to be kept.
      dump: folder for what the compiler writes down on its way.
    """
    started = time.perf_counter()
    lowered = lower()
    lowering = time.perf_counter() - started
    report(f"{name}: lowered in {lowering:.0f} s, compiling")
    return measure_lowered(name, lowered, mesh, slices, report, keep, dump, lowering)


def measure_lowered(
    name: str,
    lowered: jax.stages.Lowered,
    mesh: Mesh,
    slices: Mapping[str, int],
    report: Report,
    keep: Callable[[str], None] | None = None,
    dump: str | None = None,
    lowering: float = 0.0,
) -> Measured:
    """`measure` of a program that was lowered in `lowering` seconds; several threads may do so at once."""
    started = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options={"xla_dump_to": dump} if dump else None)
    except jax.errors.JaxRuntimeError as error:
        seconds = (lowering, time.perf_counter() - started)
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        report(f"{name}: refused after {seconds[1]:.0f} s")
        return Measured(name, seconds, needed=needed_bytes(str(error)), refused=_gist(str(error)))
    seconds = (lowering, time.perf_counter() - started)
    report(f"{name}: compiled in {seconds[1]:.0f} s")
    text, memory = _text_of(compiled, dump), compiled.memory_analysis()
    if keep is not None:
        keep(text)
    return Measured(
        name,
        seconds,
        **_sent(text, mesh, slices),
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
    )


def _text_of(compiled: jax.stages.Compiled, dump: str | None) -> str:
    """The text of a compiled program.

    jaxlib cannot read back every program of a TPU compiler that is newer than it is; the compiler
    has written the text to `dump` as well.
    """
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        written = sorted(pathlib.Path(dump).glob(_PROGRAM)) if dump else []
        if not written:
            raise
        return max(written, key=lambda file: file.stat().st_size).read_text()


def _sent(text: str, mesh: Mesh, slices: Mapping[str, int]) -> dict[str, Any]:
    """What the text of a compiled program says about exchanges, as fields of `Measured`."""
    program = hlo.parse(text)
    found = collectives.collectives(program, dict(mesh.shape), slices)
    return {"traffic": tuple(collectives.traffic(found)), "unknown_loops": len(program.unknown_loops)}


# ------------------------------------------------------------------------ quick

_ASSIGNED = "*after_optimizations-buffer-assignment.txt"
_PROGRAM = "*after_optimizations_after_buffer_assignment.txt"


def measure_quickly(
    name: str, command: Sequence[str], folder: str, mesh: Mesh, slices: Mapping[str, int], report: Report
) -> Measured | None:
    """Lets another process compile, and ends it once the TPU compiler has assigned memory.

    What follows is the generation of code, which takes most of the time and changes nothing that is
    measured here but the size of the code.

    Args:
      name, mesh, slices, report: see `measure`.
      command: compiles, with the compiler's dumps in `folder`, and writes `refused.txt` there if it must.
      folder: empty.

    Returns:
      What was measured; None if the process failed otherwise, after what it printed.
    """
    started, path = time.perf_counter(), pathlib.Path(folder)
    with subprocess.Popen(command) as process:
        while process.poll() is None and not _finished(path):
            time.sleep(0.5)
        if process.poll() is None:
            process.kill()
    seconds = time.perf_counter() - started
    if (refused := path / "refused.txt").exists():
        message = refused.read_text()
        return Measured(name, (0.0, seconds), needed=needed_bytes(message), refused=_gist(message))
    if not _finished(path):
        return None
    report(f"{name}: memory assigned after {seconds:.0f} s")
    (assigned,), (program,) = path.glob(_ASSIGNED), path.glob(_PROGRAM)
    return Measured(
        name, (0.0, seconds), **_sent(program.read_text(), mesh, slices), **_assigned(assigned.read_text())
    )


def _finished(path: pathlib.Path) -> bool:
    """Whether the compiler is through with both files: the later one has not grown for a while."""
    found = [*path.glob(_ASSIGNED), *path.glob(_PROGRAM)]
    return len(found) == 2 and time.time() - max(file.stat().st_mtime for file in found) > 2.0


def _assigned(text: str) -> dict[str, int]:
    """Bytes in a device's main memory that a buffer assignment gives away, as fields of `Measured`."""
    sizes = {"arguments": 0, "outputs": 0, "temporaries": 0}
    for size, rest in re.findall(r"^allocation \d+: size (\d+), (.*)$", text, re.MULTILINE):
        if rest.startswith("color"):
            continue  # another memory than the main one
        if "parameter " in rest:
            sizes["arguments"] += int(size)
        elif "maybe-live-out" in rest or rest.startswith("output"):
            sizes["outputs"] += int(size)
        elif "preallocated-temp" in rest:
            sizes["temporaries"] += int(size)
    return sizes


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
        if getattr(leaf.sharding, "memory_kind", None) == "pinned_host":
            host += size
        else:
            device += size
    return device, host

"""Compiles programs for a topology and measures them: memory, collectives, compile time.

Sizes are bytes of one device, as the compiler assigns them.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import jax
from jax.sharding import Mesh

from process_gen.capacity import collectives, hlo


@dataclasses.dataclass(frozen=True)
class Measured:
    """The figures of a compiled program, or of one that ran out of memory in compilation.

    Attributes:
      name: shown in tables.
      seconds: of lowering and of compiling.
      arguments, outputs, aliased, temporaries, code: bytes; `aliased` are outputs in buffers of donated
        arguments. All 0 if compilation failed.
      traffic: collectives, with the bytes that a device receives in one run.
      unknown_loops: number of loops that count once, because their trip count was not found.
      resident: bytes in memory while it runs, whether it reads them or not; 0 if only arguments are known.
      needed: bytes that the compiler could not allocate, infinite if unknown; None if it compiled.
      refused: first line of the compiler's error; "" if it compiled.
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
        """Most bytes in use at once; `needed` if compilation failed."""
        if self.needed is not None:
            return self.needed
        return max(self.arguments, self.resident) + self.outputs - self.aliased + self.temporaries + self.code


def measure(
    name: str,
    lowered: jax.stages.Lowered,
    mesh: Mesh,
    slices: Mapping[str, int],
    report: Callable[[str], None],
    *,
    lowering: float = 0.0,
    dump: str | None = None,
    hlo_file: str | None = None,
    quick: bool = False,
) -> Measured:
    """Compiles a program and measures it; several threads may do so at once.

    Args:
      slices: number of slices that each mesh axis spans.
      report: called with lines of progress.
      lowering: seconds that lowering took.
      dump: folder that keeps the compiler's dump files; ignored if `quick`. None keeps none.
      hlo_file: file for the text of the compiled program; None writes none.
      quick: whether to return once the TPU compiler has assigned memory, while it still generates code.
        That takes most of the time, and of what is measured here changes only the size of the code.

    Raises:
      JaxRuntimeError: compilation failed for another reason than lack of memory.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        written = pathlib.Path(folder if quick else dump or folder)  # `quick` waits for new files
        dumps = dump is not None or mesh.devices.flat[0].platform == "tpu"
        options = {"xla_dump_to": str(written)} if dumps else None
        try:
            compiled = _unless_assigned(lowered, options, written) if quick else lowered.compile(options)
        except jax.errors.JaxRuntimeError as error:
            seconds = (lowering, time.perf_counter() - started)
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            report(f"{name}: refused after {seconds[1]:.0f} s")
            gist = str(error).splitlines()[0][:400]
            return Measured(name, seconds, needed=needed_bytes(str(error)), refused=gist)
        seconds = (lowering, time.perf_counter() - started)
        report(f"{name}: {'compiled in' if compiled else 'memory assigned after'} {seconds[1]:.0f} s")
        text = _text_of(compiled, written)
        sizes = _assigned(_largest(written, _ASSIGNED)) if compiled is None else _analysed(compiled)
    if hlo_file is not None:
        pathlib.Path(hlo_file).write_text(text)
    program = hlo.parse(text)
    traffic = collectives.traffic(program, dict(mesh.shape), slices)
    return Measured(name, seconds, traffic=tuple(traffic), unknown_loops=len(program.unknown_loops), **sizes)


def _unless_assigned(
    lowered: jax.stages.Lowered, options: Mapping[str, str], written: pathlib.Path
) -> jax.stages.Compiled | None:
    """Compiles in a thread; returns None as soon as memory is assigned. The thread cannot be stopped then."""
    compiling = futures.ThreadPoolExecutor(1).submit(lowered.compile, options)
    while not compiling.done():
        if _is_assigned(written):
            return None
        time.sleep(0.5)
    return compiling.result()


def _analysed(compiled: jax.stages.Compiled) -> dict[str, int]:
    """The compiler's memory analysis of a program, as fields of `Measured`."""
    memory = compiled.memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }


# --------------------------------------------------------- what compilers write

_ASSIGNED = "*after_optimizations-buffer-assignment.txt"
_PROGRAM = "*after_optimizations_after_buffer_assignment.txt"


def _is_assigned(folder: pathlib.Path) -> bool:
    """Whether the compiler has finished both files: neither has changed for two seconds."""
    found = [*folder.glob(_ASSIGNED), *folder.glob(_PROGRAM)]
    return len(found) == 2 and time.time() - max(file.stat().st_mtime for file in found) > 2.0


def _text_of(compiled: jax.stages.Compiled | None, folder: pathlib.Path) -> str:
    """The HLO text of a program, or else from the compiler's dump in `folder`."""
    try:
        if compiled is not None:
            return compiled.as_text()  # jaxlib cannot read all programs of a newer TPU compiler
    except jax.errors.JaxRuntimeError:
        if not any(folder.glob(_PROGRAM)):
            raise
    return _largest(folder, _PROGRAM)


def _largest(folder: pathlib.Path, pattern: str) -> str:
    return max(folder.glob(pattern), key=lambda file: file.stat().st_size).read_text()


def _assigned(text: str) -> dict[str, int]:
    """Bytes of device memory in a buffer-assignment dump, by use, as fields of `Measured`."""
    sizes = {"arguments": 0, "outputs": 0, "temporaries": 0}
    for size, rest in re.findall(r"^allocation \d+: size (\d+), (.*)$", text, re.MULTILINE):
        if rest.startswith("color"):
            continue  # not in the main memory
        if "parameter " in rest:
            sizes["arguments"] += int(size)
        elif "maybe-live-out" in rest or rest.startswith("output"):
            sizes["outputs"] += int(size)
        elif "preallocated-temp" in rest:
            sizes["temporaries"] += int(size)
    return sizes


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def needed_bytes(message: str) -> float:
    """The bytes that the compiler could not allocate, from its error message; infinite if it names none."""
    patterns = (
        r"total memory required[^(]*\(([\d.]+)([KMGT]?)\)",
        r"Used ([\d.]+)([KMGT]?)i?B? of",
        r"trying to allocate ([\d.]+)([KMGT]?)i?B",
    )
    for pattern in patterns:
        if match := re.search(pattern, message):
            return float(match[1]) * _UNITS[match[2]]
    return math.inf


def bytes_per_device(tree: Any) -> tuple[int, int]:
    """Bytes of one device's shards of a tree of arrays: (in device memory, in pinned host memory)."""
    device = host = 0
    for leaf in jax.tree.leaves(tree):
        size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        if getattr(leaf.sharding, "memory_kind", None) == "pinned_host":
            host += size
        else:
            device += size
    return device, host

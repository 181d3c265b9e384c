"""Measures a run: tokens per second, FLOP by part, share of the peak (MFU), memory, remaining time."""

from __future__ import annotations

import collections
import contextlib
import resource
import sys
import time
import timeit
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp

from process_gen.distributed.chips import GIB, chip_of
from process_gen.models import cost
from process_gen.models.config import ModelConfig
from process_gen.reports.table import table
from process_gen.trajectory.layout import Layout


def peak_flops(dtype: str) -> tuple[float, str]:
    """FLOP/s of one device and where the figure comes from: a data sheet, or a measured product."""
    kind = jax.devices()[0].device_kind
    if chip := chip_of(kind):
        return chip.flops, f"data sheet of {chip.name}, bf16"
    return measured_peak(dtype), f"measured {dtype} matrix product on {kind}"


def measured_peak(dtype: str) -> float:
    """FLOP/s of the best of several square matrix products on the first device; the first compiles."""
    side = 2048
    a, product = jnp.ones((side, side), dtype), jax.jit(lambda x, y: x @ y)
    seconds = timeit.repeat(lambda: product(a, a).block_until_ready(), number=1, repeat=6)
    return 2 * side**3 / min(seconds)


class Meter:
    """Rates since the last reading, and over the run.

    Args:
      config, layout: sizes of the model and of a row; rows of images of another shape count as if they had
        this one.
      program: how the train step is computed, for its FLOP.
      peak: FLOP/s of one device.
      devices: of all hosts together.
      last: the last step of the run.
    """

    def __init__(
        self, config: ModelConfig, layout: Layout, program: cost.Program, peak: float, devices: int, last: int
    ):
        self._sizes, self._program = (config, layout), program
        self._peak, self._devices, self._last = peak, devices, last
        self._whole = collections.Counter()
        self.restart(untimed=0)

    def count(self, metrics: Mapping[str, float], waited: float) -> None:
        """Adds one step: its `batch/...` metrics and the seconds spent waiting for data."""
        if self._untimed:
            self._untimed -= 1
            return
        held = {name: value for name, value in metrics.items() if name.startswith("batch/")}
        self._span.update({"steps": 1, "waited": waited} | held)

    def restart(self, untimed: int = 1) -> None:
        """Discards the time since the last reading (spent on compiling or evaluation).

        The next `untimed` calls of `count` are of steps done in that time, and are discarded too.
        """
        self._since, self._span, self._untimed = time.perf_counter(), collections.Counter(), untimed

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """Excludes the time inside from all rates."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - started

    def read(self, step: int) -> dict[str, float]:
        """Rates since the last reading, seconds until the last step at that pace, and memory.

        Memory alone if no step was timed since then.
        """
        span = self._span
        if not span["steps"]:
            return memory()
        span["seconds"] = max(time.perf_counter() - self._since, 1e-9)
        self._whole.update(span)
        self.restart(untimed=0)
        pace = {"speed/eta_seconds": (self._last - step) * span["seconds"] / span["steps"]}
        return self._rates(span) | pace | memory()

    def mean(self) -> dict[str, float]:
        """Rates over everything that was read so far; empty where nothing was."""
        return self._rates(self._whole) if self._whole["steps"] else {}

    def table(self) -> str:
        """The mean rates for a terminal."""
        mean = self.mean()
        parts = ", ".join(f"{part} {mean[f'mfu/{part}']:.1%}" for part in cost.PARTS if mean[f"mfu/{part}"])
        rows = [
            ("a step", f"{mean['speed/step_seconds']:.3f} s"),
            ("useful tokens/s", f"{mean['speed/tokens_per_second']:,.0f}"),
            (
                f"useful tokens/s of each of {self._devices} devices",
                f"{mean['speed/tokens_per_second_per_chip']:,.0f}",
            ),
            ("share of the peak (MFU)", f"{mean['speed/mfu']:.1%}: {parts}"),
            ("useful share of the tokens", f"{mean['speed/useful_tokens']:.1%}"),
            ("useful share of the FLOP", f"{mean['speed/useful_flops']:.1%}"),
            ("waiting for data", f"{mean['speed/data_wait_share']:.1%}"),
            *((name, f"{value:.2f} GiB") for name, value in memory().items()),
        ]
        return table(rows, ("speed", "mean"))

    def _rates(self, span: Mapping[str, float]) -> dict[str, float]:
        held = {name.removeprefix("batch/"): n for name, n in span.items() if name.startswith("batch/")}
        seconds, available = span["seconds"], span["seconds"] * self._peak * self._devices
        tokens = held["und_tokens"] + held["gen_tokens"]
        useful = cost.useful(*self._sizes, held, self._program.encode)
        executed = cost.executed(*self._sizes, held, self._program)
        return {
            "speed/step_seconds": seconds / span["steps"],
            "speed/tokens_per_second": tokens / seconds,
            "speed/tokens_per_second_per_chip": tokens / seconds / self._devices,
            "speed/turns_per_second": held["turns"] / seconds,
            "speed/trajectories_per_second": held["trajectories"] / seconds,
            "speed/useful_tokens": tokens / held["slots"],
            "speed/useful_flops": sum(useful.values()) / sum(executed.values()),
            "speed/mfu": sum(useful.values()) / available,
            **{f"mfu/{part}": flops / available for part, flops in useful.items()},
            "speed/data_wait_share": span["waited"] / seconds,
        }


def memory() -> dict[str, float]:
    """GiB in use, peak and limit of this host's devices (the largest of each), and the process's own peak.

    Devices are left out if their backend has no memory statistics, as on a CPU.
    """
    keys = {"in_use": "bytes_in_use", "peak": "peak_bytes_in_use", "limit": "bytes_limit"}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    most = {name: max((one[key] for one in stats if key in one), default=None) for name, key in keys.items()}
    found = {f"memory/{name}_gib": value / GIB for name, value in most.items() if value is not None}
    unit = 1 if sys.platform == "darwin" else 1024
    found["memory/host_peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
    return found

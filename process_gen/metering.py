"""How fast a run is: tokens, FLOP by part, the share of the peak, memory, and when it will be done."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from process_gen import norms
from process_gen.distributed.chips import chip_of
from process_gen.models.config import ModelConfig
from process_gen.reports.table import table
from process_gen.trajectory.layout import Layout


def peak_flops(dtype: str = "float32") -> tuple[float, str]:
    """FLOP/s of one device and where the figure comes from: a data sheet, or a measured product."""
    kind = jax.devices()[0].device_kind
    if chip := chip_of(kind):
        return chip.flops, f"data sheet of {chip.name}, bf16"
    return measured_peak(dtype), f"measured {dtype} matrix product on {kind}"


def measured_peak(dtype: str = "float32", side: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of the best of several square matrix products on the first device."""
    a = jnp.ones((side, side), jnp.dtype(dtype))
    product = jax.jit(lambda x, y: x @ y)
    product(a, a).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


PARTS = ("und", "gen", "attention", "vit", "head")
"""FLOP are told apart by these: the two experts, attention scores, ViT and connector, vocabulary head."""

TRAINING, SAMPLING = 6.0, 2.0
"""FLOP per multiply-add of a forward pass: with its backward pass, and alone."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Multiply-adds of a forward pass, per unit of what a batch holds (`amounts`).

    Attributes:
      und, gen, head: of the matrices that one token goes through, at each end of
        the backbone too.
      attention: of one query and key pair, in all layers.
      vit: of one image that the ViT and the connector look at.
    """

    und: float
    gen: float
    attention: float
    vit: float
    head: float

    @classmethod
    def of(cls, params: Mapping[str, Any], config: ModelConfig, layout: Layout) -> Cost:
        """Counts matrices by the part they belong to; embeddings and norms cost nothing.

        Nor does the frozen autoencoder, whose latents may be made ahead of time. The ViT is counted for the
        images of `layout`; those of other shapes have about as many of its tokens.
        """
        sizes = dict.fromkeys(norms.PARTS, 0.0)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            names = [str(getattr(key, "key", key)) for key in path]
            if names[-1] == "kernel" and not names[0].startswith("time_"):  # those see one timestep an image
                part = norms.part_of(path)
                sizes[part] = sizes.get(part, 0.0) + leaf.size
        scores = 2.0 * config.vit.layers * config.vit.width * layout.vit_tokens**2 if config.vit else 0.0
        return cls(
            und=sizes["und"],
            gen=sizes["gen"] + sizes["latent"],
            attention=2.0 * config.layers * config.heads * config.head_dim,
            vit=sizes["vit"] * layout.vit_tokens + scores,
            head=sizes["head"],
        )

    def flops(self, amounts: Mapping[str, float], passes: float = TRAINING) -> dict[str, float]:
        """FLOP by part for what was counted under `batch/...`."""
        held = {part: amounts.get(f"batch/{name}", 0.0) for part, name in _COUNTED.items()}
        return {part: passes * getattr(self, part) * held[part] for part in PARTS}


_COUNTED = {
    "und": "und_tokens",
    "gen": "gen_tokens",
    "attention": "attention_pairs",
    "vit": "views",
    "head": "head_tokens",
}


class Meter:
    """Rates since the last reading, and over the run.

    Args:
      cost: of what a batch holds.
      peak: FLOP/s of one device.
      devices: of all hosts together.
      first, last: the steps of this run.
    """

    def __init__(self, cost: Cost, peak: float, devices: int, first: int, last: int):
        self.cost, self.peak, self.devices, self.last = cost, peak, devices, last
        self.step, self._untimed = first, 0
        self._whole = _Span()
        self.restart(untimed=0)

    def count(self, metrics: Mapping[str, float], waited: float) -> None:
        """Adds one step: its `batch/...` metrics and the seconds spent waiting for data."""
        if self._untimed:
            self._untimed -= 1
            return
        self._span.steps += 1
        self._span.waited += waited
        for name, value in metrics.items():
            if name.startswith("batch/"):
                self._span.amounts[name] = self._span.amounts.get(name, 0.0) + value

    def restart(self, untimed: int = 1) -> None:
        """Forgets the time since the last reading (spent on compiling or evaluation).

        `untimed` steps were done in that time and are still to be counted.
        """
        self._since, self._span, self._untimed = time.perf_counter(), _Span(), untimed

    def read(self, step: int) -> dict[str, float]:
        """Rates since the last reading, seconds until the last step at that pace, and memory.

        Without the rates where no step was timed since then.
        """
        span = self._span
        if not span.steps:
            return memory()
        span.seconds = max(time.perf_counter() - self._since, 1e-9)
        self._whole.add(span)
        self.restart(untimed=0)
        pace = {"speed/eta_seconds": (self.last - step) * span.seconds / span.steps}
        return self._rates(span) | pace | memory()

    def mean(self) -> dict[str, float]:
        """Rates over everything that was read so far; empty where nothing was."""
        return self._rates(self._whole) if self._whole.steps else {}

    def table(self) -> str:
        """The mean rates for a terminal."""
        mean = self.mean()
        parts = ", ".join(f"{part} {mean[f'mfu/{part}']:.1%}" for part in PARTS if mean[f"mfu/{part}"])
        rows = [
            ("a step", f"{mean['speed/step_seconds']:.3f} s"),
            ("tokens/s", f"{mean['speed/tokens_per_second']:,.0f}"),
            (
                f"tokens/s of each of {self.devices} devices",
                f"{mean['speed/tokens_per_second_per_chip']:,.0f}",
            ),
            ("share of the peak (MFU)", f"{mean['speed/mfu']:.1%}: {parts}"),
            ("waiting for data", f"{mean['speed/data_wait_share']:.1%}"),
            *((name, f"{value:.2f} GiB") for name, value in memory().items()),
        ]
        return table(rows, ("speed", "mean"))

    def _rates(self, span: _Span) -> dict[str, float]:
        held, seconds = span.amounts, span.seconds
        tokens = held.get("batch/und_tokens", 0.0) + held.get("batch/gen_tokens", 0.0)
        shares = {
            part: flops / seconds / (self.peak * self.devices)
            for part, flops in self.cost.flops(held).items()
        }
        return {
            "speed/step_seconds": seconds / span.steps,
            "speed/tokens_per_second": tokens / seconds,
            "speed/tokens_per_second_per_chip": tokens / seconds / self.devices,
            "speed/trajectory_steps_per_second": held.get("batch/steps", 0.0) / seconds,
            "speed/mfu": sum(shares.values()),
            **{f"mfu/{part}": share for part, share in shares.items()},
            "speed/data_wait_share": span.waited / seconds,
        }


@dataclasses.dataclass
class _Span:
    """Steps, what they held, and how long they took."""

    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    amounts: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, other: _Span) -> None:
        self.steps += other.steps
        self.seconds += other.seconds
        self.waited += other.waited
        for name, value in other.amounts.items():
            self.amounts[name] = self.amounts.get(name, 0.0) + value


GIB = 2.0**30


def memory() -> dict[str, float]:
    """GiB in use and at most in use, of the fullest device of this host and of the process itself.

    Backends that keep no account of their memory, as the CPU's, leave out the devices.
    """
    found = {}
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    for name, key in (("in_use", "bytes_in_use"), ("peak", "peak_bytes_in_use"), ("limit", "bytes_limit")):
        values = [one[key] for one in stats if key in one]
        if values:
            found[f"memory/{name}_gib"] = max(values) / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    found["memory/host_peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
    return found


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

"""How fast a run is: tokens, FLOP, the share of the peak, and when it will be done."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

NAMED_PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
"""Dense bf16 FLOP/s per chip, from the vendors' data sheets, by the start of `device_kind`."""


def peak_flops(dtype: str = "float32") -> tuple[float, str]:
    """FLOP/s of one device and where the figure comes from: a data sheet, or a measured product."""
    kind = jax.devices()[0].device_kind
    for name, peak in sorted(NAMED_PEAKS.items(), key=lambda item: -len(item[0])):
        if kind.startswith(name):
            return peak, f"data sheet of {name}, bf16"
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


@dataclasses.dataclass(frozen=True)
class TokenCost:
    """Multiply-adds of the weight matrices that one token goes through."""

    und: float
    gen: float

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> TokenCost:
        """Counts matrices by the expert they belong to.

        The vocabulary head counts for text tokens (vision tokens included), the
        latent projections for latent tokens, the embedding for none. Attention
        scores and the ViT are not counted.
        """
        und = gen = 0.0
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            names = [str(getattr(key, "key", key)) for key in path]
            if names[-1] != "kernel":
                continue
            if "und" in names or "head" in names:
                und += leaf.size
            elif "gen" in names or "latent_in" in names or "latent_out" in names:
                gen += leaf.size
        return cls(und, gen)

    def train_flops(self, und_tokens: float, gen_tokens: float) -> float:
        """FLOP of a forward and a backward pass: 6 per multiply-add."""
        return 6.0 * (self.und * und_tokens + self.gen * gen_tokens)


class Meter:
    """Rates since the last reading.

    Args:
      cost: of a token.
      peak: FLOP/s of all devices together.
      first, last: the steps of this run.
    """

    def __init__(self, cost: TokenCost, peak: float, first: int, last: int):
        self.cost, self.peak, self.last = cost, peak, last
        self.started = self.since = time.perf_counter()
        self.waited = self.und = self.gen = self.slots = 0.0
        self.first = self.step = first

    def count(self, metrics: Mapping[str, float], waited: float) -> None:
        """Adds one step: its `batch/...` metrics and the seconds spent waiting for data."""
        self.und += metrics["batch/und_tokens"]
        self.gen += metrics["batch/gen_tokens"]
        self.slots += metrics["batch/steps"]
        self.waited += waited

    def restart(self) -> None:
        """Forgets the time since the last reading (spent on evaluation, say)."""
        self.since = time.perf_counter()
        self.waited = self.und = self.gen = self.slots = 0.0

    def read(self, step: int) -> dict[str, float]:
        """Rates since the last reading, and seconds until the last step at that pace."""
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        steps = max(step - self.step, 1)
        rates = {
            "speed/step_seconds": elapsed / steps,
            "speed/tokens_per_second": (self.und + self.gen) / elapsed,
            "speed/trajectory_steps_per_second": self.slots / elapsed,
            "speed/mfu": self.cost.train_flops(self.und, self.gen) / elapsed / self.peak,
            "speed/data_wait_share": self.waited / elapsed,
            "speed/eta_seconds": (self.last - step) * elapsed / steps,
        }
        self.step = step
        self.restart()
        return rates


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

"""How long a step would take if nothing but arithmetic, memory and wires counted.

Each of the four is one division: what a device works through by what it can do
in a second. They run side by side at best, one after the other at worst; both
ends are given. Nothing of this is a measurement.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from process_gen.capacity.collectives import Traffic
from process_gen.distributed.chips import Chip


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What an estimate takes for granted.

    Attributes:
      efficiency: share of the peak that matrix products reach while they run. Published runs of dense
        models of this size reach 45% of the peak in useful FLOP with full recomputation (MaxText,
        Llama 3.1 8B on v6e-256), which is 60% of what is worked through.
      links: share of the bandwidth of the data sheet that exchanges reach.
      hop_seconds: that an exchange takes from one device to the next, whatever it carries.
    """

    efficiency: float = 0.6
    links: float = 0.8
    hop_seconds: float = 1e-6

    def __post_init__(self):
        for field in ("efficiency", "links"):
            if not 0 < getattr(self, field) <= 1:
                raise ValueError(f"{field} must be above 0 and at most 1, got {getattr(self, field)}")

    def described(self, chip: Chip) -> list[str]:
        """One line each, for the report."""
        return [
            f"matrix products at {self.efficiency:.0%} of {chip.flops / 1e12:.0f} TFLOP/s (bf16, data sheet)",
            f"memory at {chip.hbm_bandwidth / 1e9:.0f} GB/s; arguments and temporaries go through it twice, "
            "gathered weights twice",
            f"links at {self.links:.0%} of {chip.link_bandwidth / 1e9:.0f} GB/s received by a device over "
            f"all of them, the network between slices or hosts at {self.links:.0%} of "
            f"{chip.network_bandwidth / 1e9:.3g} GB/s",
            f"{self.hop_seconds * 1e6:.0f} us for each hop of an exchange, which goes along the sides of a "
            "square or a cube of devices",
            "at best all of them overlap and the longest counts, at worst none does",
        ]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of one step.

    Attributes:
      compute, memory, links, network, hops: each alone.
    """

    compute: float
    memory: float
    links: float
    network: float
    hops: float

    @property
    def exchange(self) -> float:
        """Seconds in which devices talk: links and network side by side, after the hops."""
        return max(self.links, self.network) + self.hops

    @property
    def best(self) -> float:
        """All overlap."""
        return max(self.compute, self.memory, self.exchange)

    @property
    def worst(self) -> float:
        """None overlap."""
        return max(self.compute, self.memory) + self.links + self.network + self.hops

    @property
    def bound(self) -> str:
        """What the longest of them is."""
        parts = {"compute": self.compute, "memory": self.memory, "exchange": self.exchange}
        return max(parts, key=parts.get)


def estimate(
    chip: Chip,
    flops: float,
    memory_bytes: float,
    traffic: Sequence[Traffic],
    assumptions: Assumptions | None = None,
    sides: int = 2,
) -> Estimate:
    """The time of a step on one device of many that do the same.

    Args:
      chip: what it has.
      flops: that it works through.
      memory_bytes: that go between it and its memory.
      traffic: what it exchanges.
      assumptions: see there.
      sides: dimensions of the torus that the devices form.
    """
    given = assumptions or Assumptions()
    received = {True: 0.0, False: 0.0}
    hops = 0.0
    for one in traffic:
        beyond = one.network or (chip.domain is not None and one.size > chip.domain)
        received[beyond] += one.bytes
        length = math.ceil(one.size ** (1 / sides))
        hops += one.runs * sides * max(length // 2, 1) * given.hop_seconds
    return Estimate(
        compute=flops / (chip.flops * given.efficiency),
        memory=memory_bytes / chip.hbm_bandwidth,
        links=received[False] / (chip.link_bandwidth * given.links),
        network=received[True] / (chip.network_bandwidth * given.links),
        hops=hops,
    )


def as_dict(one: Estimate) -> Mapping[str, float | str]:
    """An estimate for a JSON file."""
    return dataclasses.asdict(one) | {"best": one.best, "worst": one.worst, "bound": one.bound}

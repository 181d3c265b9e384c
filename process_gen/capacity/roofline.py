"""Estimates the time of a step from its FLOP, memory traffic and collectives alone (a roofline model).

Each of compute, memory, links and network takes its amount divided by the chip's
rate. The best case overlaps all of them; the worst case overlaps only compute with
memory. Nothing here is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from process_gen.capacity.collectives import Traffic
from process_gen.distributed.chips import Chip

EFFICIENCY = 0.6
"""Share of the peak FLOP/s that matrix products reach. Published runs of dense models of this size reach 45%
MFU with full recomputation (MaxText, Llama 3.1 8B on v6e-256): 60% with the recomputed FLOP."""
LINKS = 0.8
"""Share of the data sheet's bandwidth that collectives reach."""
HOP_SECONDS = 1e-6
"""Latency of a collective from one device to the next, whatever its size."""


def assumptions(chip: Chip, efficiency: float = EFFICIENCY) -> list[str]:
    """The assumptions of an estimate, one line each, for the report."""
    return [
        f"matrix products at {efficiency:.0%} of {chip.flops / 1e12:.0f} TFLOP/s (bf16, data sheet)",
        f"memory at {chip.hbm_bandwidth / 1e9:.0f} GB/s; arguments and temporaries go through it twice, "
        "gathered weights twice",
        f"links at {LINKS:.0%} of {chip.link_bandwidth / 1e9:.0f} GB/s received by a device over "
        f"all of them, the network between slices or hosts at {LINKS:.0%} of "
        f"{chip.network_bandwidth / 1e9:.3g} GB/s",
        f"{HOP_SECONDS * 1e6:.0f} us for each hop of an exchange, which goes along the sides of a "
        "square or a cube of devices",
        "at best all of them overlap and the longest counts, at worst only compute and memory do",
    ]


def estimate(
    chip: Chip,
    flops: float,
    memory_bytes: float,
    traffic: Sequence[Traffic],
    efficiency: float = EFFICIENCY,
    sides: int = 2,
) -> dict[str, float | str]:
    """Estimates the time of a step on one device of many that all do the same.

    Args:
      chip: the device.
      flops, memory_bytes: what one device computes, and moves between chip and memory.
      traffic: the collectives of one step.
      efficiency: share of the peak FLOP/s that matrix products reach.
      sides: dimensions of the torus that the devices form.

    Returns:
      Seconds of `compute`, `memory`, `links`, `network` and `hops` (latency), each alone; of the step if all
      overlap (`best`), and if only compute and memory do (`worst`); and the longest of `compute`, `memory`
      and `exchange` (`bound`).
    """
    received = {True: 0.0, False: 0.0}
    hops = 0.0
    for one in traffic:
        beyond = one.network or (chip.domain is not None and one.size > chip.domain)
        received[beyond] += one.bytes
        length = math.ceil(one.size ** (1 / sides))
        hops += one.runs * sides * max(length // 2, 1) * HOP_SECONDS
    compute = flops / (chip.flops * efficiency)
    memory = memory_bytes / chip.hbm_bandwidth
    links = received[False] / (chip.link_bandwidth * LINKS)
    network = received[True] / (chip.network_bandwidth * LINKS)
    alone = {"compute": compute, "memory": memory, "exchange": max(links, network) + hops}
    return {
        "compute": compute,
        "memory": memory,
        "links": links,
        "network": network,
        "hops": hops,
        "best": max(alone.values()),
        "worst": max(compute, memory) + links + network + hops,
        "bound": max(alone, key=alone.get),
    }

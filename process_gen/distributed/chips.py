"""Figures of hardware, by chip: memory, FLOP/s and bandwidths.

Figures of the vendors' data sheets (Google Cloud's pages on v4, v5e, v5p, v6e and
TPU7x; NVIDIA's on A100, H100, H200 and B200), per device as JAX counts them.
For TPUs the memory is what the compiler lets a program have (its out-of-memory
message names it), a little less than the chip has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      name: as a topology names it, and `--chip`.
      kinds: prefixes of its `device_kind`.
      hbm: bytes of memory that a program can have.
      flops: dense bfloat16 FLOP/s.
      hbm_bandwidth: bytes/s between memory and chip.
      link_bandwidth: bytes/s that a device receives from its neighbours, over all its links together (half
        of the figure that data sheets call bidirectional): ICI of TPUs, NVLink of GPUs.
      network_bandwidth: bytes/s of the data-centre network, a device's share of its host's cards.
      domain: number of devices that the links join; None for TPUs, whose topology says it.
    """

    name: str
    kinds: tuple[str, ...]
    hbm: float
    flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    domain: int | None = None


_CHIPS = (
    Chip("v4", ("TPU v4",), 30.75 * GIB, 275e12, 1228e9, 300e9, 3.125e9),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 15.75 * GIB, 197e12, 819e9, 200e9, 3.125e9),
    Chip("v5p", ("TPU v5",), 95.73 * GIB, 459e12, 2765e9, 600e9, 6.25e9),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 31.24 * GIB, 918e12, 1640e9, 400e9, 12.5e9),
    Chip("tpu7x", ("TPU7x",), 94.74 * GIB, 1153e12, 3690e9, 300e9, 6.25e9),  # half a chip each
    Chip("a100", ("NVIDIA A100",), 80e9, 312e12, 2039e9, 300e9, 25e9, 8),
    Chip("h100", ("NVIDIA H100",), 80e9, 989e12, 3350e9, 450e9, 50e9, 8),
    Chip("h200", ("NVIDIA H200",), 141e9, 989e12, 4800e9, 450e9, 50e9, 8),
    Chip("b200", ("NVIDIA B200",), 180e9, 2250e12, 8000e9, 900e9, 50e9, 8),
)
CHIPS: Mapping[str, Chip] = {chip.name: chip for chip in _CHIPS}
"""Chips by the name that a topology or `--chip` gives them."""


def _target(name: str, clock: float, *figures: int) -> str:
    """A `stream_executor.GpuTargetConfigProto`, as text; without it XLA's GPU compiler asks the driver.

    `clock` in GHz. `figures`: compute capability, multiprocessors, float32 units of each, bytes of memory,
    bytes/s, bytes of L2, and bytes of shared memory of a multiprocessor, of which a block gets all but 1 KiB.
    """
    capability, cores, fpus, memory, bandwidth, l2, shared = figures
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {capability} minor: 0 }}
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {clock}
  device_memory_size: {memory} memory_bandwidth: {bandwidth} l2_cache_size: {l2}
  shared_memory_per_core: {shared} shared_memory_per_block_optin: {shared - 1024}
  shared_memory_per_block: 49152
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""


GPU_TARGETS: Mapping[str, str] = {
    "a100": _target(
        "NVIDIA A100-SXM4-80GB", 1.41, 8, 108, 64, 85_100_068_864, 2_039_040_000_000, 41_943_040, 167_936
    ),
    "h100": _target(
        "NVIDIA H100 80GB HBM3", 1.98, 9, 132, 128, 84_942_979_072, 3_352_320_000_000, 52_428_800, 233_472
    ),
    "h200": _target(
        "NVIDIA H200", 1.98, 9, 132, 128, 151_397_597_184, 4_800_000_000_000, 52_428_800, 233_472
    ),
    "b200": _target(
        "NVIDIA B200", 1.965, 10, 148, 128, 191_514_411_008, 7_672_320_000_000, 132_644_864, 233_472
    ),
}
"""GPUs that can be compiled for where there are none, by the name of their `Chip`.

The figures are those of the hardware, as OpenXLA's target specifications state them.
"""


def chip_of(device_kind: str) -> Chip | None:
    """The chip with the longest of `kinds` that the device's kind begins with; None for unknown ones."""
    found = {kind: chip for chip in CHIPS.values() for kind in chip.kinds if device_kind.startswith(kind)}
    return found[max(found, key=len)] if found else None

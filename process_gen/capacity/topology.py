"""Devices to compile for, present or not: TPU slices and GPU nodes by name, simulated CPU devices.

v5p:4x4x4    a TPU slice; compiled for by libtpu, without a TPU
h100:8       the GPUs of a node; compiled for by XLA's GPU compiler, without a GPU or a driver
cpu:8        simulated devices on the CPU
gpu          the GPUs of this machine, where JAX has a plugin for them
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence

import jax
from jax.experimental import topologies

from process_gen.distributed.chips import CHIPS, GPU_TARGETS, Chip, chip_of

TPUS = ("v5e", "v5p", "v6e", "tpu7x")
"""TPU generations whose slices can be named."""

EXAMPLES = "v5p:4x4x4, v5e:16x16, v6e:8x8, tpu7x:2x2x2, h100:8, cpu:8 and gpu"

_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",  # do not ask the metadata server which TPU this is
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes may compile at once: none owns a chip
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
}
"""Environment variables without which libtpu would search for a TPU for minutes."""

_WITHOUT_GPU = ("--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false")
"""XLA flags to compile without a GPU: autotuning and Triton matrix products would run kernels on one."""


class TopologyError(ValueError):
    """A topology that is unknown, or that this machine cannot compile for; the message says what works."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for, ordered by slice, of a `platform` (`tpu`, `cpu` or `gpu`).

    `slices`: number of slices, or GPU nodes, joined by the data-centre network. `chip`: figures of one
    device; None where unknown (a CPU).
    """

    name: str
    platform: str
    devices: Sequence[jax.Device]
    slices: int
    chip: Chip | None


@dataclasses.dataclass(frozen=True)
class Name:
    """A parsed topology name: `generation` (or `cpu`, `gpu`), shape of a slice, number of slices."""

    generation: str
    sides: tuple[int, ...]
    slices: int = 1

    def __str__(self) -> str:
        return ":".join(filter(None, (self.generation, "x".join(map(str, self.sides)))))


def parse(text: str, slices: int = 1) -> Name:
    """Parses `v5p:4x4x4`, `cpu:8` or `gpu`; `slices` is how many the data-centre network joins.

    Raises:
      TopologyError: an unknown generation, a wrong shape, or several slices of `gpu`.
    """
    match = re.fullmatch(r"([a-z0-9]+)(?::(\d+(?:x\d+)*))?", text.strip().lower())
    generation = match[1] if match else ""
    known = (*TPUS, *GPU_TARGETS, "cpu", "gpu")
    if generation not in known:
        raise TopologyError(f"unknown topology {text!r}; known are {', '.join(known)}: {EXAMPLES}")
    sides = tuple(int(side) for side in match[2].split("x")) if match[2] else ()
    wanted = {"gpu": 0, "v5p": 3, "tpu7x": 3} | dict.fromkeys(("cpu", *GPU_TARGETS), 1)
    count = wanted.get(generation, 2)
    if len(sides) != count or 0 in sides:
        form = ("gpu", f"{generation}:8", f"{generation}:4x4", f"{generation}:4x4x4")[count]
        raise TopologyError(f"topology {text!r} is not of the form {form}; others are {EXAMPLES}")
    if slices > 1 and generation == "gpu":
        raise TopologyError("gpu takes the devices that are there: leave --slices out")
    return Name(generation, sides, slices)


def prepare(name: Name) -> None:
    """Sets what JAX reads when its backend starts; call it before the first use of a device."""
    if name.generation == "gpu":
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    if name.generation == "cpu":
        jax.config.update("jax_num_cpu_devices", name.sides[0] * name.slices)
    elif name.generation in GPU_TARGETS:
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_WITHOUT_GPU]).strip()
    else:
        os.environ.update(_WITHOUT_TPU | os.environ)


def get(name: Name, chip: str | None = None) -> Topology:
    """Returns the devices of a topology; call `prepare` first. `chip`: name in `CHIPS` to assume for them.

    Raises:
      TopologyError: no such chip, too few CPU devices, no libtpu or GPU plugin, or no such slice for it.
    """
    if chip is not None and chip not in CHIPS:
        raise TopologyError(f"unknown chip {chip!r}; known are {', '.join(CHIPS)}")
    platform, devices = _devices(name)
    own = chip_of(devices[0].device_kind)
    return Topology(str(name), platform, devices, name.slices, CHIPS[chip] if chip else own)


def _devices(name: Name) -> tuple[str, Sequence[jax.Device]]:
    """The platform and the devices of a topology."""
    if name.generation == "cpu":
        wanted, devices = name.sides[0] * name.slices, jax.devices("cpu")
        if len(devices) < wanted:
            raise TopologyError(f"JAX has started with {len(devices)} CPU devices, {wanted} are asked for")
        return "cpu", devices[:wanted]
    if name.generation == "gpu":
        with _as_topology_error(
            "no GPU that JAX can use: `pip install -e '.[cuda13]'` on a machine that has one, `.[cuda12]` "
            "for older drivers"
        ):
            return "gpu", jax.devices("gpu")
    if target := GPU_TARGETS.get(name.generation):
        if not is_installed("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"):
            raise TopologyError(
                f"compiling for {name.generation} takes JAX's GPU plugin, not a GPU: "
                "`pip install -e '.[cuda13]'` (4.4 GB). Without it, --topology=cpu:8 checks the sharding"
            )
        sides = f"{name.slices}x1x{name.sides[0]}"  # slices x nodes of a slice x GPUs of a node
        with _as_topology_error(f"the GPU compiler knows no {name}"):
            described = topologies.get_topology_desc("", "cuda", target_config=target, topology=sides)
            return "gpu", described.devices
    if not is_installed("libtpu"):
        raise TopologyError(
            f"compiling for {name.generation} takes the TPU compiler, not a TPU: `pip install libtpu`. "
            "Without it, --topology=cpu:8 checks the sharding"
        )
    options = {"num_slices": name.slices} if name.slices > 1 else {}
    with _as_topology_error(f"the TPU compiler knows no slice {name}; try {EXAMPLES}"):
        return "tpu", topologies.get_topology_desc(str(name), "tpu", **options).devices


def is_installed(*modules: str) -> bool:
    """Whether one of these modules is installed; does not import it."""
    with contextlib.suppress(ModuleNotFoundError):  # raised where the parent package is missing
        return any(importlib.util.find_spec(module) for module in modules)
    return False


@contextlib.contextmanager
def _as_topology_error(text: str) -> Iterator[None]:
    """Turns a RuntimeError or ValueError inside the block into a `TopologyError` that begins with `text`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise TopologyError(f"{text} ({str(error).splitlines()[0][:200]})") from error

"""Keeps parts of the training state in host memory while the model computes.

AdamW reads and writes its moments once a step: 8 bytes a parameter that the devices need not hold during
the forward and backward pass. The shardings say where an array is between steps (`pinned_host`); the train
step copies it to the devices for the update, and back.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from process_gen.distributed.mesh import MeshError

HOST, DEVICE = "pinned_host", "device"

PARTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "optimizer": ("opt_state",),
    "optimizer+ema": ("opt_state", "ema"),
}
"""What `config.train.offload` may be -> fields of the state."""


def rest_on_host(abstract: Any, offload: str) -> Any:
    """The abstract state with the fields that `offload` names (`PARTS`) in host memory, scalars excepted."""

    def moved(x):
        return x.update(sharding=x.sharding.with_memory_kind(HOST)) if x.ndim else x

    fields = {name: jax.tree.map(moved, getattr(abstract, name)) for name in PARTS[offload]}
    return dataclasses.replace(abstract, **fields)


def check_host_memory(offload: str, mesh: Mesh) -> None:
    """Checks that the devices have pinned host memory, if `offload` needs it.

    Raises:
      MeshError: they have none; the message names the kinds of memory that they have.
    """
    if not PARTS[offload]:
        return
    device = mesh.devices.flat[0]
    try:
        kinds = {memory.kind for memory in device.addressable_memories()}
    except jax.errors.JaxRuntimeError:  # devices of a compile-only topology do not list theirs
        return
    if HOST not in kinds:
        raise MeshError(
            f"config.train.offload={offload!r} needs {HOST!r} memory; {device.device_kind} offers "
            f"{', '.join(sorted(kinds))}: set --config.train.offload=none"
        )


def fetched(tree: Any, shardings: Any) -> Any:
    """Inside a jitted function: copies the arrays whose shardings say host memory to the devices."""
    return jax.tree.map(
        lambda x, s: jax.device_put(x, s.with_memory_kind(DEVICE)) if s.memory_kind == HOST else x,
        tree,
        shardings,
    )


def sent_back(tree: Any, shardings: Any) -> Any:
    """Inside a jitted function: the inverse of `fetched`."""
    return jax.tree.map(lambda x, s: jax.device_put(x, s) if s.memory_kind == HOST else x, tree, shardings)


def on_devices(tree: Any) -> Any:
    """Copies the arrays of a tree that are in host memory to the devices; leaves all else as it is."""

    def moved(x):
        rests_on_host = isinstance(x, jax.Array) and x.sharding.memory_kind == HOST
        return jax.device_put(x, x.sharding.with_memory_kind(DEVICE)) if rests_on_host else x

    return jax.tree.map(moved, tree)

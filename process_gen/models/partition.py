"""The mesh that a program is traced for, and how activations are sharded over it.

Modules name the axes of an activation, as they name those of a parameter:

    rows      of the batch
    tokens    of a chunk, within one stream
    heads     query heads; `kv_heads` those of keys and values
    mlp       hidden width of an MLP
    vocab     columns of the head

and `on_mesh` maps the names to mesh axes while a program is traced. Without it, or on
a mesh of one device, no sharding constraints are added.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
from absl import logging
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Rules = Mapping[str, str | tuple[str, ...] | None]


class _Ambient(NamedTuple):
    mesh: Mesh
    rules: Rules


_AMBIENT: contextvars.ContextVar[_Ambient | None] = contextvars.ContextVar("ambient mesh", default=None)


@contextlib.contextmanager
def on_mesh(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """Sets the mesh and the rules for what is traced inside; also a decorator of a traced function.

    Args:
      mesh: its devices may be those of a topology description, for compiling ahead of time.
      rules: name of an activation's axis -> mesh axis or axes.
    """
    token = _AMBIENT.set(_Ambient(mesh, rules))
    # JAX's trace cache depends on JAX's own ambient mesh: set it, lest a trace for another mesh is reused.
    abstract = (
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if mesh.size > 1 else contextlib.nullcontext()
    )
    try:
        with abstract:
            yield
    finally:
        _AMBIENT.reset(token)


def platform() -> str:
    """The platform that the program is traced for: `cpu`, `tpu`, `cuda` or `rocm`."""
    device = _device()
    if device.platform not in ("gpu", "cuda", "rocm"):
        return device.platform
    return "rocm" if "rocm" in str(getattr(device, "client", device).platform_version) else "cuda"


def compute_capability() -> float | None:
    """That of the NVIDIA GPUs that the program is traced for, such as 8.0 (A100); else None."""
    known = getattr(_device(), "compute_capability", None)
    return float(known) if known else None


def _device() -> jax.Device:
    ambient = _AMBIENT.get()
    return ambient.mesh.devices.flat[0] if ambient else jax.devices()[0]


def mesh() -> Mesh | None:
    """The mesh, if it has more than one device."""
    ambient = _AMBIENT.get()
    return ambient.mesh if ambient and ambient.mesh.size > 1 else None


def spec(name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> P:
    """The partition spec of an activation; `axes` has a name, or None, for each dimension.

    A dimension that its mesh axes do not divide stays whole; one log line says so, under `name`.
    """
    return P(*(split(name, axis, size) for axis, size in zip(axes, shape, strict=True)))


def split(name: str, axis: str | None, size: int) -> tuple[str, ...] | None:
    """The mesh axes, larger than 1, that split an axis of an activation; None where it stays whole."""
    sizes = _sizes(axis)
    if size % shards(axis):
        _stays_whole(name, axis, size, f"{'*'.join(sizes)}={shards(axis)}")
        return None
    return tuple(sizes) or None


def shards(axis: str | None) -> int:
    """Into how many parts an axis of an activation would be split."""
    return math.prod(_sizes(axis).values())


def _sizes(axis: str | None) -> dict[str, int]:
    """The mesh axes, larger than 1, that an axis of an activation is split over, with their sizes."""
    ambient = _AMBIENT.get()
    if ambient is None or axis is None:
        return {}
    found = ambient.rules[axis]
    found = (found,) if isinstance(found, str) else found or ()
    return {a: ambient.mesh.shape[a] for a in found if ambient.mesh.shape[a] > 1}


def constrain(name: str, x: jax.Array, *axes: str | None) -> jax.Array:
    """Adds the sharding constraint of `axes` to an activation; none without a mesh of several devices."""
    where = mesh()
    if where is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(where, spec(name, x.shape, axes)))


@functools.cache
def _stays_whole(name: str, axis: str, size: int, by: str) -> None:
    logging.warning("%s: %d %s do not divide by %s, so they stay whole on every device", name, size, axis, by)

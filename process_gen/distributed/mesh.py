"""The device mesh: four named axes that every config uses, of one device or thousands.

data      copies of the model, each with its own part of the batch
fsdp      parameters are split over it, and the batch too
tensor    heads, MLP width and vocabulary are split over it
context   the tokens of one row are split over it
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

AXES = ("data", "fsdp", "tensor", "context")


class MeshError(ValueError):
    """The mesh does not fit the devices, or an array does not fit the mesh."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Size of each mesh axis; at most one may be -1, which takes the devices that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1

    def sizes(self, devices: int) -> dict[str, int]:
        """Axis name -> size for this many devices.

        Raises:
          MeshError: an axis has an impossible size, or the sizes do not multiply to the number of devices.
        """
        asked = {axis: getattr(self, axis) for axis in AXES}
        shown = ", ".join(f"{axis}={size}" for axis, size in asked.items())
        for axis, size in asked.items():
            if size < 1 and size != -1:
                raise MeshError(f"mesh.{axis} must be -1 or at least 1, got {size}")
        inferred = [axis for axis, size in asked.items() if size == -1]
        if len(inferred) > 1:
            raise MeshError(f"at most one mesh axis may be -1, got {' and '.join(inferred)} in ({shown})")
        fixed = math.prod(size for size in asked.values() if size != -1)
        if inferred:
            if devices % fixed:
                raise MeshError(
                    f"mesh ({shown}): the fixed axes need a multiple of {fixed} devices, there are {devices}"
                )
            asked[inferred[0]] = devices // fixed
        elif fixed != devices:
            raise MeshError(
                f"mesh ({shown}) needs {fixed} devices, there are {devices}; "
                "set one axis to -1 to take as many as there are"
            )
        return asked


def make_mesh(
    config: MeshConfig | None = None, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
    """Arranges the devices (all of them, if not told which) in a mesh with the axes `AXES`."""
    devices = jax.devices() if devices is None else list(devices)
    sizes = (config or MeshConfig()).sizes(len(devices))
    shape = tuple(sizes[axis] for axis in AXES)
    if len(devices) == 1:
        grid = np.asarray(devices).reshape(shape)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices)
    return jax.sharding.Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))

"""The device mesh: four named axes that every config uses, of one device or thousands.

data      copies of the model, each with its own part of the batch
fsdp      parameters are split over it, and the batch too
tensor    heads, MLP width and vocabulary are split over it
context   the tokens of one row are split over it

`config.mesh` gives the sizes inside a slice (ICI on TPUs), `config.mesh.dcn` those between slices (DCN); an
axis of the mesh has the product of both. Traffic between slices is slow: put `data` between them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils

AXES = ("data", "fsdp", "tensor", "context")


class MeshError(ValueError):
    """The mesh does not fit the devices, or an array does not fit the mesh."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Size of each mesh axis; at most one may be -1, which takes the devices that are left.

    Attributes:
      data, fsdp, tensor, context: devices of one slice along each axis.
      dcn: slices along each axis, 1 for those left out; -1 takes as many slices as there are.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    dcn: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        """Raises MeshError if an axis is unknown or has an impossible size."""
        if unknown := sorted(set(self.dcn) - set(AXES)):
            raise MeshError(f"config.mesh.dcn has no axis {unknown[0]!r}; there are {', '.join(AXES)}")
        for group, asked in self._asked().items():
            for axis, size in asked.items():
                if size < 1 and size != -1:
                    raise MeshError(f"{group}.{axis} must be at least 1, or -1 for what is left, got {size}")
            if list(asked.values()).count(-1) > 1:
                inferred = " and ".join(axis for axis, size in asked.items() if size == -1)
                raise MeshError(f"at most one axis of {group} may be -1, got {inferred} in ({_shown(asked)})")

    def split(self, devices: int, slices: int = 1) -> tuple[dict[str, int], dict[str, int]]:
        """Sizes by axis inside a slice and between slices, for this many devices in this many slices.

        Raises:
          MeshError: the sizes do not multiply to the number of devices, or of slices.
        """
        asked = self._asked()
        between = _inferred("config.mesh.dcn", asked["config.mesh.dcn"], slices, "slices")
        if devices % slices:
            raise MeshError(f"{devices} devices are no {slices} slices of one size")
        where = "devices" if slices == 1 else f"devices in each of the {slices} slices"
        return _inferred("config.mesh", asked["config.mesh"], devices // slices, where), between

    def slices(self) -> int | None:
        """How many slices are asked for; None for as many as there are."""
        asked = self._asked()["config.mesh.dcn"].values()
        return None if -1 in asked else math.prod(asked)

    def _asked(self) -> dict[str, dict[str, int]]:
        return {
            "config.mesh": {axis: getattr(self, axis) for axis in AXES},
            "config.mesh.dcn": {axis: self.dcn.get(axis, 1) for axis in AXES},
        }


def mesh_of_flag(text: str) -> jax.sharding.Mesh | None:
    """The mesh of this host's devices that `--mesh` asks for, None where it is empty.

    Raises:
      MeshError: it cannot be read, or does not fit the devices.
    """
    try:
        return make_mesh(parse_mesh(text), jax.local_devices()) if text else None
    except MeshError as error:
        raise MeshError(str(error).replace("config.mesh", "--mesh")) from None


def parse_mesh(text: str, data: int = -1) -> MeshConfig:
    """A mesh as flags give it, such as `data=2,tensor=4`.

    `data` is the size of that axis where the text does not name it; if another axis is -1, it is 1.

    Raises:
      MeshError: it cannot be read, an axis is unknown, or a size impossible.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        axis, _, size = (word.strip() for word in part.partition("="))
        if axis not in AXES or axis in sizes or not re.fullmatch(r"-1|[1-9]\d*", size):
            known = ", ".join(AXES)
            raise MeshError(f"--mesh={text}: {part!r} is no AXIS=SIZE, as in data=2,tensor=4 (axes: {known})")
        sizes[axis] = int(size)
    return MeshConfig(**{"data": 1 if -1 in sizes.values() else data} | sizes)


def _shown(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in sizes.items())


def _inferred(group: str, asked: Mapping[str, int], there: int, what: str) -> dict[str, int]:
    """The sizes with -1 replaced, so that they multiply to what is `there`."""
    fixed = math.prod(size for size in asked.values() if size != -1)
    if -1 in asked.values():
        if there % fixed:
            raise MeshError(
                f"{group} ({_shown(asked)}): the fixed axes need a multiple of {fixed} {what}, "
                f"there are {there}"
            )
        return {axis: there // fixed if size == -1 else size for axis, size in asked.items()}
    if fixed != there:
        raise MeshError(
            f"{group} ({_shown(asked)}) needs {fixed} {what}, there are {there}; "
            "set one axis to -1 to take as many as there are"
        )
    return dict(asked)


def make_mesh(
    config: MeshConfig | None = None, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
    """Arranges devices (all of them by default) in a mesh; those of a compile-only topology will do.

    Raises:
      MeshError: the sizes do not fit the devices; the message names axes, sizes and counts.
    """
    grid = device_grid(config or MeshConfig(), jax.devices() if devices is None else list(devices))
    return jax.sharding.Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def device_grid(config: MeshConfig, devices: Sequence[Any]) -> np.ndarray:
    """The devices in an array with one axis for each of `AXES`; see `make_mesh`."""
    groups = slices_of(devices, config.slices())
    inside, between = config.split(len(devices), len(groups))
    inner, outer = (tuple(sizes[axis] for axis in AXES) for sizes in (inside, between))
    blocks = np.empty(len(groups), object)
    blocks[:] = [_one_slice(inner, group) for group in groups]
    return np.block(blocks.reshape(outer).tolist())


def slices_of(devices: Sequence[Any], wanted: int | None = None) -> list[list[Any]]:
    """The devices of each slice, in order.

    `device.slice_index` names the slice of a TPU and the node of a GPU; devices without it form one slice.
    Where another number of slices is wanted (not of TPUs), the devices are sorted by process and id, and cut
    into that many blocks of one size.

    Raises:
      MeshError: TPU slices are not as many as wanted, or the devices do not divide.
    """
    groups: dict[int, list[Any]] = {}
    for device in devices:
        groups.setdefault(getattr(device, "slice_index", 0), []).append(device)
    if wanted in (None, len(groups)):
        return [groups[index] for index in sorted(groups)]
    if devices[0].platform == "tpu":
        raise MeshError(
            f"config.mesh.dcn asks for {wanted} slices, the {len(devices)} devices form {len(groups)}; "
            "set --config.mesh.dcn.data=-1 to take as many as there are"
        )
    if len(devices) % wanted:
        raise MeshError(
            f"config.mesh.dcn asks for {wanted} slices, {len(devices)} devices do not divide into them"
        )
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    size = len(devices) // wanted
    return [ordered[start : start + size] for start in range(0, len(devices), size)]


def _one_slice(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    if len(devices) == 1:
        return np.asarray(devices).reshape(shape)
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:  # the sizes are no products of whole axes of the torus
        logging.warning(
            "config.mesh (%s): these sizes cut through the axes of the chips' network, so collectives share "
            "links; sizes that are products of whole axes are faster",
            _shown(dict(zip(AXES, shape, strict=True))),
        )
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)

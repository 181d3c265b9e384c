from __future__ import annotations

import jax
import pytest

from process_gen.distributed.mesh import AXES, MeshConfig, MeshError, make_mesh


@pytest.mark.parametrize(
    ("config", "devices", "sizes"),
    [
        (MeshConfig(), 8, (8, 1, 1, 1)),
        (MeshConfig(fsdp=4), 8, (2, 4, 1, 1)),
        (MeshConfig(data=1, fsdp=-1, tensor=2), 8, (1, 4, 2, 1)),
        (MeshConfig(data=2, fsdp=2, tensor=2), 8, (2, 2, 2, 1)),
        (MeshConfig(data=1, fsdp=2, context=4), 8, (1, 2, 1, 4)),
        (MeshConfig(), 1, (1, 1, 1, 1)),
    ],
)
def test_sizes(config, devices, sizes):
    assert config.sizes(devices) == dict(zip(AXES, sizes, strict=True))


@pytest.mark.parametrize(
    ("config", "devices", "words"),
    [
        (MeshConfig(fsdp=3), 8, ["fsdp=3", "multiple of 3", "8"]),
        (MeshConfig(data=2, fsdp=2), 8, ["4 devices", "8", "-1"]),
        (MeshConfig(data=-1, fsdp=-1), 8, ["data and fsdp"]),
        (MeshConfig(tensor=0), 8, ["mesh.tensor", "0"]),
        (MeshConfig(fsdp=2), 1, ["multiple of 2", "1"]),
    ],
)
def test_impossible_sizes_are_explained(config, devices, words):
    with pytest.raises(MeshError) as error:
        config.sizes(devices)
    for word in words:
        assert word in str(error.value)


def test_one_device_is_a_mesh_too():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert mesh.axis_names == AXES and mesh.size == 1

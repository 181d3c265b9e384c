from __future__ import annotations

import types

import jax
import numpy as np
import pytest

from process_gen.distributed.mesh import (
    AXES,
    MeshConfig,
    MeshError,
    device_grid,
    make_mesh,
    parse_mesh,
    slices_of,
)


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
    assert config.split(devices)[0] == dict(zip(AXES, sizes, strict=True))


@pytest.mark.parametrize(
    ("sizes", "devices", "words"),
    [
        (dict(fsdp=3), 8, ["fsdp=3", "multiple of 3", "8"]),
        (dict(data=2, fsdp=2), 8, ["4 devices", "8", "-1"]),
        (dict(data=-1, fsdp=-1), 8, ["data and fsdp", "config.mesh"]),
        (dict(tensor=0), 8, ["config.mesh.tensor", "0"]),
        (dict(fsdp=2), 1, ["multiple of 2", "1"]),
        (dict(dcn=dict(data=0)), 8, ["config.mesh.dcn.data", "0"]),
        (dict(dcn=dict(rows=2)), 8, ["config.mesh.dcn", "'rows'", "data, fsdp"]),
        (dict(dcn=dict(data=-1, fsdp=-1)), 8, ["config.mesh.dcn", "data and fsdp"]),
        (dict(dcn=dict(data=2)), 8, ["config.mesh.dcn", "data=2", "2 slices", "there are 1"]),
    ],
)
def test_impossible_sizes_are_explained(sizes, devices, words):
    with pytest.raises(MeshError) as error:
        MeshConfig(**sizes).split(devices)
    for word in words:
        assert word in str(error.value)


def fake_devices(slices=1, hosts=1, each=4, platform="cpu", **more):
    """Devices of some slices, of some hosts each, in an order that mixes the slices up."""
    found = [
        types.SimpleNamespace(
            platform=platform, device_kind="fake", process_index=s * hosts + h, slice_index=s,
            id=(s * hosts + h) * each + d, **more,
        )
        for d in range(each) for h in range(hosts) for s in range(slices)
    ]  # fmt: skip
    if slices == 1:
        for device in found:
            del device.slice_index
    return found


def ids(groups):
    return [[device.id for device in group] for group in groups]


def test_slices_are_those_that_the_devices_name():
    devices = fake_devices(slices=2, hosts=2, each=2)
    assert [sorted(group) for group in ids(slices_of(devices, 2))] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(slices_of(devices)) == 2
    assert ids(slices_of(devices, 1)) == [list(range(8))]  # nodes of a GPU cluster may be one mesh
    tpus = fake_devices(slices=2, hosts=2, each=2, platform="tpu")
    with pytest.raises(MeshError, match="asks for 1 slices, the 8 devices form 2; set .*dcn.data=-1"):
        slices_of(tpus, 1)


def test_slices_of_devices_that_name_none_are_blocks_of_hosts():
    devices = fake_devices(hosts=4, each=2)
    assert [sorted(group) for group in ids(slices_of(devices))] == [list(range(8))]
    assert ids(slices_of(devices, 4)) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert ids(slices_of(devices, 2)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(MeshError, match="3 slices, 8 devices"):
        slices_of(devices, 3)


def test_only_the_axes_between_slices_cross_them():
    devices = fake_devices(slices=4, hosts=1, each=4)
    config = MeshConfig(data=1, fsdp=2, tensor=2, dcn=dict(data=-1, fsdp=2))
    grid = device_grid(config, devices)
    assert grid.shape == (2, 4, 2, 1) and sorted(d.id for d in grid.ravel()) == list(range(16))
    slices = np.vectorize(lambda device: device.slice_index)(grid)
    assert (slices == slices[:, :, :1]).all()  # tensor stays inside
    assert slices[:, :, 0, 0].tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]
    between = dict(data=2, fsdp=2, tensor=1, context=1)
    assert config.split(16, 4) == (dict(data=1, fsdp=2, tensor=2, context=1), between)
    with pytest.raises(MeshError, match=r"fsdp=8.* needs 8 devices in each of the 4 slices, there are 4"):
        device_grid(MeshConfig(data=1, fsdp=8, dcn=dict(data=4)), devices)


def test_one_device_is_a_mesh_too():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert mesh.axis_names == AXES and mesh.size == 1


def test_a_mesh_may_be_a_few_words():
    assert parse_mesh("tensor=4") == MeshConfig(data=-1, tensor=4)
    assert parse_mesh("data=2, fsdp=4") == MeshConfig(data=2, fsdp=4)
    assert parse_mesh("fsdp=-1") == MeshConfig(data=1, fsdp=-1)
    for text in ("fsdp", "fsdp=", "model=2", "fsdp=2,fsdp=2", "fsdp=two", "fsdp:2", "fsdp=0", "fsdp=-2"):
        with pytest.raises(MeshError, match=f"--mesh={text}: .* is no AXIS=SIZE"):
            parse_mesh(text)

from __future__ import annotations

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from process_gen.distributed import sharding
from process_gen.distributed.mesh import AXES, MeshError, make_mesh
from tests.own_process import printed


def mesh_of(data=1, fsdp=1, tensor=1, context=1):
    return AbstractMesh((data, fsdp, tensor, context), AXES)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        def param(name, init, axes, shape):
            return self.param(name, nn.with_logical_partitioning(init, axes), shape)

        normal = nn.initializers.normal(0.02)
        up = param("up", normal, ("embed", "mlp"), (8, 16))
        down = param("down", normal, ("mlp", "embed"), (16, 8))
        scale = param("scale", nn.initializers.ones, ("norm",), (8,))
        return x + (x * scale[None]) @ up @ down, None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        block = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return block(name="blocks")(x, None)[0]


TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def init(key):
    params = Stack().init(key, jnp.ones((4, 8)))["params"]
    plain = sharding.unbox(params)
    return {"params": params, "ema": plain, "opt_state": TX.init(plain), "step": jnp.zeros((), jnp.int32)}


def create_state(mesh):
    """The state made in place, without annotations, and its shardings."""
    abstract = sharding.abstract_state(init, jax.random.key(0), mesh=mesh)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(lambda key: sharding.unbox(init(key)), out_shardings=shardings)(
        jax.random.key(0)
    ), shardings


def specs(mesh):
    shardings = sharding.state_shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
    leaves = jax.tree_util.tree_leaves_with_path(shardings)
    return {sharding.path_name(path): s.spec for path, s in leaves}


def test_every_copy_of_a_parameter_is_split_like_it():
    found = specs(mesh_of(data=2, fsdp=2, tensor=2))
    ups = {name: spec for name, spec in found.items() if name.endswith("blocks/up")}
    assert len(ups) == 4  # the parameter, its EMA, two moments
    assert set(ups.values()) == {P(None, "fsdp", "tensor")}
    assert found["params/blocks/down"] == P(None, "tensor", "fsdp")
    assert found["params/blocks/scale"] == P()
    assert found["step"] == P()


def test_axes_of_size_one_split_nothing():
    assert set(specs(mesh_of(data=8)).values()) == {P()}


def test_a_dimension_that_does_not_divide_is_an_error():
    with pytest.raises(MeshError) as error:
        sharding.partition_spec("a/b", (6, 4), ("embed", "kv_heads"), mesh_of(fsdp=2, tensor=8))
    for word in ("a/b", "'kv_heads' of 4", "(6, 4)", "tensor=8", "config.mesh.tensor", "such as 4"):
        assert word in str(error.value)
    with pytest.raises(MeshError, match="model.kv_heads=4 heads do not divide over tensor=8.*such as 4"):
        sharding.heads_divide({"model.heads": 24, "model.kv_heads": 4}, mesh_of(tensor=8))
    sharding.heads_divide({"model.heads": 24, "model.kv_heads": 4}, mesh_of(tensor=4))


def test_large_arrays_without_axes_are_split_over_fsdp(caplog, monkeypatch):
    monkeypatch.setattr(sharding.logging, "info", sharding.logging.warning)  # tests are quiet

    def state():
        return {
            "large": jnp.zeros((3, 1000, 1024)),
            "odd": jnp.zeros((1001, 1301)),
            "small": jnp.zeros((8, 8)),
        }

    with caplog.at_level("INFO"):
        shardings = sharding.state_shardings(jax.eval_shape(state), mesh_of(fsdp=8))
    assert {name: s.spec for name, s in shardings.items()} == {
        "large": P(None, None, "fsdp"), "odd": P(), "small": P(),
    }  # fmt: skip
    assert "large (3, 1000, 1024) has no logical axes: dimension 2 is split over fsdp=8" in caplog.text
    assert "odd (1001, 1301)" in caplog.text and "divides no dimension" in caplog.text
    assert "small" not in caplog.text


def test_an_unknown_logical_axis_names_the_nearest():
    with pytest.raises(MeshError, match=r"a/b.*'haeds'.*did you mean heads"):
        sharding.partition_spec("a/b", (4,), ("haeds",), mesh_of())


def test_one_device():
    mesh = make_mesh(devices=jax.devices()[:1])
    state, shardings = create_state(mesh)
    plain = sharding.unbox(jax.jit(init)(jax.random.key(0)))
    assert jax.tree.structure(state) == jax.tree.structure(shardings) == jax.tree.structure(plain)
    jax.tree.map(np.testing.assert_array_equal, state, plain)
    abstract = sharding.abstract_state(init, jax.random.key(0), mesh=mesh)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    batch = sharding.shard_batch({"x": np.ones((3, 2))}, mesh)
    assert batch["x"].shape == (3, 2)
    assert sharding.local_rows(3, mesh) == (0, 1, 2)
    jax.tree.map(np.testing.assert_array_equal, sharding.on_lead(state["params"]), plain["params"])


def test_rows_must_divide():
    with pytest.raises(MeshError, match=r"6 rows.*4 shards.*data=2 x fsdp=2"):
        sharding.rows_divide(6, mesh_of(data=2, fsdp=2))


def test_eight_devices():
    """The same step on every mesh: parameters never whole on a device, results as on one."""
    assert printed(pathlib.Path(__file__).with_name("eight_devices.py")) == ["ok"] * 4

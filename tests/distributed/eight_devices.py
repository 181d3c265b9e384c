"""Runs in a process of its own, since a process counts its devices once. Prints `ok` for every mesh."""

from __future__ import annotations

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from process_gen.distributed import sharding  # noqa: E402
from process_gen.distributed.mesh import MeshConfig, make_mesh  # noqa: E402
from tests.distributed.test_sharding import TX, Stack, create_state  # noqa: E402

ROWS = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)


def run(mesh):
    """Three steps; the state ends where it began, in shape and in placement."""
    state, shardings = create_state(mesh)

    def step(state, x):
        def loss(params):
            return jnp.mean(jnp.square(Stack().apply({"params": params}, x) - 1))

        grads = jax.grad(loss)(state["params"])
        updates, opt_state = TX.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return state | {"params": params, "opt_state": opt_state}

    step = jax.jit(step, out_shardings=shardings, donate_argnums=0)
    batch = sharding.shard_batch(ROWS, mesh)
    for _ in range(3):
        state = step(state, batch)
    assert jax.tree.map(lambda x: x.sharding, state) == shardings
    return state, batch


def main():
    """Compares every mesh with one device."""
    one, _ = run(make_mesh(devices=jax.devices()[:1]))
    for config in (
        MeshConfig(),
        MeshConfig(data=1, fsdp=8),
        MeshConfig(data=2, fsdp=2, tensor=2),
        MeshConfig(data=1, fsdp=2, context=4),
    ):
        mesh = make_mesh(config)
        state, batch = run(mesh)
        up = state["params"]["blocks"]["up"]
        shape = (3, 8 // mesh.shape["fsdp"], 16 // mesh.shape["tensor"])
        assert {s.data.shape for s in up.addressable_shards} == {shape}
        assert batch.addressable_shards[0].data.shape[0] == 8 // (mesh.shape["data"] * mesh.shape["fsdp"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state, one)
        print("ok")


main()

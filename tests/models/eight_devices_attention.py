"""Attention on a mesh of eight CPU devices against one device; prints OK. Run by `test_attention_mesh.py`."""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.distributed.mesh import MeshConfig, make_mesh
from process_gen.distributed.sharding import ACTIVATION_RULES
from process_gen.models import kernels, partition
from tests.models.dense import Places
from tests.models.tiny import VIT, layout
from tests.models.ways import attended_rows, rows_of_turns, using

MESHES = ({"fsdp": 8}, {"fsdp": 2, "tensor": 2, "context": 2}, {"fsdp": 2, "context": 4})


def same_on_every_mesh(jitted) -> None:
    """Arrays of a new jitted function, alone and on every mesh."""
    alone = jax.tree.leaves(jitted())
    for sizes in MESHES:
        with partition.on_mesh(make_mesh(MeshConfig(**{"data": 1} | sizes)), ACTIVATION_RULES):
            found = jax.tree.leaves(jitted())
        for a, b in zip(alone, found, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def calls_of_kernels() -> None:
    """One call of each kernel, whose sizes do not always divide."""
    rng = np.random.default_rng(0)
    queries, keys = 9, 20  # which do not divide by the context's devices
    q, k, v = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((4, 4, queries, 16), (4, 2, keys, 16), (4, 2, keys, 16))
    )
    visible = rng.random((4, keys)) < 0.7
    visible[:, 0] = True
    wanted = rng.standard_normal(q.shape).astype(np.float32)

    def out_and_gradients(run):
        def loss(q, k, v):
            out = run(q, k, v)
            return (out * wanted).sum(), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    for kernel in ("blocked", "splash"):
        for before in (None, keys - queries):
            same_on_every_mesh(
                lambda kernel=kernel, before=before: out_and_gradients(
                    lambda q, k, v: kernels.run(kernel, q, k, v, visible, before)
                )
            )
    mask = jnp.asarray(visible[:, None] & (rng.random((4, queries, keys)) < 0.8))
    with using("cudnn"):
        same_on_every_mesh(lambda: out_and_gradients(lambda *x: kernels.run_masked(*x, mask)))


def rows_with_every_way() -> None:
    """Rows of turns, with an explicit mask and without one."""
    slots = layout(context="step", before=3, after=3, prompt=3, copies=1, turns=3, vit_grid=VIT)
    rng = np.random.default_rng(0)
    there, masks, _ = rows_of_turns(slots, 8, rng)
    q, k, v = (
        jnp.asarray(rng.standard_normal((8, Places(slots).tokens, heads, 16)), jnp.float32)
        for heads in (4, 2, 2)
    )
    weights = jnp.asarray(rng.standard_normal((*q.shape[:2], 64)), jnp.float32) * there[..., None]
    for kernel in (None, "blocked"):
        with using(kernel) as (config, _):

            def loss(tensors, config=config):
                out = attended_rows(config, slots, masks, *tensors)
                return (out * weights).sum(), jnp.where(there[..., None], out, 0.0)

            same_on_every_mesh(lambda loss=loss: jax.jit(jax.grad(loss, has_aux=True))((q, k, v)))


def main() -> None:
    calls_of_kernels()
    rows_with_every_way()
    print("OK")


if __name__ == "__main__":
    main()

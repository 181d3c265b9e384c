"""Attention on a mesh of eight CPU devices against one device; prints OK. Run by `test_attention_mesh.py`."""

from __future__ import annotations

import dataclasses
import functools
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from process_gen.distributed.mesh import MeshConfig, make_mesh
from process_gen.distributed.sharding import ACTIVATION_RULES
from process_gen.models import kernels, partition

SPLASH = dataclasses.replace(
    kernels.KERNELS["splash"], prepare=functools.partial(kernels.splash_kernel, interpret=True)
)
MESHES = ({"fsdp": 2, "tensor": 2, "context": 2}, {"context": 8}, {"fsdp": 4, "tensor": 2})


def main() -> None:
    rng = np.random.default_rng(0)
    queries, keys = 9, 20  # two kv heads, which eight-fold axes do not divide
    q, k, v = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((4, 4, queries, 16), (4, 2, keys, 16), (4, 2, keys, 16))
    )
    visible = rng.random((4, keys)) < 0.7
    visible[:, 0] = True
    wanted = rng.standard_normal(q.shape).astype(np.float32)

    def out_and_gradients(kernel, before):
        def loss(q, k, v):
            out = kernels.run(kernel, q, k, v, visible, before)
            return (out * wanted).sum(), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))

    for kernel in (kernels.KERNELS["blocked"], SPLASH):
        for before in (None, keys - queries):
            alone = out_and_gradients(kernel, before)(q, k, v)
            for sizes in MESHES:
                mesh = make_mesh(MeshConfig(**{"data": 1} | sizes))
                with partition.over(mesh, ACTIVATION_RULES):
                    found = out_and_gradients(kernel, before)(q, k, v)
                for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(found), strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    print("OK")


if __name__ == "__main__":
    main()

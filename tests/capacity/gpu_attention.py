"""Compiles attention with an explicit mask, and its gradient, for eight GPUs that are not there."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from process_gen.capacity import topology
from process_gen.distributed import sharding
from process_gen.distributed.mesh import MeshConfig, make_mesh
from process_gen.models import kernels, partition

QUERIES, KEYS = 1025, 1387  # cuDNN's gradient takes even numbers alone

name = topology.parse("h100:8")
topology.prepare(name)
where = topology.get(name)
assert (where.platform, where.chip.name, len(where.devices)) == ("gpu", "h100", 8)
mesh = make_mesh(MeshConfig(data=1, fsdp=8), where.devices)


def array(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P("fsdp")))


def loss(q, k, v, mask):
    return kernels.run_masked(q, k, v, mask).astype(jnp.float32).sum()


shapes = (array(8, 8, QUERIES, 128), *[array(8, 2, KEYS, 128)] * 2, array(8, QUERIES, KEYS, dtype=jnp.bool_))
with partition.on_mesh(mesh, sharding.ACTIVATION_RULES):
    assert kernels.choose("flash", 128, "bfloat16") == "cudnn"
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*shapes).compile()
text, scores = compiled.as_text(), 8 * QUERIES * KEYS * 4
assert "__cudnn$fmhaScaleBiasSoftmaxBackward" in text
assert compiled.memory_analysis().temp_size_in_bytes < scores, "of no row all scores are in memory"
print("ok")

"""Runs in a process of its own: programs with known exchanges, on eight devices. Prints `ok` for each."""

from __future__ import annotations

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from process_gen.capacity import collectives, hlo  # noqa: E402
from process_gen.distributed.mesh import MeshConfig, make_mesh  # noqa: E402

MESH = make_mesh(MeshConfig(data=2, fsdp=4))
LAYERS, ROWS, WIDTH = 5, 64, 256


def array(*shape, spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(MESH, spec))


def exchanges(function, *args, out):
    compiled = jax.jit(function, out_shardings=NamedSharding(MESH, out)).lower(*args).compile()
    program = hlo.parse(compiled.as_text())
    assert program.partitions == 8 and not program.unknown_loops
    found = collectives.traffic(program, dict(MESH.shape), {})
    return {(one.kind, one.axes): (one.bytes, one.runs) for one in found}


def main():
    """A gathered array, a sum over the batch, and layers whose weights are gathered in a loop."""
    gathered = exchanges(lambda x: x * 2, array(ROWS, WIDTH, spec=P("fsdp")), out=P())
    assert gathered == {("all-gather", ("fsdp",)): (ROWS * WIDTH * 4 * 3 / 4, 1)}, gathered
    print("ok")

    summed = exchanges(lambda x: x.sum(0), array(ROWS, WIDTH, spec=P(("data", "fsdp"))), out=P())
    assert summed == {("all-reduce", ("data", "fsdp")): (2 * WIDTH * 4 * 7 / 8, 1)}, summed
    print("ok")

    def layers(x, weights):
        def body(x, w):
            w = jax.lax.with_sharding_constraint(w, NamedSharding(MESH, P()))
            return jnp.tanh(x @ w), None

        return jax.lax.scan(body, x, weights)[0]

    rows, spec = P(("data", "fsdp")), P(None, "fsdp")
    x, weights = array(ROWS, WIDTH, spec=rows), array(LAYERS, WIDTH, WIDTH, spec=spec)
    scanned = exchanges(layers, x, weights, out=rows)
    whole = WIDTH * WIDTH * 4 * 3 / 4
    assert scanned == {("all-gather", ("fsdp",)): (LAYERS * whole, LAYERS)}, scanned
    print("ok")


main()

"""Runs in a process of its own, since a process counts its devices once. Takes a folder, prints `ok`."""

from __future__ import annotations

import sys

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from process_gen.checkpoints.local import LocalStore, placement  # noqa: E402


def make_state(sizes: tuple[int, int], spec: P) -> dict[str, jax.Array]:
    """A matrix that is spread over a mesh, and a number that all devices have."""
    mesh = jax.make_mesh(sizes, ("fsdp", "tensor"))
    w = jax.device_put(jnp.arange(64.0).reshape(8, 8), NamedSharding(mesh, spec))
    return {"w": w, "step": jax.device_put(jnp.asarray(3), NamedSharding(mesh, P()))}


def main(folder: str) -> None:
    """Saves from one mesh, comes back to it, and is refused by two others."""
    state = make_state((4, 2), P("fsdp", "tensor"))
    with LocalStore(folder, like=state, save_every=1) as store:
        store.save(3, state)
    with LocalStore(folder, like=state, save_every=1) as store:
        assert store.newest_whole_step() == 3
        found = store.restore(state, step=3)
    np.testing.assert_array_equal(found["w"], state["w"])
    assert found["w"].sharding == state["w"].sharding and found["step"] == 3
    others = [make_state((2, 4), P("fsdp", "tensor")), make_state((4, 2), P("fsdp"))]
    assert len({placement(x) for x in (state, *others)}) == 3
    with LocalStore(folder, like=state, save_every=1) as store:  # what all devices have is written once
        assert store._bytes(state["step"]) == 4 and store._bytes(state["w"]) == state["w"].nbytes
    with LocalStore(folder, like=others[0], save_every=1) as store:
        assert store.newest_whole_step() is None and store.steps() == []
    print("ok")


main(sys.argv[1])

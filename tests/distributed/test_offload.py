"""Arrays that wait in host memory: the same numbers, and the same place after a step and a checkpoint."""

from __future__ import annotations

import types

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from process_gen.checkpoints.store import CheckpointStore
from process_gen.distributed import offload, sharding
from process_gen.distributed.mesh import MeshError, make_mesh
from tests.distributed.test_sharding import Stack

TX = optax.adamw(1e-1)
X = jnp.linspace(-1.0, 1.0, 32).reshape(4, 8)


@flax.struct.dataclass
class State:
    params: object
    ema: object
    opt_state: object


def init(key):
    params = Stack().init(key, X)["params"]
    plain = sharding.unbox(params)
    return State(params, plain, TX.init(plain))


def program(where: str):
    """The abstract state, a state and a step for a way to offload."""
    mesh = make_mesh(devices=jax.devices()[:1])
    abstract = offload.rest_on_host(sharding.abstract_state(init, jax.random.key(0), mesh=mesh), where)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    state = jax.jit(lambda key: sharding.unbox(init(key)), out_shardings=shardings)(jax.random.key(0))

    def step(state):
        gradients = jax.grad(lambda p: jnp.square(Stack().apply({"params": p}, X) - 1).sum())(state.params)
        state = offload.fetched(state, shardings)
        updates, opt_state = TX.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = jax.tree.map(lambda a, b: 0.5 * (a + b), state.ema, params)
        return offload.sent_back(State(params, ema, opt_state), shardings)

    return abstract, state, jax.jit(step, out_shardings=shardings, donate_argnums=0)


def kinds(tree) -> set[str]:
    return {x.sharding.memory_kind for x in jax.tree.leaves(tree) if x.ndim}


@pytest.fixture(scope="module")
def stepped():
    """Two steps without, and with everything offloaded; with the abstract state of the latter."""
    found = {}
    for where in ("none", "optimizer+ema"):
        abstract, state, step = program(where)
        found[where] = (abstract, step(step(state)))
    return found


def test_numbers_are_those_of_a_state_on_the_device(stepped):
    (_, wanted), (_, found) = stepped["none"], stepped["optimizer+ema"]
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_what_waits_on_the_host_stays_there(stepped):
    _, state = stepped["optimizer+ema"]
    assert kinds(state.opt_state) == kinds(state.ema) == {offload.HOST}
    assert offload.HOST not in kinds(state.params)
    assert kinds(offload.on_devices(state.ema)) == {offload.DEVICE}
    mesh = make_mesh(devices=jax.devices()[:1])
    plain = sharding.abstract_state(init, jax.random.key(0), mesh=mesh)
    only = offload.rest_on_host(plain, "optimizer")
    assert kinds(only.opt_state) == {offload.HOST} and only.ema == plain.ema
    assert offload.rest_on_host(plain, "none") == plain


def test_a_checkpoint_gives_every_array_back_to_its_memory(stepped, tmp_path):
    abstract, state = stepped["optimizer+ema"]
    with CheckpointStore(str(tmp_path)) as store, jax.numpy_rank_promotion("allow"):
        store.save(2, state)
        store.wait()
        same, moved = store.restore(abstract), store.restore(stepped["none"][0])
    for found in (same, moved):
        jax.tree.map(np.testing.assert_array_equal, found, state)
    assert kinds(same.opt_state) == kinds(same.ema) == {offload.HOST}
    assert offload.HOST not in kinds(moved)


def test_devices_without_such_memory_say_what_they_have():
    device = types.SimpleNamespace(
        addressable_memories=lambda: [types.SimpleNamespace(kind="device")], device_kind="toy"
    )
    mesh = types.SimpleNamespace(devices=np.array([device]))
    with pytest.raises(MeshError, match="needs 'pinned_host' memory; toy offers device: set --config.train"):
        offload.check_host_memory("optimizer", mesh)

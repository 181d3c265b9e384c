"""Runs in a process of its own, since a process counts its devices once. Prints `ok` for every loss."""

from __future__ import annotations

import dataclasses

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from process_gen import losses  # noqa: E402
from process_gen.distributed.mesh import MeshConfig, make_mesh  # noqa: E402
from process_gen.distributed.sharding import shard_batch  # noqa: E402
from process_gen.losses import LossTable, Term  # noqa: E402
from process_gen.models.config import NO_RANDOM_DROPS  # noqa: E402
from process_gen.models.unified import UnifiedModel  # noqa: E402
from process_gen.training.program import TrainProgram  # noqa: E402
from process_gen.training.step import Recipe  # noqa: E402
from process_gen.trajectory.batch import Batch  # noqa: E402
from tests.models.tiny import CONFIG, IDS, layout, make_batch  # noqa: E402

ROWS, FIELDS = 4, (("mask", "mask"),)


def flow_weights(outputs, batch, stage):
    """[B, S, 1, 1], of the turns of a stage that have a flow target."""
    return (batch.image_weight * (outputs.has_target & losses.of_stage(batch, stage)))[:, :, None, None]


@losses.register("velocity_l1")
def velocity_l1(outputs, batch, labels, key, *, stage):
    values = jnp.abs(outputs.velocity - outputs.target).mean(-1)
    return Term(values, jnp.broadcast_to(flow_weights(outputs, batch, stage), values.shape))


@losses.register("stroke_only")
def stroke_only(outputs, batch, labels, key, *, stage):
    values = jnp.square(outputs.velocity - outputs.target).mean(-1)
    changed = jnp.abs(outputs.previous - outputs.clean).max(-1)[:, :, None] > 0.5
    return Term(values, flow_weights(outputs, batch, stage) * jnp.broadcast_to(changed, values.shape))


@losses.register("late_tokens")
def late_tokens(outputs, batch, labels, key, *, stage):
    """Each token by its timestep and by how far it is from the middle of the image."""
    values = jnp.square(outputs.velocity - outputs.target).mean(-1)
    place = jnp.linspace(0.5, 1.5, values.shape[-1])[None, None, None]
    weights = flow_weights(outputs, batch, stage) * (1 - outputs.t)[..., None] * place
    return Term(values, jnp.broadcast_to(weights, values.shape))


@losses.register("masked")
def masked(outputs, batch, labels, key, *, stage):
    error = jnp.square(outputs.pixels(outputs.clean_estimate[:, :, 0]) - outputs.pixels(outputs.clean))
    weights = (batch.field("mask") > 0) * flow_weights(outputs, batch, stage)
    return Term(error.mean(-1), weights)


TABLE = {
    name: dict(loss=name, stage="sketch", weight=1.0)
    for name in ("velocity_l1", "stroke_only", "late_tokens", "masked")
}
TABLE["text_kl"] = dict(loss="text_kl", stage="plan", weight=1.0)
TABLE["curriculum"] = dict(
    loss="flow_mse", stage="sketch", weight=dict(kind="linear", start=0.0, end=1.0, begin=0, until=10)
)


def measured(mesh) -> dict[str, float]:
    """The losses of one batch, and the total at step 5, of parameters that have left their reference."""
    model = UnifiedModel(dataclasses.replace(CONFIG, kv_heads=2), layout(fields=FIELDS), IDS)
    recipe = Recipe(model, LossTable(TABLE), NO_RANDOM_DROPS, optax.sgd(0.1), lambda step: 0.1)
    program = TrainProgram(recipe, mesh, Batch.spec(model.layout, ROWS))
    state = program.create_state(jax.random.key(0))
    assert jax.tree.map(lambda x: x.sharding, state) == program.shardings
    reference = jax.tree.map(lambda x: x.sharding, state.networks["reference"])
    assert reference == jax.tree.map(lambda x: x.sharding, state.params)
    params = jax.tree.map(lambda x: 1.3 * x + 0.01, state.params)
    mask = np.random.default_rng(0).integers(0, 2, (ROWS, model.layout.turns, 8, 8)).astype(np.uint8)
    batch = shard_batch(make_batch(ROWS, seed=3).replace(extra={"mask": mask}), mesh)
    given = dataclasses.replace(state.given, step=jnp.asarray(5))
    sums, counts = jax.device_get(program.losses(params, given, batch, jax.random.key(1)))
    assert all(counts.values())
    total = recipe.losses.total(sums, counts, 5)
    return {name: float(sums[name] / counts[name]) for name in sums} | {"total": float(total)}


def main():
    """Compares a mesh with one device."""
    one = measured(make_mesh(devices=jax.devices()[:1]))
    eight = measured(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    for name, value in one.items():
        np.testing.assert_allclose(eight[name], value, rtol=1e-5, err_msg=name)
        assert value > 0, name
        print("ok", name, value)


main()

"""Ten losses that somebody may want to try, each in at most 15 lines and nothing but what a loss is given.

As a program it trains a step on each, at debug size, on one device and on 2 x 2 x 2, and prints `ok` for
those that come to the same: a process of its own, since a process counts its devices once.
"""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from process_gen import losses
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.distributed.mesh import MeshConfig, make_mesh
from process_gen.distributed.sharding import held_rows, shard_batch
from process_gen.experiment import builders, cli
from process_gen.losses.consistency import init_random_features, random_features
from process_gen.models.config import NO_RANDOM_DROPS
from process_gen.training.program import TrainProgram
from process_gen.training.step import Recipe
from process_gen.trajectory.batch import Batch
from tests.data.fake import fake_batch

ROOT = pathlib.Path(__file__).parents[2]

losses.register_network("ideas_eye", init_random_features, random_features)


def drawn(outputs, batch, stage):
    """[B, S, 1, 1], weights of the turns of a stage that have a flow target."""
    return (batch.image_weight * (outputs.has_target & losses.of_stage(batch, stage)))[:, :, None, None]


def squared(outputs):
    """[B, S, J, I], errors of the velocity."""
    return jnp.square(outputs.velocity - outputs.target).mean(-1)


@losses.register("idea_velocity_l1")
def idea_velocity_l1(outputs, batch, labels, key, *, stage):
    values = jnp.abs(outputs.velocity - outputs.target).mean(-1)
    return losses.Term(values, jnp.broadcast_to(drawn(outputs, batch, stage), values.shape))


@losses.register("idea_stroke_only")
def idea_stroke_only(outputs, batch, labels, key, *, stage):
    values = squared(outputs)
    changed = losses.changed(batch, values.shape[-1])[:, :, None]
    return losses.Term(values, drawn(outputs, batch, stage) * jnp.broadcast_to(changed, values.shape))


@losses.register("idea_timesteps_by_token")
def idea_timesteps_by_token(outputs, batch, labels, key, *, stage):
    values = squared(outputs)
    place = jnp.linspace(0.5, 1.5, values.shape[-1])[None, None, None]
    weights = drawn(outputs, batch, stage) * (1 - outputs.t)[..., None] * place
    return losses.Term(values, jnp.broadcast_to(weights, values.shape))


@losses.register("idea_mask_of_record")
def idea_mask_of_record(outputs, batch, labels, key, *, stage):
    error = jnp.square(outputs.pixels(outputs.clean_estimate[:, :, 0]) - outputs.pixels(outputs.clean))
    return losses.Term(error.mean(-1), (batch.field("mask") > 0) * drawn(outputs, batch, stage))


@losses.register("idea_kl_to_reference", networks=("reference",))
def idea_kl_to_reference(outputs, batch, labels, key, *, stage):
    def divergence(logits, wanted):
        p, q = jax.nn.log_softmax(wanted), jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(p) * (p - q), axis=-1)

    values = outputs.over_words(divergence, "before", outputs.network("reference"))
    there = (labels["before"] >= 0) & losses.of_stage(batch, stage)[..., None]
    return losses.Term(values, there * batch.before_weight[..., None])


@losses.register("idea_perceptual", networks=("ideas_eye",))
def idea_perceptual(outputs, batch, labels, key, *, stage):
    def seen(latents):
        pixels = outputs.pixels(latents)
        return outputs.network("ideas_eye")(pixels.reshape(-1, *pixels.shape[-3:]))

    error = jnp.square(seen(outputs.clean_estimate[:, :, 0]) - seen(outputs.clean)).mean((-1, -2, -3))
    return losses.Term(error.reshape(batch.present.shape), drawn(outputs, batch, stage)[..., 0, 0])


@losses.register("idea_focal_decision")
def idea_focal_decision(outputs, batch, labels, key, *, stage):
    nll, weights = outputs.cross_entropy("image_end", labels), labels["image_end"] >= 0
    return losses.Term((1 - jnp.exp(-nll)) ** 2 * nll, 1.0 * (weights & losses.of_stage(batch, stage)))


@losses.register("idea_right_against_wrong")
def idea_right_against_wrong(outputs, batch, labels, key, *, stage):
    """Of a wrong draft: its prediction is nearer to the corrected image than to what was drawn."""
    estimate, wrong = outputs.clean_estimate, jnp.roll(outputs.previous, -1, axis=1)
    right, wrong = (jnp.square(estimate - x[:, :, None]).mean((-1, -2)) for x in (outputs.clean, wrong))
    weights = drawn(outputs, batch, stage)[..., 0] * (batch.target > 0)[..., None]
    return losses.Term(jax.nn.softplus(right - wrong), jnp.broadcast_to(weights, right.shape))


@losses.register("idea_curriculum")
def idea_curriculum(outputs, batch, labels, key, *, stage):
    """Noise first: what is nearly done comes in with the steps."""
    values, least = squared(outputs), jnp.maximum(0.9 - 0.1 * outputs.step, 0.0)
    weights = drawn(outputs, batch, stage) * (outputs.t > least)[..., None]
    return losses.Term(values, jnp.broadcast_to(weights, values.shape))


@losses.register("idea_smoothed_plan")
def idea_smoothed_plan(outputs, batch, labels, key, *, stage):
    uniform = outputs.over_words(lambda logits: -jax.nn.log_softmax(logits).mean(-1), "before")
    values = 0.9 * outputs.cross_entropy("before", labels) + 0.1 * uniform
    return losses.Term(values, losses.text_weights(batch, labels, stage)[1])


IDEAS = tuple(name for name in globals() if name.startswith("idea_"))
"""Names of the losses, which are those of their functions."""


DECODING = {
    "spatial": dict(loss="spatial_consistency", stage="sketch", weight=0.0, threshold=255.0),
    "semantic": dict(loss="semantic_consistency", stage="sketch", weight=0.0),
}
"""Losses of the package that are measured beside them, turn after turn."""


def table() -> dict[str, dict]:
    """A row for each; at step i the i-th one alone has a weight, so one program trains each by itself."""
    rows = {}
    for i, name in enumerate(IDEAS):
        stage = "plan" if name in ("idea_kl_to_reference", "idea_smoothed_plan") else "sketch"
        at = (((0, 0.0),) if i else ()) + ((i, 1.0), (i + 1, 0.0))
        rows[name] = dict(loss=name, stage=stage, weight=dict(kind="steps", at=at))
    return rows


def trained(mesh) -> dict[str, tuple[float, float]]:
    """By idea, the loss and the norm of the gradient at its step, of parameters that left their reference."""
    config, tokenizer = cli.load_config(f"{ROOT}/configs/scenes.py:debug"), scenes_tokenizer()
    config.layout.update(dict(turns=3, trajectories=2, copies=2))
    with config.unlocked():
        config.model.kv_heads = 2
    model = builders.build_model(config, tokenizer)
    model = model.clone(layout=dataclasses.replace(model.layout, fields=(("mask", "mask"),)))
    recipe = Recipe(
        model, losses.LossTable(table() | DECODING), NO_RANDOM_DROPS, optax.sgd(1e-3), lambda step: 1e-3
    )
    program = TrainProgram(recipe, mesh, Batch.spec(model.layout, 4))
    state = program.create_state(jax.random.key(0))
    assert jax.tree.map(lambda x: x.sharding, state) == program.shardings
    reference = jax.tree.map(lambda x: x.sharding, state.networks["reference"])
    assert reference == jax.tree.map(lambda x: x.sharding, state.params)
    shifted = jax.tree.map(lambda x: 1.2 * x + 0.01, state.params)
    state = state.replace(params=jax.device_put(shifted, program.shardings.params))
    batch = fake_batch(model.layout, 4, seed=3, vocab=tokenizer.vocab_size)
    batch["extra"]["mask"] = np.random.default_rng(0).integers(0, 2, batch["extra"]["mask"].shape, np.uint8)
    placed, found = shard_batch(Batch(**batch), mesh), {}
    np.testing.assert_array_equal(held_rows(placed.image), batch["image"])
    for name in IDEAS:
        state, metrics = program.step(state, placed)
        metrics = jax.device_get(metrics)
        np.testing.assert_allclose(metrics["loss"], metrics[f"loss/{name}"], rtol=1e-6)
        found[name] = float(metrics["loss"]), float(metrics["grad_norm"])
    return found | {name: (float(metrics[f"loss/{name}"]), 1.0) for name in DECODING}


def main() -> None:
    """Compares a mesh with one device."""
    one = trained(make_mesh(devices=jax.devices()[:1]))
    eight = trained(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    for name, (loss, norm) in one.items():
        np.testing.assert_allclose(eight[name][0], loss, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(eight[name][1], norm, rtol=1e-3, err_msg=name)
        assert loss > 0 and norm > 0, (name, loss, norm)
        print("ok", name, loss, norm)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main()

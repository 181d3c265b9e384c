"""One step function: the scan, one dense pass and any packing give the same numbers (float32)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.losses import LossTable
from process_gen.models.unroll import NO_RANDOM_DROPS, Outputs, UnrollOptions, scan_steps, step_inputs, unroll
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.controls import labels
from tests.models.dense import dense_pass
from tests.models.tiny import IDS, VIT, make_batch, make_model

OPTIONS = UnrollOptions(drop_text=0.5, drop_images=0.5, context_noise=0.3)
TABLE = LossTable(
    {
        **{
            f"{s}_text": dict(loss="text_cross_entropy", stage=s, weight=0.5)
            for s in ("plan", "inspect", "refine")
        },
        **{
            f"{s}_decision": dict(loss="decision_cross_entropy", stage=s, weight=0.3)
            for s in ("plan", "sketch", "inspect", "refine")
        },
        **{f"{s}_flow": dict(loss="flow_mse", stage=s, weight=1.0) for s in ("sketch", "refine")},
    }
)
KEY = jax.random.key(3)
QUICK = {"xla_backend_optimization_level": 0}
"""A function that runs once must not take longer to compile."""
SEED = 1
"""Of a fake row with two trajectories, a refined step and no empty slot."""


def trajectories(batch):
    """(row, prompt index, step slots) of every trajectory of a batch."""
    found = []
    present, reset = np.asarray(batch.present), np.asarray(batch.reset)
    for row in range(present.shape[0]):
        for slot in np.flatnonzero(present[row]):
            if reset[row, slot]:
                found.append((row, int(np.asarray(batch.prompt_index)[row, slot]), []))
            found[-1][2].append(int(slot))
    return found


def loss_of(model, params, batch, outputs: Outputs):
    sums, counts = TABLE.terms(outputs, batch, labels(batch, IDS), KEY)
    return TABLE.total(sums, counts)


def dense_outputs(model, params, batch, inputs, flows) -> Outputs:
    """`unroll`, but every trajectory goes through one dense pass with an explicit mask."""
    blank = unroll_shapes(model, params, batch)
    hidden = {name: jnp.zeros(x.shape) for name, x in blank.hidden.items()}
    velocity = {name: jnp.zeros(x.shape) for name, x in blank.velocity.items()}
    for row, r, slots in trajectories(batch):
        prompt = np.asarray(batch.prompt_tokens)[row, r]
        steps = [_at(inputs, row, s) for s in slots]
        dense = dense_pass(model, params, prompt, steps)
        hidden["prompt_end"] = hidden["prompt_end"].at[row, r].set(dense["prompt"][-1])
        for i, s in enumerate(slots):
            for name in ("plan", "inspect", "refine"):
                if f"{i}.{name}" in dense:
                    found = dense[f"{i}.{name}"]
                    hidden[name] = hidden[name].at[row, s, : len(found)].set(found)
            for name, target in (("sketch", "sketch"), ("refined", "refine")):
                if f"{i}.{name}" not in dense:
                    continue
                # In memory the two vision tokens of an image stand before its latents.
                closing = dense.get(f"{i}.{name}_vit", dense[f"{i}.{name}"])[1]
                hidden[f"{name}_end"] = hidden[f"{name}_end"].at[row, s].set(closing)
                x_t, t = getattr(steps[i], f"{name}_noised"), getattr(steps[i], f"{name}_t")
                for j in range(x_t.shape[0]):
                    v = model.apply(
                        {"params": params},
                        dense[f"{i}.{name}_noised_{j}"][None, 2:],
                        x_t[j][None, None],
                        t[j][None, None],
                        method="to_velocity",
                    )
                    velocity[target] = velocity[target].at[row, s, j].set(v[0, 0])
    return Outputs(
        hidden=hidden,
        velocity=velocity,
        head=lambda h: model.apply({"params": params}, h, method="logits"),
        score=lambda h, labels: model.apply({"params": params}, h, labels, method="cross_entropy"),
        **flows,
    )


def unroll_shapes(model, params, batch):
    box = {}

    def shapes():
        outputs = unroll(model, params, batch, KEY, OPTIONS)
        box.update(hidden=outputs.hidden, velocity=outputs.velocity)
        return outputs.hidden, outputs.velocity

    hidden, velocity = jax.eval_shape(shapes)
    return dataclasses.make_dataclass("Shapes", ["hidden", "velocity"])(hidden, velocity)


CONTEXTS = {
    "full": dict(context="full"),
    "step": dict(context="step"),
    "last": dict(context="last"),
    "full-vit": dict(context="full", vit_grid=VIT),
    "last-vit": dict(context="last", vit_grid=VIT),
}
"""What a step sees of earlier ones, and whether images in context are ViT tokens too."""

contexts = pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)


@contexts
def test_the_scan_equals_one_dense_pass(context):
    model, params = make_model(**context)
    batch = make_batch(1, seed=SEED, **context)
    assert len(trajectories(batch)) == 2 and (batch.refine_tokens != PAD_ID).any() and batch.present.all()

    def scanned(params):
        return loss_of(model, params, batch, unroll(model, params, batch, KEY, OPTIONS))

    inputs, flows = step_inputs(model, batch, KEY, OPTIONS)
    inputs = jax.tree.map(np.asarray, inputs)

    def dense(params):
        return loss_of(model, params, batch, dense_outputs(model, params, batch, inputs, flows))

    loss, gradient = jax.jit(jax.value_and_grad(scanned), compiler_options=QUICK)(params)
    dense_loss, dense_gradient = jax.jit(jax.value_and_grad(dense), compiler_options=QUICK)(params)
    np.testing.assert_allclose(loss, dense_loss, rtol=1e-5)
    named = jax.tree_util.tree_leaves_with_path(gradient)
    for (path, a), b in zip(named, jax.tree.leaves(dense_gradient), strict=True):
        scale = float(jnp.linalg.norm(b))
        assert float(jnp.linalg.norm(a - b)) <= 1e-4 * scale + 1e-8, path


@pytest.mark.parametrize("context", ["full", "last"])
def test_grouped_attention_equals_dense_attention(context):
    _, params = make_model(context=context)
    batch = make_batch(2, context=context)
    losses = []
    for attention in ("dense", "grouped"):
        model, _ = make_model(attention=attention, context=context)

        def loss(params, model=model):
            return loss_of(model, params, batch, unroll(model, params, batch, KEY, OPTIONS))

        losses.append(jax.jit(jax.value_and_grad(loss))(params))
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(losses[0][1]), jax.tree.leaves(losses[1][1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_grouped_attention_reads_vit_tokens_as_dense_attention_does():
    context = CONTEXTS["full-vit"]
    dense, params = make_model(**context)
    grouped, _ = make_model(attention="grouped", **context)
    batch = make_batch(2, **context)
    inputs, _ = step_inputs(dense, batch, KEY, OPTIONS)
    found = [
        jax.jit(lambda model=model: scan_steps(model, params, batch, inputs)[1])()
        for model in (dense, grouped)
    ]
    for row, _, slots in trajectories(batch):
        for slot in slots:
            _same_step(*(_at(outputs, row, slot) for outputs in found), _at(inputs, row, slot))


@pytest.fixture(scope="module", params=CONTEXTS.values(), ids=CONTEXTS)
def unrolled(request):
    """A batch, its step inputs, and a jitted scan over both."""
    model, params = make_model(**request.param)
    batch = make_batch(3, seed=2, **request.param)
    inputs, _ = step_inputs(model, batch, KEY, OPTIONS)
    scan = jax.jit(lambda batch, inputs: scan_steps(model, params, batch, inputs)[:2])
    return batch, inputs, scan


def test_packed_rows_equal_one_trajectory_per_row(unrolled):
    batch, inputs, scan = unrolled
    _, packed = scan(batch, inputs)
    for row, r, slots in trajectories(batch):
        _, alone = scan(*_alone(batch, inputs, row, r, slots))
        for i, slot in enumerate(slots):
            _same_step(_at(alone, 0, i), _at(packed, row, slot), _at(inputs, row, slot))


def _at(tree, row, slot):
    return jax.tree.map(lambda x: x[row, slot], tree)


def _alone(batch, inputs, row, r, slots):
    """Rows of the same shape with nothing but one trajectory, from slot 0 of row 0 on."""
    order = np.asarray(slots + [s for s in range(batch.present.shape[1]) if s not in slots])
    present = np.zeros(batch.present.shape, bool)
    present[0, : len(slots)] = True
    reset = np.zeros(batch.present.shape, bool)
    reset[0, 0] = True
    moved = jax.tree.map(lambda x: jnp.zeros_like(x).at[0].set(x[row, order]), inputs)
    prompts = jnp.full_like(batch.prompt_tokens, PAD_ID).at[0, 0].set(batch.prompt_tokens[row, r])
    rows = batch.replace(
        prompt_tokens=prompts,
        prompt_index=jnp.zeros_like(batch.prompt_index),
        reset=jnp.asarray(reset),
        present=jnp.asarray(present),
    )
    return rows, moved.replace(present=jnp.asarray(present))


def _same_step(a, b, inputs):
    for name in ("plan", "inspect", "refine"):
        there = np.asarray(getattr(inputs, name)) != PAD_ID
        np.testing.assert_allclose(getattr(a, name)[there], getattr(b, name)[there], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(a.sketch_velocity, b.sketch_velocity, rtol=2e-5, atol=2e-5)
    if (np.asarray(inputs.refine) != PAD_ID).any():
        np.testing.assert_allclose(a.refined_velocity, b.refined_velocity, rtol=2e-5, atol=2e-5)


def test_neighbours_in_a_batch_do_not_matter(unrolled):
    batch, inputs, scan = unrolled
    _, before = scan(batch, inputs)
    flipped = jax.tree.map(lambda x: jnp.concatenate([x[:1], x[1:][::-1]]), (batch, inputs))
    _, after = scan(*flipped)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a[0], b[0])


def test_noised_tokens_are_invisible_to_everything_else(unrolled):
    batch, inputs, scan = unrolled
    row, _, slots = max(trajectories(batch), key=lambda found: len(found[2]))
    slot = slots[0]
    assert len(slots) > 1

    def others(noised):
        changed = inputs.replace(sketch_noised=inputs.sketch_noised.at[row, slot, 0].set(noised))
        end, outputs = scan(batch, changed)
        own = outputs.sketch_velocity[row, slot, 0]
        rest = outputs.replace(
            sketch_velocity=outputs.sketch_velocity.at[row, slot, 0].set(0.0),
            sketch_noised_end=outputs.sketch_noised_end.at[row, slot, 0].set(0.0),
        )
        leaves = [jnp.sum(jnp.sin(x)) for x in jax.tree.leaves((end, rest))]
        return sum(leaves), jnp.sum(jnp.sin(own))

    start = inputs.sketch_noised[row, slot, 0]
    assert float(jnp.abs(jax.grad(lambda x: others(x)[0])(start)).max()) == 0.0
    assert float(jnp.abs(jax.grad(lambda x: others(x)[1])(start)).max()) > 0.0


def test_a_clean_sketch_is_seen_by_what_follows(unrolled):
    batch, inputs, scan = unrolled
    row, _, slots = max(trajectories(batch), key=lambda found: len(found[2]))

    def next_sketch(sketch):
        changed = inputs.replace(
            sketch=inputs.sketch.at[row, slots[0]].set(sketch), refine=jnp.full_like(inputs.refine, PAD_ID)
        )
        return jnp.sum(jnp.sin(scan(batch, changed)[1].sketch_velocity[row, slots[1]]))

    gradient = jax.grad(next_sketch)(inputs.sketch[row, slots[0]])
    assert float(jnp.abs(gradient).max()) > 0.0


@pytest.mark.parametrize("context", ["full", "last"])
def test_vit_tokens_are_seen_by_what_follows_and_by_nothing_before(context):
    model, params = make_model(context=context, vit_grid=VIT)
    batch = make_batch(1, seed=SEED, context=context, vit_grid=VIT)
    (row, _, slots), *_ = [found for found in trajectories(batch) if len(found[2]) > 1]
    inputs, _ = step_inputs(model, batch, KEY, NO_RANDOM_DROPS)
    scan = jax.jit(lambda params: scan_steps(model, params, batch, inputs)[:2])
    moved = jax.tree.map(jnp.copy, params)
    moved["connector"]["fc2"]["bias"] += 1.0  # another look at every image, and no other change
    (prompt_end, before), (same_prompt_end, after) = scan(params), scan(moved)

    def changes(name, slot, at=...):
        a, b = (np.asarray(getattr(outputs, name)[row, slot][at]) for outputs in (before, after))
        return np.abs(a - b).max() > 1e-4

    np.testing.assert_array_equal(prompt_end, same_prompt_end)
    first, second = slots[:2]
    for name in ("plan", "sketch_velocity"):
        np.testing.assert_array_equal(getattr(before, name)[row, first], getattr(after, name)[row, first])
        assert changes(name, second), name
    assert changes("sketch_end", first)
    assert changes("inspect", first, 0)


@pytest.mark.slow
def test_kernels_and_a_history_that_is_kept_once_give_the_numbers_of_dense_attention():
    context = CONTEXTS["full-vit"]
    model, params = make_model(**context)
    batch = make_batch(2, **context)
    losses = []
    for attention, again in (("dense", False), ("flash", True)):
        changed = dataclasses.replace(model.config, attention=attention, remat_steps=again)
        variant = model.clone(config=changed)

        def loss(params, model=variant):
            return loss_of(model, params, batch, unroll(model, params, batch, KEY, OPTIONS))

        losses.append(jax.jit(jax.value_and_grad(loss))(params))
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(losses[0][1]), jax.tree.leaves(losses[1][1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

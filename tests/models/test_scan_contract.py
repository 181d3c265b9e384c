"""One definition of a turn: the scan, whole rows, one dense pass and any packing give the same numbers."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.losses import LossTable
from process_gen.models.config import ORDERS, UnrollOptions
from process_gen.models.inputs import make_inputs
from process_gen.models.unroll import make_outputs, run_turns, unroll
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.controls import labels
from tests.models.dense import dense_turns, describe
from tests.models.tiny import IDS, VIT, make_batch, make_model

OPTIONS = UnrollOptions(
    drop_text=0.3,
    drop_images=0.3,
    drop_latents=0.3,
    drop_vit=0.3,
    context_noise=0.3,
    context_noise_share=0.3,
)
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
EVERYTHING = dict(vit_grid=VIT, prompt_image=True, instruction=5)
CASES = {
    "full": dict(context="full"),
    "step-everything": dict(context="step", **EVERYTHING),
    "last": dict(context="last", vit_grid=VIT),
    "no-texts": dict(context="last", before=0, after=0, copies=1, corrections=1),
    "one-turn": dict(turns=1, trajectories=1, copies=1),
}
"""What a turn sees of earlier ones, and what else there is room for."""


@functools.cache
def rows_of(case: str):
    """A batch with all that a row may hold, and what the turns are fed."""
    model, _ = make_model(**CASES[case])
    batches = (make_batch(2, seed=seed, **CASES[case]) for seed in range(1000))
    layout = model.layout
    batch = next(x for x in batches if has_all_kinds(x, layout.corrections) or layout.turns == 1)
    return batch, jax.jit(lambda: make_inputs(model, batch, KEY, OPTIONS))()


def has_all_kinds(batch, corrections: int) -> bool:
    """Whether turns, texts and images of prompts are absent, and a draft follows so many corrections."""
    present, refines = np.asarray(batch.present), np.asarray(batch.refines)
    corrected = ~refines & present & ~np.asarray(batch.is_first)
    for i in range(1, corrections + 1):
        corrected[:, i:] &= refines[:, :-i]
    images = batch.has_prompt_image
    some_images = images is None or bool(images.any() and not images.all())
    texts = [np.asarray(x != PAD_ID).any(-1) for x in (batch.before_tokens, batch.after_tokens)]
    some_texts = all((~text & present).any() for text in texts)
    return bool(corrected.any() and (~present).any() and some_images and some_texts)


def trajectories(batch):
    """(row, prompt index, turn slots) of every trajectory of a batch."""
    found = []
    present, first = np.asarray(batch.present), np.asarray(batch.is_first)
    for row in range(present.shape[0]):
        for slot in np.flatnonzero(present[row]):
            if first[row, slot]:
                found.append((row, int(np.asarray(batch.prompt_index)[row, slot]), []))
            found[-1][2].append(int(slot))
    return found


def loss_of(batch, outputs):
    sums, counts = TABLE.terms(outputs, batch, labels(batch, IDS), KEY)
    return TABLE.total(sums, counts)


@functools.cache
def loss_and_gradients(case: str, way: str):
    """Of a case, in an order of the loops or in one dense pass."""
    model, params = make_model(**CASES[case])
    batch, inputs = rows_of(case)
    row = describe(model, batch, inputs.prompts, inputs.turns)

    def loss(params):
        if way == "dense":
            found = dense_turns(model, params, inputs.prompts, inputs.turns, row)
        else:
            found = run_turns(model, params, batch, inputs.prompts, inputs.turns, way)
        return loss_of(batch, make_outputs(model, params, *found, inputs.flows))

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.slow
@pytest.mark.parametrize("way", ORDERS)
@pytest.mark.parametrize("case", CASES)
def test_rows_in_either_order_equal_one_dense_pass(case, way):
    same_loss_and_gradients(loss_and_gradients(case, way), loss_and_gradients(case, "dense"))


def same_loss_and_gradients(found, wanted):
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    named = jax.tree_util.tree_leaves_with_path(found[1])
    for (path, a), b in zip(named, jax.tree.leaves(wanted[1]), strict=True):
        # Some are 0 but for rounding.
        assert float(jnp.abs(a - b).max()) <= 1e-4 * float(jnp.abs(b).max()) + 1e-7, path


def test_the_cases_drop_something_of_every_kind():
    batch, inputs = rows_of("step-everything")
    present, prompts = np.asarray(batch.present), np.asarray(batch.has_prompt_image)
    for name in ("image", "image_vit"):
        keep = np.asarray(inputs.turns.keep[name])[present]
        assert keep.any() and not keep.all(), name
    assert not all(np.asarray(keep)[prompts].all() for keep in inputs.prompts.keep.values())
    for name in ("before", "image_end", "after"):
        masked = np.asarray(inputs.flows["masked"][name])[present]
        assert masked.any() and not masked.all(), name


@pytest.fixture(
    scope="module",
    params=[("step-everything", "layers"), ("full", "layers"), ("last", "scan")],
    ids=lambda param: "-".join(param),
)
def unrolled(request):
    """A batch, its inputs, and a jitted unroll of both."""
    case, order = request.param
    model, params = make_model(**CASES[case])
    run = jax.jit(lambda batch, inputs: run_turns(model, params, batch, inputs.prompts, inputs.turns, order))
    return *rows_of(case), run


def test_packed_rows_equal_one_trajectory_per_row(unrolled):
    batch, inputs, run = unrolled
    packed_end, packed = run(batch, inputs)
    for row, r, slots in trajectories(batch):
        end, alone = run(*_alone(batch, inputs, row, r, slots))
        np.testing.assert_allclose(end[0, 0], packed_end[row, r], rtol=2e-5, atol=2e-5)
        for i, slot in enumerate(slots):
            _same_turn(_at(alone, 0, i), _at(packed, row, slot), _at(inputs.turns, row, slot))


def _at(tree, row, slot):
    return jax.tree.map(lambda x: x[row, slot], tree)


def _alone(batch, inputs, row, r, slots):
    """Rows of the same shape with nothing but one trajectory, from slot 0 of row 0 on."""
    order = np.asarray(slots + [s for s in range(batch.present.shape[1]) if s not in slots])
    turns = jax.tree.map(lambda x: jnp.zeros_like(x).at[0].set(x[row, order]), inputs.turns)
    present = jnp.zeros_like(batch.present).at[0, : len(slots)].set(True)
    prompts = jax.tree.map(lambda x: jnp.zeros_like(x).at[0, 0].set(x[row, r]), inputs.prompts)
    rows = batch.replace(
        prompt_index=jnp.zeros_like(batch.prompt_index),
        is_first=jnp.zeros_like(batch.is_first).at[0, 0].set(True),
        present=present,
    )
    return rows, inputs._replace(prompts=prompts, turns=turns.replace(present=present))


def _same_turn(a, b, inputs):
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
    for name in ("before", "after"):
        there = np.asarray(inputs.texts[name]) != PAD_ID
        close(a[name][there], b[name][there])
    close(a["velocity"], b["velocity"])
    close(a["noised_end"], b["noised_end"])
    if any(inputs.keep.values()):
        close(a["image_end"], b["image_end"])


def test_neighbours_in_a_batch_do_not_matter(unrolled):
    batch, inputs, run = unrolled

    def others(change):
        return jax.tree.map(lambda x: jnp.concatenate([x[:1], change(x[1:])]), inputs)

    before = run(batch, inputs)
    # Which turns of the history are left out is decided for a batch: as many keys, as many bits.
    other = others(lambda x: x[:, ::-1] if x.dtype == jnp.float32 else x)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(run(batch, other)), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
    assert np.abs(before[1]["velocity"] - run(batch, other)[1]["velocity"]).max() > 1e-3
    flipped = jax.tree.map(lambda x: jnp.concatenate([x[:1], x[1:, ::-1]]), batch)
    after = run(flipped, others(lambda x: x[:, ::-1]))
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(a[0], b[0], rtol=1e-5, atol=2e-6)


def test_noised_tokens_are_invisible_to_everything_else(unrolled):
    batch, inputs, run = unrolled
    row, _, slots = max(trajectories(batch), key=lambda found: len(found[2]))
    slot, latents = slots[0], inputs.turns.latents
    assert len(slots) > 1

    @jax.jit
    def sums(noised):
        changed = latents | {"noised_0": latents["noised_0"].at[row, slot].set(noised)}
        end, outputs = run(batch, inputs._replace(turns=inputs.turns.replace(latents=changed)))
        own = outputs["velocity"][row, slot, 0]
        hidden = {name: outputs[name].at[row, slot, 0].set(0.0) for name in ("velocity", "noised_end")}
        rest = outputs | hidden
        return jnp.stack([sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(x)) for x in ((end, rest), own)])

    of_others, of_itself = jax.jacrev(sums)(latents["noised_0"][row, slot])
    assert not of_others.any() and of_itself.any()


@pytest.mark.slow
@pytest.mark.parametrize(("order", "remat"), [("layers", "full"), ("scan", "save_qkv")])
def test_kernels_and_recomputation_give_the_numbers_of_dense_attention(order, remat):
    case = "step-everything"
    model, params = make_model(**CASES[case])
    model = model.clone(config=dataclasses.replace(model.config, attention="flash", remat=remat))
    batch, _ = rows_of(case)
    options = dataclasses.replace(OPTIONS, order=order)

    def loss(params):
        return loss_of(batch, unroll(model, params, batch, KEY, options))

    found = jax.jit(jax.value_and_grad(loss))(params)
    same_loss_and_gradients(found, loss_and_gradients(case, "dense"))

"""Losses: sums and counts, divided once by the global count."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen import losses
from process_gen.losses import LossTable, Term
from process_gen.models.unroll import UnrollOptions, blank_outputs
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.controls import labels
from tests.models.tiny import IDS, VOCAB, make_batch, make_model

KEY = jax.random.key(0)


def blank(rows=3, seed=2):
    model, _ = make_model()
    batch = make_batch(rows, seed=seed)
    return batch, blank_outputs(model, batch, KEY, UnrollOptions()), labels(batch, IDS)


def test_blank_logits_give_the_entropy_of_a_uniform_guess_at_every_text_token():
    batch, outputs, targets = blank()
    table = LossTable({"plan": dict(loss="text_cross_entropy", stage="plan", weight=2.0)})
    sums, counts = table.terms(outputs, batch, targets, KEY)
    right = np.asarray(batch.plan_ok)[:, :, None]
    assert not right.all()
    tokens = np.where(right, np.asarray(batch.plan_tokens), PAD_ID)
    texts = (tokens != PAD_ID).any(-1).sum()
    assert counts["plan"] == (tokens != PAD_ID).sum() - texts  # the closing token belongs to the decisions
    np.testing.assert_allclose(sums["plan"] / counts["plan"], np.log(VOCAB), rtol=1e-6)
    np.testing.assert_allclose(table.total(sums, counts), 2 * np.log(VOCAB), rtol=1e-6)


def test_decisions_are_counted_at_every_closing_token():
    batch, outputs, targets = blank()
    stages = ("plan", "sketch", "inspect", "refine")
    rows = {s: dict(loss="decision_cross_entropy", stage=s, weight=1.0) for s in stages}
    _, counts = LossTable(rows).terms(outputs, batch, targets, KEY)
    texts = {name: np.asarray(getattr(batch, f"{name}_tokens")) for name in ("plan", "inspect", "refine")}
    there = {name: (tokens != PAD_ID).any(-1) for name, tokens in texts.items()}  # of wrong plans too
    present = np.asarray(batch.present)
    assert counts["plan"] == there["plan"].sum() + (np.asarray(batch.reset) & present).sum()
    assert counts["sketch"] == present.sum()
    assert counts["inspect"] == there["inspect"].sum()
    assert counts["refine"] == 2 * there["refine"].sum()


def test_wrong_drafts_are_no_target_and_refined_images_take_their_place():
    batch, outputs, targets = blank()
    table = LossTable({s: dict(loss="flow_mse", stage=s, weight=1.0) for s in ("sketch", "refine")})
    sums, counts = table.terms(outputs, batch, targets, KEY)
    refined = (np.asarray(batch.refine_tokens) != PAD_ID).any(-1) & np.asarray(batch.present)
    targets_there = np.asarray(batch.present) & (np.asarray(batch.sketch_ok) | refined)
    assert targets_there.sum() < np.asarray(batch.present).sum()  # the batch has a slip
    latents, copies = outputs.target["sketch"].shape[-2], outputs.target["sketch"].shape[2]
    assert counts["sketch"] == targets_there.sum() * latents * copies
    assert counts["refine"] == refined.sum() * latents
    expected = np.square(np.asarray(outputs.target["sketch"])).mean(-1)[targets_there].sum()
    np.testing.assert_allclose(sums["sketch"], expected, rtol=1e-5)
    wrong_and_refined = refined & ~np.asarray(batch.sketch_ok)
    sketch, corrected = (np.asarray(outputs.images[name]) for name in ("sketch", "refine"))
    np.testing.assert_array_equal(sketch[wrong_and_refined], corrected[wrong_and_refined])


def test_consistency_counts_only_what_the_step_leaves_alone():
    batch, outputs, targets = blank()
    table = LossTable({"kept": dict(loss="consistency_mse", stage="sketch", weight=1.0)})
    _, counts = table.terms(outputs, batch, targets, KEY)
    assert counts["kept"] == 0  # random images share no token
    same = jax.tree.map(lambda x: x, outputs.images) | {"before": outputs.images["sketch"]}
    _, counts = table.terms(dataclasses.replace(outputs, images=same), batch, targets, KEY)
    assert counts["kept"] > 0


def test_a_new_loss_is_one_function_and_one_line():
    @losses.register("test_constant")
    def constant(outputs, batch, labels, key, *, stage):
        return Term(jnp.full(batch.present.shape, 3.0), batch.present.astype(jnp.float32))

    batch, outputs, targets = blank()
    table = LossTable({"mine": dict(loss="test_constant", stage="inspect", weight=0.5)})
    sums, counts = table.terms(outputs, batch, targets, KEY)
    np.testing.assert_allclose(table.total(sums, counts), 1.5)
    assert set(table.metrics(sums, counts)) == {"loss/mine", "stage/inspect"}


def test_bad_tables_say_what_is_wrong():
    with pytest.raises(KeyError, match="did you mean flow_mse"):
        LossTable({"a": dict(loss="flow_mes", stage="sketch", weight=1.0)})
    with pytest.raises(ValueError, match="config.losses.a lacks weight"):
        LossTable({"a": dict(loss="flow_mse", stage="sketch")})
    with pytest.raises(ValueError, match="a stage is one of plan, sketch"):
        LossTable({"a": dict(loss="flow_mse", stage="draw", weight=1.0)})
    with pytest.raises(ValueError, match="at least one loss"):
        LossTable({})


def test_rows_of_one_pool_share_their_denominator():
    batch, outputs, targets = blank()
    rows = {
        s: dict(loss="text_cross_entropy", stage=s, weight=0.5, pool="text")
        for s in ("plan", "inspect", "refine")
    }
    table = LossTable(rows)
    sums, counts = table.terms(outputs, batch, targets, KEY)
    mean = sum(sums.values()) / sum(counts.values())
    np.testing.assert_allclose(table.total(sums, counts), 0.5 * mean, rtol=1e-6)
    metrics = table.metrics(sums, counts)
    shares = [metrics[f"stage/{stage}"] for stage in rows]
    np.testing.assert_allclose(sum(shares), table.total(sums, counts), rtol=1e-6)
    with pytest.raises(ValueError, match="config.losses.plan has unknown fields"):
        LossTable({"plan": {**rows["plan"], "pol": "text"}})

"""Losses: sums and counts, divided once by the global count."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen import losses
from process_gen.losses import LossTable, Term, get_loss
from process_gen.models.autoencoder import to_tokens
from process_gen.models.config import NO_RANDOM_DROPS, UnrollOptions
from process_gen.models.unroll import blank_outputs, unroll
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.controls import labels
from process_gen.trajectory.stages import Stage, stage_bits
from tests.models.tiny import IDS, VOCAB, make_batch, make_model

KEY = jax.random.key(0)


def blank(rows=3, seed=2):
    model, _ = make_model()
    batch = make_batch(rows, seed=seed)
    return batch, blank_outputs(model, batch, KEY, NO_RANDOM_DROPS), labels(batch, IDS)


STAGES = ("plan", "sketch", "inspect", "refine")


def texts_of(batch):
    """[B, S] bool by slot: whether a text is there."""
    return {
        name: (np.asarray(getattr(batch, f"{name}_tokens")) != PAD_ID).any(-1) for name in ("before", "after")
    }


def turns_of(batch, stage):
    """[B, S] bool: the turns with a slot of a stage."""
    present, refines = np.asarray(batch.present), np.asarray(batch.refines)
    return present & {"inspect": True, "refine": refines}.get(stage, ~refines)


def table_of(loss, *stages):
    return LossTable({stage: dict(loss=loss, stage=stage, weight=1.0) for stage in stages})


def test_blank_logits_give_the_entropy_of_a_uniform_guess_at_every_text_token():
    batch, outputs, targets = blank()
    table = LossTable({"plan": dict(loss="text_cross_entropy", stage="plan", weight=2.0)})
    sums, counts = table.terms(outputs, batch, targets, KEY)
    learned = turns_of(batch, "plan") & (np.asarray(batch.before_weight) > 0)
    assert (turns_of(batch, "plan") & ~learned).any(), "the batch has a plan that is no target"
    assert not np.asarray(outputs.masked["before"]).any()
    tokens = np.asarray(batch.before_tokens)[learned]
    texts = (tokens != PAD_ID).any(-1).sum()
    assert counts["plan"] == (tokens != PAD_ID).sum() - texts  # the closing token belongs to the decisions
    np.testing.assert_allclose(sums["plan"] / counts["plan"], np.log(VOCAB), rtol=1e-6)
    np.testing.assert_allclose(table.total(sums, counts), 2 * np.log(VOCAB), rtol=1e-6)


def test_each_text_counts_for_the_one_stage_that_it_belongs_to():
    batch, outputs, targets = blank()
    batch = batch.replace(before_weight=jnp.ones_like(batch.before_weight))
    table = table_of("text_cross_entropy", "plan", "inspect", "refine")
    _, counts = table.terms(outputs, batch, targets, KEY)

    def words(name, stage):
        tokens = np.asarray(getattr(batch, f"{name}_tokens"))[turns_of(batch, stage)]
        return (tokens != PAD_ID).sum() - (tokens != PAD_ID).any(-1).sum()

    wanted = {"plan": words("before", "plan"), "refine": words("before", "refine")}
    wanted["inspect"] = words("after", "inspect")
    assert all(wanted.values()) and counts == wanted
    for stage, name, cleared in (("refine", "before", "refine"), ("plan", "before", "plan")):
        tokens = getattr(batch, f"{name}_tokens")
        without = jnp.where(turns_of(batch, cleared)[..., None], PAD_ID, tokens)
        less = batch.replace(**{f"{name}_tokens": without})
        table = table_of("text_cross_entropy", "plan", "inspect", "refine")
        _, found = table.terms(outputs, less, labels(less, IDS), KEY)
        assert found == wanted | {stage: 0}


def test_decisions_are_counted_at_every_closing_token():
    batch, outputs, targets = blank()
    _, counts = table_of("decision_cross_entropy", *STAGES).terms(outputs, batch, targets, KEY)
    there, present = texts_of(batch), np.asarray(batch.present)
    plans, refines = (there["before"] & turns_of(batch, stage) for stage in ("plan", "refine"))
    # Of what is no target too: what follows it is learned.
    assert counts["plan"] == plans.sum() + (np.asarray(batch.is_first) & present).sum()
    assert counts["sketch"] == turns_of(batch, "sketch").sum()
    assert counts["inspect"] == there["after"].sum()
    assert counts["refine"] == refines.sum() + turns_of(batch, "refine").sum()
    assert all(counts.values())


def test_labels_of_closing_tokens_of_flow_targets_count_where_they_are_given():
    batch, outputs, targets = blank()
    given = jnp.full(outputs.hidden["noised_end"].shape[:-1], 5)
    table = table_of("decision_cross_entropy", *STAGES)
    _, without = table.terms(outputs, batch, targets, KEY)
    _, counts = table.terms(outputs, batch, targets | {"noised_end": given}, KEY)
    copies = given.shape[-1]
    more = {stage: turns_of(batch, stage).sum() * copies for stage in ("sketch", "refine")}
    assert counts == {stage: without[stage] + more.get(stage, 0) for stage in STAGES}


def test_what_was_dropped_has_no_label():
    model, _ = make_model()
    batch = make_batch(16, seed=2)
    options = UnrollOptions(drop_text=0.4, drop_images=0.4)
    outputs, targets = blank_outputs(model, batch, KEY, options), labels(batch, IDS)
    dropped = {name: np.asarray(x) for name, x in outputs.masked.items()}
    there = texts_of(batch)
    assert all((dropped[name] & there[name]).any() for name in there) and dropped["prompt_end"].any()
    _, words = table_of("text_cross_entropy", "plan", "inspect", "refine").terms(outputs, batch, targets, KEY)
    for stage, name in (("plan", "before"), ("inspect", "after"), ("refine", "before")):
        learned = turns_of(batch, stage) & ~dropped[name] & (np.asarray(getattr(batch, f"{name}_weight")) > 0)
        tokens = np.asarray(getattr(batch, f"{name}_tokens"))[learned]
        assert words[stage] == (tokens != PAD_ID).sum() - (tokens != PAD_ID).any(-1).sum()
    _, counts = table_of("decision_cross_entropy", *STAGES).terms(outputs, batch, targets, KEY)
    texts = {name: there[name] & ~dropped[name] for name in there}
    images = ~dropped["image_end"]
    opened = np.take_along_axis(~dropped["prompt_end"], np.asarray(batch.prompt_index), axis=1)
    opened &= np.asarray(batch.is_first & batch.present)
    assert counts["plan"] == (texts["before"] & turns_of(batch, "plan")).sum() + opened.sum()
    assert counts["sketch"] == (images & turns_of(batch, "sketch")).sum()
    assert counts["inspect"] == texts["after"].sum()
    assert counts["refine"] == ((texts["before"] * 1 + images) * turns_of(batch, "refine")).sum()


def test_the_visual_state_before_a_turn_is_the_image_of_the_turn_before():
    batch, outputs, _ = blank()
    images = np.asarray(to_tokens(make_model()[0].config, batch.image))
    before = np.where(np.asarray(batch.is_first)[:, :, None, None], 0, np.roll(images, 1, axis=1))
    there = np.asarray(batch.present)
    np.testing.assert_array_equal(np.asarray(outputs.previous)[there], before[there])


def test_wrong_drafts_are_no_target_and_corrected_images_take_their_place():
    batch, outputs, targets = blank(rows=16)
    sums, counts = table_of("flow_mse", "sketch", "refine").terms(outputs, batch, targets, KEY)
    there, offset = np.asarray(batch.present), np.asarray(batch.target)
    assert (there & (offset < 0)).any(), "the batch has a slip"
    latents, copies = outputs.target.shape[-2], outputs.target.shape[2]
    for stage in ("sketch", "refine"):
        learned = turns_of(batch, stage) & (offset >= 0)
        assert counts[stage] == learned.sum() * latents * copies
        expected = np.square(np.asarray(outputs.target)).mean(-1)[learned].sum()
        np.testing.assert_allclose(sums[stage], expected, rtol=1e-5)
    np.testing.assert_array_equal(outputs.has_target, there & (offset >= 0))
    model, _ = make_model()
    images = np.asarray(to_tokens(model.config, batch.image))
    rows, slots = np.nonzero(there & (offset > 0))
    assert len(rows) and (offset > 1).any(), "a draft that is corrected twice"
    np.testing.assert_array_equal(outputs.clean[rows, slots], images[rows, slots + offset[rows, slots]])
    rows, slots = np.nonzero(there & (offset == 0))
    np.testing.assert_array_equal(outputs.clean[rows, slots], images[rows, slots])


@pytest.mark.parametrize(
    ("field", "loss", "stage"),
    [
        ("before_weight", "text_cross_entropy", "plan"),
        ("before_weight", "text_cross_entropy", "refine"),
        ("after_weight", "text_cross_entropy", "inspect"),
        ("image_weight", "flow_mse", "sketch"),
        ("image_weight", "flow_mse", "refine"),
    ],
)
def test_a_turn_weighs_as_much_as_its_field_says(field, loss, stage):
    batch, outputs, targets = blank()
    rows = table_of(loss, stage)
    slot = {"inspect": "after"}.get(stage, "before")
    eligible = turns_of(batch, stage)
    eligible &= texts_of(batch)[slot] if field != "image_weight" else np.asarray(batch.target) >= 0
    row, one = np.argwhere(eligible)[0]

    def terms(weight):
        weights = jnp.ones(eligible.shape).at[row, one].set(weight)
        sums, counts = rows.terms(outputs, batch.replace(**{field: weights}), targets, KEY)
        return np.array([sums[stage], counts[stage]])

    none, some, whole = (terms(weight) for weight in (0.0, 0.25, 1.0))
    assert (none < whole).all()
    np.testing.assert_allclose(some, none + 0.25 * (whole - none), rtol=1e-5)
    nothing = batch.replace(**{field: jnp.zeros(eligible.shape)})
    sums, counts = rows.terms(outputs, nothing, targets, KEY)
    assert sums[stage] == counts[stage] == rows.total(sums, counts) == 0


def test_what_no_loss_weighs_may_be_no_number():
    batch, outputs, targets = blank()
    batch = batch.replace(image_weight=jnp.ones_like(batch.image_weight).at[0, 0].set(0.0))
    spoiled = dataclasses.replace(outputs, velocity=outputs.velocity.at[0, 0].set(jnp.nan))
    sums, _ = table_of("flow_mse", "sketch").terms(spoiled, batch, targets, KEY)
    assert np.isfinite(sums["sketch"])


def test_a_new_loss_is_one_function_and_one_line():
    @losses.register("test_constant")
    def constant(outputs, batch, labels, key, *, stage):
        return Term(jnp.full(batch.present.shape, 3.0), batch.present.astype(jnp.float32))

    batch, outputs, targets = blank()
    table = LossTable({"mine": dict(loss="test_constant", stage="inspect", weight=0.5)})
    sums, counts = table.terms(outputs, batch, targets, KEY)
    np.testing.assert_allclose(table.total(sums, counts), 1.5)
    assert set(table.metrics(sums, counts)) == {"loss/mine", "stage/inspect"}


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


def test_a_metric_is_no_part_of_the_mean_of_its_pool():
    batch, outputs, targets = blank()
    rows = {
        stage: dict(loss="text_cross_entropy", stage=stage, weight=weight, pool="texts")
        for stage, weight in (("plan", 1.0), ("inspect", 0.0))
    }
    totals = []
    for table in (LossTable(rows), LossTable({"plan": rows["plan"]})):
        totals.append(table.total(*table.terms(outputs, batch, targets, KEY)))
    assert totals[0] == totals[1] > 0


def test_a_turn_without_an_image_teaches_its_words_alone():
    """A correction that ends a trajectory, its image unknown: no number depends on the pixels there."""
    model, params = make_model()
    batch = make_batch(12, seed=3)
    ends = np.asarray(batch.is_last & batch.refines)
    assert ends.any()
    drafts = np.asarray(batch.target) + np.arange(ends.shape[1])
    orphaned = np.take_along_axis(ends, np.clip(drafts, 0, ends.shape[1] - 1), axis=1) & batch.present
    batch = batch.replace(
        has_image=batch.has_image & ~ends,
        target=jnp.where(orphaned, -1, batch.target),
        after_tokens=jnp.where(ends[..., None], PAD_ID, batch.after_tokens),
    )
    table = LossTable(every_row())

    @jax.jit
    def terms(batch):
        outputs, targets = unroll(model, params, batch, KEY, NO_RANDOM_DROPS), labels(batch, IDS)
        return *table.terms(outputs, batch, targets, KEY), outputs.labels(targets), outputs.has_target

    sums, counts, found, has_target = terms(batch)
    spoiled = jnp.where(ends[..., None, None, None], 255 - batch.image, batch.image)
    other, *_ = terms(batch.replace(image=spoiled))
    np.testing.assert_allclose([*other.values()], [*sums.values()], rtol=1e-5)
    assert (found["image_end"][ends] == PAD_ID).all() and not has_target[ends].any()
    assert (found["before"][ends] != PAD_ID).any() and counts["refine_text_cross_entropy"] > 0


def every_row():
    """A row of each loss for each of its stages."""
    losses = ("text_cross_entropy", "decision_cross_entropy", "flow_mse")
    pairs = [(stage, loss) for loss in losses for stage in get_loss(loss).stages]
    return {f"{stage}_{loss}": dict(loss=loss, stage=stage, weight=1.0) for stage, loss in pairs}


def test_a_source_teaches_the_stages_that_it_is_for():
    batch, outputs, targets = blank()
    rows = jnp.arange(3)[:, None]
    batch = batch.replace(
        source=jnp.broadcast_to(rows % 2, batch.source.shape),
        supervised=jnp.where(rows % 2 == 1, stage_bits({Stage.SKETCH}), batch.supervised),
    )
    rows = every_row()
    names, table = list(rows), LossTable(rows, sources=("process", "images"))
    sums, counts = table.terms(outputs, batch, targets, KEY)
    for name in names:
        assert counts[name] == counts[f"{name}@process"] + counts[f"{name}@images"]
        np.testing.assert_allclose(sums[name], sums[f"{name}@process"] + sums[f"{name}@images"], rtol=1e-6)
        assert (counts[f"{name}@images"] > 0) == (
            name in ("sketch_flow_mse", "sketch_decision_cross_entropy")
        )
    found = table.metrics(sums, counts)
    assert "source/process/plan_text_cross_entropy" in found
    assert "source/images/plan_text_cross_entropy" in found and "loss/plan_text_cross_entropy" in found
    assert sums.keys() == counts.keys()
    alone = LossTable(
        {name: dict(loss=name.split("_", 1)[1], stage=name.split("_")[0], weight=1.0) for name in names}
    )
    np.testing.assert_allclose(
        table.total(sums, counts), alone.total(*alone.terms(outputs, batch, targets, KEY)), rtol=1e-6
    )

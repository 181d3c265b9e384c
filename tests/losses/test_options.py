"""Options of the losses of the method, and `text_kl`, `description_consistency`; against NumPy.

With latents that are pixels, and with those of an autoencoder with weights.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.data.encode import encode_trajectory
from process_gen.data.packing import join_row
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.experiment import cli
from process_gen.experiment.builders import build_layout
from process_gen.losses import LossError, LossTable
from process_gen.losses.stock import TIMESTEPS, balanced, repeated
from process_gen.models.config import NO_RANDOM_DROPS
from process_gen.models.unroll import blank_outputs
from process_gen.scenes.prompts import sample_request
from process_gen.scenes.teacher import teach
from process_gen.trajectory.batch import PAD_ID, Batch
from process_gen.trajectory.controls import ControlIds, labels
from tests.models.tiny import IDS, VOCAB, make_batch, make_flux, make_model

KEY = jax.random.key(0)
WIDTH = 16


def described(batch, seed, words=2):
    """The batch with plans of few words: an instruction of one, and a description."""
    rng, tokens = np.random.default_rng(seed), np.asarray(batch.before_tokens).copy()
    plans = np.asarray(batch.present & ~batch.refines) & (tokens != PAD_ID).any(-1)
    for row, slot in np.argwhere(plans):
        told = rng.integers(13, 13 + words, 3)
        text = [IDS.im_start, int(told[0]), IDS.des, *map(int, told[1:]), IDS.des_end, IDS.im_end]
        tokens[row, slot] = text[: tokens.shape[-1]]
    return batch.replace(before_tokens=jnp.asarray(tokens))


@pytest.fixture(scope="module", params=["patches", "flux"])
def given(request):
    """Outputs with predictions drawn at random, whose logits are products with a matrix of words."""
    model, frozen = make_flux() if request.param == "flux" else (make_model()[0], None)
    batch = described(make_batch(4, seed=2), 2)
    blank = blank_outputs(model, batch, KEY, NO_RANDOM_DROPS, frozen)
    rng = np.random.default_rng(0)
    words = jnp.asarray(rng.standard_normal((WIDTH, VOCAB)), jnp.float32)

    def drawn(x):
        return jnp.asarray(rng.standard_normal(x.shape), jnp.float32)

    def nll(hidden, labels):
        log_p = jax.nn.log_softmax(hidden @ words)
        return -jnp.take_along_axis(log_p, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]

    outputs = dataclasses.replace(
        blank,
        hidden={name: drawn(x) for name, x in blank.hidden.items()},
        velocity=drawn(blank.velocity),
        logits=lambda hidden: hidden @ words,
        nll=nll,
    )
    other = dataclasses.replace(outputs, hidden={name: drawn(x) for name, x in blank.hidden.items()})
    return batch, dataclasses.replace(outputs, networks={"reference": other}), words


def terms(given, loss, stage, outputs=None, **options):
    """Mean and count of one row."""
    batch, own, _ = given
    table = LossTable({"row": dict(loss=loss, stage=stage, weight=1.0, **options)})
    sums, counts = table.terms(outputs or own, batch, labels(batch, IDS), KEY)
    return sums["row"] / counts["row"], counts["row"]


def gradient(given, loss, stage, **options):
    """Of the mean by velocity and hidden states."""

    def mean(velocity, hidden):
        outputs = dataclasses.replace(given[1], velocity=velocity, hidden=hidden)
        return terms(given, loss, stage, outputs, **options)[0]

    return jax.grad(mean, argnums=(0, 1))(given[1].velocity, dict(given[1].hidden))


def inside(batch):
    """[B, S, T] of `before`: tokens whose label is no decision."""
    tokens = np.asarray(batch.before_tokens)
    following = np.concatenate([tokens[..., 1:], np.full_like(tokens[..., :1], PAD_ID)], axis=-1)
    return following != PAD_ID


def test_smoothing_mixes_the_label_with_a_uniform_guess(given):
    batch, outputs, words = given
    mean, count = terms(given, "text_cross_entropy", "plan", smoothing=0.1)
    plain, same = terms(given, "text_cross_entropy", "plan")
    log_p = np.asarray(jax.nn.log_softmax(outputs.hidden["before"] @ words))
    weights = inside(batch) * np.asarray(batch.before_weight * batch.present * ~batch.refines)[..., None]
    uniform = (-log_p.mean(-1) * weights).sum() / weights.sum()
    assert count == same == weights.sum()
    np.testing.assert_allclose(mean, 0.9 * plain + 0.1 * uniform, rtol=1e-5)


def test_kl_to_the_reference_is_that_of_the_distributions_and_0_at_itself(given):
    batch, outputs, words = given
    mean, count = terms(given, "text_kl", "plan")
    p, q = (
        np.asarray(jax.nn.log_softmax(one.hidden["before"] @ words))
        for one in (outputs.networks["reference"], outputs)
    )
    weights = inside(batch) * np.asarray(batch.before_weight * batch.present * ~batch.refines)[..., None]
    wanted = ((np.exp(p) * (p - q)).sum(-1) * weights).sum() / weights.sum()
    assert count == weights.sum() and wanted > 0
    np.testing.assert_allclose(mean, wanted, rtol=1e-5)
    same = dataclasses.replace(outputs, networks={"reference": outputs})
    np.testing.assert_allclose(terms(given, "text_kl", "plan", same)[0], 0.0, atol=1e-6)
    chunks = dataclasses.replace(outputs, in_chunks=True)
    np.testing.assert_allclose(terms(given, "text_kl", "plan", chunks)[0], mean, rtol=1e-5)


OPTIONS = [
    ("text_kl", "plan", {}),
    ("text_cross_entropy", "plan", {"smoothing": 0.1}),
    ("description_consistency", "plan", {}),
    ("decision_cross_entropy", "sketch", {"focal": 2.0}),
    ("decision_cross_entropy", "sketch", {"focal": 0.5}),
    ("decision_cross_entropy", "sketch", {"balance": 1.0}),
    *(("flow_mse", "sketch", {"timesteps": name}) for name in TIMESTEPS),
]


def reckoned(batch):
    """`repeated`, by loops over what `batch` says."""
    tokens, found = np.asarray(batch.before_tokens), np.zeros(batch.before_tokens.shape, bool)
    for row, slots in enumerate(tokens):
        before = {}
        for slot, text in enumerate(slots.tolist()):
            if not batch.present[row, slot]:
                continue
            trajectory = int(batch.prompt_index[row, slot])
            if IDS.des not in text:
                continue
            start = text.index(IDS.des)
            end = text.index(IDS.des_end) if IDS.des_end in text else len(text)
            threes = [(i, tuple(text[i - 1 : i + 2])) for i in range(start, end - 1)]
            for i, three in threes:
                found[row, slot, i] = three in before.get(trajectory, ())
            before[trajectory] = {three for _, three in threes}
    return found


@pytest.mark.parametrize("seed", range(3))
def test_words_that_a_description_repeats_are_those_of_the_one_before_in_its_trajectory(seed):
    batch = described(make_batch(4, seed=seed), seed)
    found, wanted = np.asarray(repeated(batch, IDS.des, IDS.des_end)), reckoned(batch)
    np.testing.assert_array_equal(found & np.asarray(batch.present)[..., None], wanted)
    assert 0 < wanted.sum() < ((batch.before_tokens != PAD_ID) & batch.present[..., None]).sum()


@pytest.mark.parametrize("level", ["default", "hung"])
def test_of_what_plans_describe_a_part_is_kept(level):
    config, tokenizer = cli.load_config("configs/scenes.py:hung"), scenes_tokenizer()
    layout, rng, ids = build_layout(config), np.random.default_rng(0), ControlIds.of(tokenizer)
    parts = []
    while len(parts) < 8:
        lesson = teach(sample_request(rng, level, "four_objects", "train"), rng)
        turns = [
            dataclasses.replace(turn, image=np.zeros((*layout.image_size, 3), np.uint8))
            for turn in lesson.turns
        ]
        if len(turns) <= layout.turns:
            parts.append(
                encode_trajectory(tokenizer, layout, dataclasses.replace(lesson, turns=tuple(turns)))
            )
    rows = [join_row([part], layout) for part in parts]
    batch = Batch(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})
    kept = np.asarray(repeated(batch, ids.des, ids.des_end)) & np.asarray(batch.present)[..., None]
    plans = (batch.present & ~batch.refines)[..., None] & (batch.before_tokens != PAD_ID)
    assert 0.1 < kept.sum() / plans.sum() < 0.9


def test_without_room_for_plans_nothing_is_repeated():
    batch = make_batch(2, seed=2)
    batch = batch.replace(before_tokens=batch.before_tokens[..., :0])
    assert repeated(batch, IDS.des, IDS.des_end).shape == batch.before_tokens.shape


def test_what_descriptions_repeat_costs_what_its_words_do(given):
    batch, own, _ = given
    weights = reckoned(batch) & np.asarray(batch.present & (batch.before_weight > 0))[..., None]
    mean, count = terms(given, "description_consistency", "plan")
    values = own.cross_entropy("before", labels(batch, IDS))
    assert count == weights.sum() > 0
    np.testing.assert_allclose(mean, np.asarray(values)[weights].mean(), rtol=1e-5)


def test_focal_loss_weighs_by_what_is_missing(given):
    batch, outputs, _ = given
    plain = LossTable({"row": dict(loss="decision_cross_entropy", stage="inspect", weight=1.0)})
    focal = LossTable({"row": dict(loss="decision_cross_entropy", stage="inspect", weight=1.0, focal=2.0)})
    values = [t.term(t.rows[0], outputs, batch, labels(batch, IDS), KEY) for t in (plain, focal)]
    assert (values[0].weights == values[1].weights).all()
    there = np.asarray(values[0].weights) > 0
    nll = np.asarray(values[0].values)[there]
    np.testing.assert_allclose(np.asarray(values[1].values)[there], (1 - np.exp(-nll)) ** 2 * nll, rtol=1e-4)


def test_balance_gives_every_label_the_same_weight_and_all_what_they_had():
    found = np.asarray([7, 7, 7, 5, 9, 9, 1])
    weights = jnp.asarray([1.0, 1, 1, 1, 1, 1, 0])
    scaled = np.asarray(balanced(weights, jnp.asarray(found), 1.0))
    assert scaled.sum() == pytest.approx(6.0) and scaled[-1] == 0
    for label in (7, 5, 9):
        assert scaled[found == label].sum() == pytest.approx(2.0)


def test_balanced_decisions_count_as_much_as_before(given):
    mean, count = terms(given, "decision_cross_entropy", "sketch", balance=1.0)
    other, same = terms(given, "decision_cross_entropy", "sketch")
    np.testing.assert_allclose(count, same, rtol=1e-5)
    assert mean != other


@pytest.mark.parametrize("name", TIMESTEPS)
def test_timesteps_are_weighed_as_their_formula_says(given, name):
    batch, outputs, _ = given
    mean, _ = terms(given, "flow_mse", "sketch", timesteps=name)
    t = np.asarray(outputs.t, np.float64)
    logit = np.log(t / (1 - t))
    formula = {
        "uniform": np.ones_like(t),
        "clean": t**2,
        "cosmap": 2 / (np.pi - 2 * np.pi * t + 2 * np.pi * t**2),
        "logit_normal": np.exp(-(logit**2) / 2) / np.sqrt(2 * np.pi) / (t * (1 - t)),
    }[name]
    values = formula[..., None] * np.square(outputs.velocity - outputs.target).mean(-1)
    turns = np.asarray(batch.image_weight * outputs.has_target * ~batch.refines)[:, :, None, None]
    weights = np.broadcast_to(turns, values.shape)
    np.testing.assert_allclose(mean, (values * weights).sum() / weights.sum(), rtol=1e-4)


def test_clean_timesteps_are_the_error_of_the_clean_estimate(given):
    _, outputs, _ = given
    error = np.square(outputs.clean_estimate - outputs.clean[:, :, None]).mean(-1)
    values = np.asarray(outputs.t)[..., None] ** 2 * np.square(outputs.velocity - outputs.target).mean(-1)
    np.testing.assert_allclose(error, values, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("loss", "stage", "options"), OPTIONS)
def test_gradients_reach_what_is_there_and_nothing_that_is_padding(given, loss, stage, options):
    batch, _, _ = given
    velocity, hidden = gradient(given, loss, stage, **options)
    moved = {"velocity": velocity, **hidden}
    assert all(np.isfinite(x).all() for x in moved.values())
    where = {"flow_mse": "velocity", "decision_cross_entropy": "image_end"}.get(loss, "before")
    assert np.asarray(moved[where]).any()
    assert not any(np.asarray(x).any() for name, x in moved.items() if name != where)
    assert not np.asarray(moved[where])[~np.asarray(batch.present)].any()
    if where == "before":
        assert not np.asarray(moved[where])[~inside(batch)].any()


@pytest.mark.parametrize(("loss", "stage", "options"), OPTIONS)
def test_what_counts_is_a_part_of_a_batch_and_costs_something(given, loss, stage, options):
    batch, outputs, _ = given
    table = LossTable({"row": dict(loss=loss, stage=stage, weight=1.0, **options)})
    term = table.term(table.rows[0], outputs, batch, labels(batch, IDS), KEY)
    values, weights = np.asarray(term.values), np.asarray(term.weights)
    assert 0 < (weights > 0).mean() < 1 and np.isfinite(values).all()
    assert values[weights > 0].min() > 0 and values[weights > 0].std() > 0
    if options and options != {"timesteps": "uniform"}:
        plain = LossTable({"row": dict(loss=loss, stage=stage, weight=1.0)})
        term = plain.term(plain.rows[0], outputs, batch, labels(batch, IDS), KEY)
        assert not (np.allclose(term.values, values) and np.allclose(term.weights, weights))


@pytest.mark.parametrize(
    ("loss", "option", "value"),
    [
        ("text_cross_entropy", "smoothing", 1.5),
        ("decision_cross_entropy", "focal", -1.0),
        ("decision_cross_entropy", "balance", "much"),
    ],
)
def test_options_that_cannot_be_are_refused(given, loss, option, value):
    with pytest.raises(LossError, match=f"config.losses.row, loss '{loss}': {option} must be .*, got"):
        terms(given, loss, "plan", **{option: value})


def test_an_unknown_weighting_of_timesteps_is_refused(given):
    with pytest.raises(LossError, match="unknown weighting of timesteps 'clan'; did you mean clean"):
        terms(given, "flow_mse", "sketch", timesteps="clan")

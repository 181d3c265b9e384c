"""What a loss is given besides the outputs of the model, what it may return, and what is refused."""

import dataclasses
import functools
import inspect
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from process_gen import losses
from process_gen.distributed import sharding
from process_gen.experiment import builders
from process_gen.losses import LossError, LossTable, Term, registry
from process_gen.losses.rows import weight_of
from process_gen.models.autoencoder import to_pixels, to_tokens
from process_gen.models.config import NO_RANDOM_DROPS
from process_gen.models.inputs import make_inputs
from process_gen.models.unroll import blank_outputs, make_outputs, run_turns
from process_gen.training import scoring
from process_gen.training.step import Recipe, init_state, make_train_step
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.controls import labels
from tests.losses import ten_ideas
from tests.models.tiny import IDS, make_batch, make_flux, make_model
from tests.models.tiny import layout as make_layout

KEY = jax.random.key(0)
FLOW = dict(loss="flow_mse", stage="sketch", weight=1.0)


def recipe_of(table, **changes):
    fields = dict(options=NO_RANDOM_DROPS, optimizer=optax.sgd(0.1), schedule=lambda step: 0.1)
    return Recipe(make_model()[0], LossTable(table), **fields | changes)


def state_of(recipe, rows=4):
    spec = Batch.spec(make_layout(), rows)
    return jax.jit(lambda key: sharding.unbox(init_state(recipe, spec, key)))(KEY)


def row_of(name, function, **declared):
    """A registered loss, and the row that turns it on."""
    losses.register(name, **declared)(function)
    return {name.removeprefix("test_"): dict(loss=name, stage="sketch", weight=1.0)}


def ones(batch):
    return batch.present.astype(jnp.float32)


def check(table, **declared):
    scoring.check(recipe_of(table), Batch.spec(make_layout(), 2))


# ------------------------------------------------------------------ the outputs


@pytest.fixture(scope="module")
def unrolled():
    model, params = make_model()
    batch = make_batch(2, seed=2)
    inputs = jax.jit(lambda batch: make_inputs(model, batch, KEY, NO_RANDOM_DROPS))(batch)
    run = jax.jit(lambda *given: run_turns(model, *given, order="layers"))  # `Outputs` cannot leave it
    turns = run(params, batch, inputs.prompts, inputs.turns)
    return model, params, batch, make_outputs(model, params, *turns, inputs.flows)


def test_the_clean_estimate_is_the_clean_image_where_the_velocity_is_right(unrolled):
    *_, outputs = unrolled
    right = dataclasses.replace(outputs, velocity=outputs.target)
    wanted = jnp.broadcast_to(outputs.clean[:, :, None], outputs.target.shape)
    np.testing.assert_allclose(right.clean_estimate, wanted, atol=1e-5)


def test_pixels_of_clean_latents_are_the_image_and_a_window_is_a_part_of_it(unrolled):
    _, _, batch, outputs = unrolled
    images = np.asarray(batch.image) / 127.5 - 1
    there = np.asarray(batch.present & (batch.target == 0))
    np.testing.assert_allclose(outputs.pixels(outputs.clean)[there], images[there], atol=1e-5)
    part = outputs.pixels(outputs.clean, window=(1, 0, 1, 2))
    np.testing.assert_allclose(part[there], images[there][:, 4:], atol=1e-5)
    with pytest.raises(ValueError, match=r"window \(1, 1, 2, 1\) is not inside the 2 x 2"):
        outputs.pixels(outputs.clean, window=(1, 1, 2, 1))


def test_a_gradient_flows_through_the_decoder_of_an_autoencoder_with_weights():
    model, frozen = make_flux()
    batch = make_batch(1, seed=2)

    def darkness(velocity, frozen):
        outputs = blank_outputs(model, batch, KEY, NO_RANDOM_DROPS, frozen)
        outputs = dataclasses.replace(outputs, velocity=velocity)
        return jnp.mean(outputs.pixels(outputs.clean_estimate[:, :, 0], window=(0, 0, 1, 2)))

    zeros = jnp.zeros((1, 5, 2, 4, 16))
    gradient = jax.jit(jax.grad(darkness))(zeros, frozen)
    assert np.isfinite(gradient).all() and gradient[:, :, 0, :2].any()
    assert not gradient[:, :, 1].any() and not gradient[:, :, 0, 2:].any()
    latents = to_tokens(model.config, batch.image, frozen)
    assert to_pixels(model.config, model.layout, latents, frozen).shape == batch.image.shape


@pytest.mark.slow  # a train step is compiled
def test_the_step_and_a_schedule_reach_the_losses_and_the_total():
    def counted(outputs, batch, labels, key, *, stage):
        return Term(jnp.full(batch.present.shape, 1.0) * outputs.step, ones(batch))

    table = row_of("test_counted", counted)
    table["counted"]["weight"] = dict(kind="linear", start=0.0, end=1.0, begin=1, until=3)
    recipe = recipe_of(table | {"flow": FLOW})
    step, state, batch = jax.jit(make_train_step(recipe)), state_of(recipe), make_batch(4, seed=3)
    for number, weight in enumerate((0.0, 0.0, 0.5, 1.0)):
        state, metrics = step(state, batch)
        assert metrics["loss/counted"] == number and metrics["loss_weight/counted"] == weight
        np.testing.assert_allclose(metrics["loss"], metrics["loss/flow"] + weight * number, rtol=1e-6)


@pytest.mark.slow  # a train step is compiled
def test_a_frozen_network_stays_as_it_is_whole_and_in_micro_batches():
    losses.register_network(
        "test_eye", lambda key: {"w": jax.random.normal(key, (48, 3))}, lambda w, x: x @ w["w"]
    )

    def seen(outputs, batch, labels, key, *, stage):
        eye = outputs.network("test_eye")
        values = jnp.square(eye(outputs.clean_estimate) - eye(outputs.clean)[:, :, None]).mean((-1, -2, -3))
        weights = outputs.has_target * losses.of_stage(batch, stage) * 1.0
        return Term(values, weights, {"twice": 2 * values, "at": outputs.t.mean(-1), "step": outputs.step})

    table = row_of("test_seen", seen, networks=("test_eye",))
    batch = make_batch(4, seed=3)
    for accumulate in (1, 2):
        recipe = recipe_of(table, accumulate=accumulate)
        state = state_of(recipe)
        after, metrics = jax.jit(make_train_step(recipe))(state, batch)
        np.testing.assert_array_equal(after.networks["test_eye"]["w"], state.networks["test_eye"]["w"])
        assert metrics["grad_norm/latent"] > 0
        np.testing.assert_allclose(metrics["metric/seen/twice"], 2 * metrics["loss/seen"], rtol=1e-5)
        assert 0 < metrics["metric/seen/at"] < 1 and metrics["metric/seen/step"] == 0


@pytest.mark.slow  # a train step is compiled
def test_the_reference_is_the_model_at_the_start_and_no_gradient_reaches_it():
    table = {"kl": dict(loss="text_kl", stage="plan", weight=1.0), "flow": FLOW}
    recipe = recipe_of(table)
    state, batch = state_of(recipe), make_batch(4, seed=3)
    step = jax.jit(make_train_step(recipe))
    _, at_first = step(state, batch)
    np.testing.assert_allclose(at_first["loss/kl"], 0.0, atol=1e-6)
    moved = state.replace(params=jax.tree.map(lambda x: 1.3 * x + 0.01, state.params))
    after, later = step(moved, batch)
    assert later["loss/kl"] > 1e-3 and later["grad_norm/head"] > 0
    jax.tree.map(np.testing.assert_array_equal, after.networks["reference"], state.params)


# --------------------------------------------------------------------- the table


@pytest.mark.slow  # a train step is compiled
def test_a_row_of_weight_0_is_a_metric_whatever_it_is():
    def broken(outputs, batch, labels, key, *, stage):
        return Term(jnp.full(batch.present.shape, jnp.nan), ones(batch))

    table = row_of("test_broken", broken) | {"flow": FLOW}
    table["broken"]["weight"] = 0.0
    recipe = recipe_of(table)
    state, metrics = jax.jit(make_train_step(recipe))(state_of(recipe), make_batch(4, seed=3))
    assert np.isnan(metrics["loss/broken"]) and metrics["finite"] == 1
    alone = recipe_of({"flow": FLOW})
    same, _ = jax.jit(make_train_step(alone))(state_of(alone), make_batch(4, seed=3))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.params, same.params
    )


def test_a_row_draws_the_same_numbers_whatever_stands_beside_it(unrolled):
    def drawn(outputs, batch, labels, key, *, stage):
        return Term(jax.random.uniform(key, batch.present.shape), ones(batch))

    _, _, batch, outputs = unrolled
    row = row_of("test_drawn", drawn)
    given = (outputs, batch, labels(batch, IDS), KEY)
    alone = LossTable(row).terms(*given)[0]["drawn"]
    beside = LossTable({"flow": FLOW, "other": row["drawn"], **row}).terms(*given)[0]
    assert alone == beside["drawn"] != beside["other"]


@pytest.mark.parametrize(
    ("weight", "at"),
    [
        (0.5, {0: 0.5, 9: 0.5}),
        (dict(kind="linear", start=1.0, end=0.0, begin=2, until=4), {0: 1.0, 2: 1.0, 3: 0.5, 4: 0.0, 9: 0.0}),
        (dict(kind="steps", at=((0, 0.0), (5, 2.0))), {0: 0.0, 4: 0.0, 5: 2.0, 9: 2.0}),
    ],
)
def test_weights_over_steps(weight, at):
    found = weight_of("weight", weight)
    assert {step: float(found.at(step)) for step in at} == at


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(stage="draw"), "'draw'; known are inspect, plan, refine, sketch"),
        (dict(loss="flow_mes"), "unknown loss 'flow_mes'; did you mean flow_mse"),
        (dict(stage="sketsh"), "unknown stage in config.losses.a.stage, 'sketsh'; did you mean sketch"),
        (dict(stage="plan"), "config.losses.a.stage is 'plan', the loss 'flow_mse' is for sketch, refine"),
        (dict(timestep="clean"), "config.losses.a, loss 'flow_mse', 'timestep'; did you mean timesteps"),
        (dict(weight="much"), "config.losses.a.weight is 'much': a weight is a Python number from 0 on"),
        (dict(weight=-1), "config.losses.a.weight is -1: a weight is a Python number from 0 on"),
        (dict(weight=float("nan")), "config.losses.a.weight is nan"),
        (dict(weight=dict(kind="steps", at=((0, -1.0),))), "config.losses.a.weight is -1.0: a weight is"),
        (dict(weight=dict(kind="liner")), "schedule in config.losses.a.weight: 'liner'; did you mean linear"),
        (dict(weight=dict(kind="linear", start=1.0)), "of kind 'linear' has start, end, begin, until"),
        (dict(weight=dict(kind="steps", at=((5, 0.0), (2, 1.0)))), "steps of a schedule rise, from 0 on"),
    ],
)
def test_rows_that_cannot_be_name_the_way_out(changes, message):
    with pytest.raises((ValueError, KeyError)) as found:
        LossTable({"a": FLOW | changes})
    assert message in str(found.value)


def test_a_table_has_rows_and_a_row_its_fields():
    with pytest.raises(ValueError, match="at least one loss"):
        LossTable({})
    with pytest.raises(ValueError, match="config.losses.a lacks weight"):
        LossTable({"a": dict(loss="flow_mse", stage="sketch")})


BAD = {
    "values and weights of unlike shapes": (
        lambda outputs, batch: Term(outputs.t, ones(batch)),
        "values of shape [2, 5, 2] and weights of shape [2, 5]",
    ),
    "reduced": (lambda outputs, batch: Term(outputs.t.mean(), jnp.ones(())), "are [B, S, ...] = [2, 5, ...]"),
    "no term": (lambda outputs, batch: outputs.t, "return losses.Term(values, weights)"),
    "a field that is not there": (
        lambda outputs, batch: Term(batch.field("mask"), ones(batch)),
        "config.data.fields names none: add config.data.fields.mask",
    ),
    "a network that it did not ask for": (
        lambda outputs, batch: Term(outputs.network("eye")(outputs.t), outputs.t),
        'losses.register("my_loss", networks=("eye",))',
    ),
    "a state that is not there": (
        lambda outputs, batch: Term(outputs.hidden["sketch"], outputs.t),
        "of test_given.py; of labels and hidden states known are after, before, image_end",
    ),
    "a state of nearly that name": (
        lambda outputs, batch: Term(outputs.hidden["befor"], outputs.t),
        "of labels and hidden states did you mean before",
    ),
    "a stage that is none": (
        lambda outputs, batch: Term(ones(batch), losses.of_stage(batch, "sketsh")),
        "unknown stage 'sketsh'; did you mean sketch",
    ),
    "a metric of another shape": (
        lambda outputs, batch: Term(ones(batch), ones(batch), {"odd": jnp.ones((3,))}),
        "metric 'odd' of shape [3] does not broadcast",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_loss_that_cannot_be_is_named_on_shapes_alone(kind):
    function, message = BAD[kind]
    table = row_of("test_bad", lambda outputs, batch, labels, key, *, stage: function(outputs, batch))
    with pytest.raises(LossError) as found:
        check(table)
    text = str(found.value)
    assert text.startswith("config.losses.bad, loss 'test_bad'") and message in text and "\n" not in text


def test_any_other_error_in_a_loss_says_in_which_row_it_happened():
    table = row_of("test_odd", lambda outputs, batch, labels, key, *, stage: outputs.t + "a")
    with pytest.raises(TypeError) as found:
        check(table)
    said = r"This happened in config.losses.odd, loss 'test_odd', line \d+ of test_given.py."
    assert any(re.fullmatch(said, note) for note in found.value.__notes__)
    wrong = row_of("test_wrong", lambda outputs, batch, labels, key, *, stage: int("a"))
    with pytest.raises(
        builders.ConfigError, match="invalid literal .* 'a' This happened in config.losses.wrong"
    ):
        with builders.as_config_error():
            check(wrong)


def test_a_function_does_not_take_the_name_of_a_loss_of_the_package():
    def flow_mse(outputs, batch, labels, key, *, stage):
        return Term(outputs.t, outputs.t)

    stock = losses.get_loss("flow_mse")
    with pytest.raises(LossError, match="'flow_mse' is a loss of the package"):
        with registry.known(flow_mse):
            pass
    with pytest.raises(LossError, match="'flow_mse' is a loss of the package: choose another name"):
        losses.register("flow_mse")(flow_mse)
    assert losses.get_loss("flow_mse") is stock


def simple(outputs, batch, labels, key, *, stage):
    return Term(outputs.t, outputs.t)


def test_a_function_is_known_by_its_own_name_for_a_while_alone():
    with registry.known(simple) as name:
        assert name == "simple" and losses.get_loss("simple").function is simple
    with pytest.raises(KeyError, match="unknown loss 'simple'"):
        losses.get_loss("simple")


def test_an_edited_function_stands_in_for_its_older_version_with_its_stages(monkeypatch):
    monkeypatch.setattr(registry, "_LOSSES", dict(registry._LOSSES))
    older = losses.register("simple", stages="refine", networks="reference")(lambda *_, stage: None)
    with registry.known(simple) as name:
        found = losses.get_loss(name)
        assert found.function is simple and found.stages == ("refine",) and found.networks == ("reference",)
    assert losses.get_loss("simple").function is older


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (functools.partial(simple), "a partial has no name: losses.register"),
        (types.SimpleNamespace(__call__=simple), "a SimpleNamespace has no name"),
    ],
)
def test_what_has_no_name_is_refused(given, message):
    with pytest.raises(LossError, match=message), registry.known(given):
        pass


def test_a_decorator_without_a_name_says_how():
    with pytest.raises(LossError, match=r'by a name: @losses.register\("simple"\)'):
        losses.register(simple)


def test_options_stand_behind_the_star_and_are_plain_values(monkeypatch):
    monkeypatch.setattr(registry, "_LOSSES", dict(registry._LOSSES))
    losses.register("placed")(lambda outputs, batch, labels, key, stage, power=1.0: None)
    losses.register("starred")(lambda outputs, batch, labels, key, *, stage, power=1.0: None)
    for loss, power, message in (
        ("placed", 2.0, "options are keyword-only"),
        ("starred", jnp.abs, "a number, a string"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            LossTable({"row": dict(loss=loss, stage="sketch", weight=0.5, power=power)})


@pytest.mark.parametrize("weight", [1.0, 0.1, 0.001])
def test_the_mean_does_not_depend_on_how_large_weights_are(monkeypatch, weight):
    monkeypatch.setattr(registry, "_LOSSES", dict(registry._LOSSES))

    @losses.register("light")
    def light(outputs, batch, labels, key, *, stage):
        there = jnp.zeros(batch.present.shape).at[0, 0].set(weight)
        return Term(jnp.full(there.shape, 2.0), there)

    table = LossTable({"row": dict(loss="light", stage="sketch", weight=1.0)})
    batch = make_batch(1, seed=2)
    outputs = blank_outputs(make_model()[0], batch, KEY, NO_RANDOM_DROPS)
    sums, counts = table.terms(outputs, batch, labels(batch, IDS), KEY)
    assert table.total(sums, counts) == pytest.approx(2.0)
    assert table.metrics(sums, counts)["loss/row"] == pytest.approx(2.0)


def test_a_network_begins_as_its_name_says_whatever_others_there_are():
    for name in ("test_a", "test_b"):
        losses.register_network(name, lambda key: jax.random.normal(key, (2,)), lambda w, x: x)
    alone = scoring.init_networks(["test_b"], {}, KEY)
    both = scoring.init_networks(["test_a", "test_b"], {}, KEY)
    np.testing.assert_array_equal(alone["test_b"], both["test_b"])
    assert (both["test_a"] != both["test_b"]).all()


def test_no_gradient_flows_through_weights(unrolled):
    def weighed(outputs, batch, labels, key, *, stage):
        return Term(jnp.ones(outputs.t.shape), jnp.square(outputs.velocity).mean((-1, -2)))

    _, _, batch, outputs = unrolled
    table = LossTable(row_of("test_weighed", weighed))

    def total(velocity):
        found = dataclasses.replace(outputs, velocity=velocity)
        return table.terms(found, batch, labels(batch, IDS), KEY)[0]["weighed"]

    assert total(outputs.velocity) > 0 and not np.asarray(jax.grad(total)(outputs.velocity)).any()


def test_a_network_that_nobody_registered_is_refused_when_the_table_is_built():
    table = row_of("test_blind", lambda *_, stage: None, networks=("test_eyes",))
    with pytest.raises(KeyError, match="unknown network 'test_eyes'"):
        LossTable(table)
    with pytest.raises(ValueError, match="choose another name"):
        losses.register_network("reference", lambda key: {}, lambda w: w)


def test_an_idea_is_a_function_of_at_most_15_lines():
    assert len(ten_ideas.IDEAS) == 10
    for name in ten_ideas.IDEAS:
        assert len(inspect.getsource(getattr(ten_ideas, name)).splitlines()) <= 15, name


@pytest.mark.long  # a process of its own compiles a train step twice
def test_ten_ideas_train_and_come_to_the_same_on_a_mesh():
    script = pathlib.Path(ten_ideas.__file__)
    env = os.environ | {"PYTHONPATH": str(script.parents[2])}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.split()[1] for line in done.stdout.splitlines()] == [*ten_ideas.IDEAS, *ten_ideas.DECODING]

"""A batch is shown, a loss is tried, trainings are compared: over the trainer's own program."""

import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from process_gen import lab, losses
from process_gen.evaluation.tasks.scenes import Scenes
from process_gen.experiment import cli
from process_gen.experiment.builders import ConfigError
from process_gen.lab import comparing
from process_gen.lab.setting import Setting
from process_gen.losses import LossError, LossTable, Term
from process_gen.losses.anatomy import anatomy
from process_gen.scenes.teacher import teach


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """One small layer, two short trajectories a row."""
    config = cli.load_config("configs/scenes.py:debug")
    config.data.data_dir = str(tmp_path_factory.mktemp("data"))
    config.layout.update(dict(turns=3, trajectories=2, copies=1))
    config.data.examples = 16
    config.data.detour = 0.0
    config.eval.loss_batches = 1
    config.optimizer.name = "adamw"
    with config.unlocked():
        config.losses = dict(
            plan_text=config.losses.plan_text.to_dict(), sketch_flow=config.losses.sketch_flow.to_dict()
        )
    return config


def velocity_l1(outputs, batch, labels, key, *, stage):
    values = jnp.abs(outputs.velocity - outputs.target).mean(-1)
    weights = batch.image_weight * (outputs.has_target & losses.of_stage(batch, stage))
    weights = jnp.broadcast_to(weights[:, :, None, None], values.shape)
    return Term(values, weights, {"t": outputs.t[..., None]})


def test_a_batch_shows_every_token_with_its_losses(config):
    shown = lab.batch(config)
    text, page = str(shown), shown._repr_html_()
    assert "sketch_flow x 10" not in text and "sketch_flow" in text and "plan_text" in text
    assert page.count("<img") == shown.batch.present.sum()
    assert all(colour in page for colour in (lab.showing.COLOURS["plan"], lab.showing.COLOURS["sketch"]))
    with pytest.raises(ConfigError, match=r"row 2 is not in a batch of 2"):
        lab.batch(config, row=2)


OWN = ("mine", "bright")
"""Rows with losses of these tests."""


@pytest.fixture(autouse=True)
def no_earlier_call(monkeypatch):
    """Tests run in any order, and `compare` notes what has changed since its last call."""
    monkeypatch.setattr(comparing, "_LAST", {})


@pytest.fixture(scope="module")
def every_loss(config):
    """With decisions, a loss of one's own, and one of whole turns."""
    losses.register("velocity_l1")(velocity_l1)

    def brightness(outputs, batch, labels, key, *, stage):
        there = outputs.has_target & losses.of_stage(batch, stage)
        return Term(outputs.pixels(outputs.clean_estimate[:, :, 0]).mean((-1, -2, -3)), 0.5 * there)

    losses.register("brightness")(brightness)
    whole, config = cli.load_config("configs/scenes.py:debug"), config.copy_and_resolve_references()
    with config.unlocked():
        config.losses = whole.losses.to_dict() | {
            "mine": dict(loss="velocity_l1", stage="sketch", weight=1.0),
            "bright": dict(loss="brightness", stage="sketch", weight=1.0),
        }
    return config


@pytest.mark.slow  # the model and its losses are compiled
def test_tokens_show_what_the_losses_say_of_them(every_loss):
    setting = Setting.of(every_loss)
    state = setting.state(0)
    plain, valued = lab.batch(every_loss), lab.batch(every_loss, state=state)
    stock = LossTable({name: row for name, row in every_loss.losses.to_dict().items() if name not in OWN})
    for number, one in enumerate(
        plain.trajectories
    ):  # reckoned in another way, for the losses of the package
        known = anatomy(setting.model.layout, plain.batch, stock, setting.model.ids, number).tokens
        shown = [{name: x for name, x in token.losses.items() if name not in OWN} for token in one.tokens]
        assert shown == [token.losses for token in known]
    assert [t.tokens for t in plain.trajectories] == [t.tokens for t in valued.trajectories]
    found, sums = {}, {}
    for rows in valued.rows:
        for *_, names, values in rows:
            for name, value in zip(
                names.split(", ") if names else (), values.split(", ") if values else (), strict=True
            ):
                row, _, weight = name.partition(" x ")
                sums[row] = sums.get(row, 0.0) + float(weight or 1) * float(value)
                found[row] = found.get(row, 0.0) + float(weight or 1)
    one = valued.batch
    assert len(found) >= 6 and set(found) <= set(every_loss.losses)
    assert found["mine"] == found["sketch_flow"] == (one.target >= 0)[~one.refines & one.present].sum()
    assert found["bright"] == 0.5 * found["mine"]
    assert "value" in str(valued) and "mine" in str(plain) and "value" not in str(plain)
    for row in ("plan_text", "mine"):
        tried = lab.try_loss(every_loss.losses[row].to_dict(), every_loss, state=state)
        mean = np.average(tried.values[0], weights=tried.weights[0])
        assert sums[row] / found[row] == pytest.approx(mean, rel=0.01)


def test_a_batch_shows_losses_that_read_networks_which_the_state_lacks(config):
    state = Setting.of(config).state(0)
    mine = config.copy_and_resolve_references()
    with mine.unlocked():
        mine.losses.kl = dict(loss="text_kl", stage="plan", weight=1.0)
    assert "kl" in str(lab.batch(mine)) and "kl, plan_text" in str(lab.batch(mine, state=state))


def test_a_loss_is_tried_on_a_batch(config):
    tried = lab.try_loss(velocity_l1, config)
    assert tried.row == dict(loss="velocity_l1", stage="sketch", weight=1.0)
    counted = tried.weights > 0
    assert tried.count == counted.sum() > 0
    assert tried.mean == pytest.approx(tried.values[counted].mean(), rel=1e-5)
    (problem,) = tried.problems
    assert 0 < tried.metrics["t"] < 1 and problem.startswith("NOT BEYOND THE HEAD")
    again = lab.try_loss(config.losses.sketch_flow, config, state=Setting.of(config).state(1))
    assert again.row["loss"] == "flow_mse" and again.problems == (), "what the user gives is not judged"
    with pytest.raises(LossError, match="stage='refine': a row has a stage of its own, 'sketch'"):
        lab.try_loss(config.losses.sketch_flow, config, stage="refine")
    with pytest.raises(ConfigError, match="numbered from 0, got -1"):
        lab.try_loss(config.losses.sketch_flow, config, number=-1)
    squares = sum(x**2 for name, x in tried.gradients.items() if name != "grad_norm")
    assert tried.gradients["grad_norm"] == pytest.approx(squares**0.5, rel=1e-4) and squares > 0
    assert "gradient of latent" in str(tried) and "velocity_l1 of sketch" in tried._repr_html_()


def test_weights_that_depend_on_predictions_are_refused(config):
    def adaptive(outputs, batch, labels, key, *, stage):
        wrong = jnp.abs(outputs.velocity - outputs.target).mean(-1)
        return Term(wrong, (wrong > wrong.mean()) * 1.0)

    with pytest.raises(LossError, match="depend on what the model predicts") as found:
        lab.try_loss(adaptive, config)
    assert "\n" not in str(found.value)


def test_what_is_no_number_is_said(config):
    def rooted(outputs, batch, labels, key, *, stage):
        base = velocity_l1(outputs, batch, labels, key, stage=stage)
        return base._replace(values=jnp.sqrt(0.0 * base.values), metrics={})

    (problem,) = lab.try_loss(rooted, config).problems
    assert problem.startswith("NO FINITE GRADIENT")


@pytest.mark.slow  # two train steps are compiled
def test_arms_train_on_the_same_numbers_and_differences_are_paired(config):
    losses.register("velocity_l1")(velocity_l1)
    mine = config.copy_and_resolve_references()
    with mine.unlocked():
        mine.losses.sketch_flow = dict(loss="velocity_l1", stage="sketch", weight=10.0)
        mine.losses.further = dict(loss="velocity_l1", stage="refine", weight=1.0)
    arms = {"base": config, "again": config.copy_and_resolve_references(), "mine": mine}
    found = lab.compare(arms, steps=3, seeds=2, evaluations=1, progress=False)
    assert found.finished and found.notes == ["again has the same config and losses as base"]
    assert found.curves["base"] == found.curves["again"]
    assert found.curves["mine"].keys() - found.curves["base"].keys() == {"train/further", "held out/further"}
    ours, theirs = (found.curves[arm]["train/sketch_flow"][1] for arm in ("mine", "base"))
    assert [step for step, _ in ours] == [1, 2, 3]
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5) and ours[2] != theirs[2]
    by_arm = {(d.arm, d.metric): d for d in found.differences()}
    assert by_arm["again", "held out/sketch_flow"].mean == 0
    assert not by_arm["again", "held out/sketch_flow"].sure
    assert ("mine", "held out/further") not in by_arm  # the first arm lacks it
    assert found.plot().startswith(b"\x89PNG") and "95% over seeds" in found._repr_html_()


def test_the_score_is_that_of_the_benchmark(config, monkeypatch):
    class Teacher:
        """Draws every prompt right, but those that count."""

        def __init__(self, *args, **kwargs):
            pass

        def sample(self, prompts, seed):
            known = {request.text: request for request in Scenes(per_group=1).requests.values()}
            for prompt in prompts:
                image = teach(known[prompt], np.random.default_rng(seed)).turns[-1].image
                blank = np.zeros_like(image)
                yield SimpleNamespace(image=blank if known[prompt].category == "counting" else image)

    monkeypatch.setattr(comparing, "Sampler", Teacher)
    setting = Setting.of(config)
    assert comparing._score(setting, setting.state(0), 1, 0) == pytest.approx(7 / 8)


def curve(*values):
    return {seed: [(4, value)] for seed, value in enumerate(values)}


def test_a_difference_is_sure_where_its_interval_leaves_zero_out():
    metric = "held out/a"
    curves = {"base": {metric: curve(1.0, 2.0, 3.0)}, "mine": {metric: curve(0.8, 1.79, 2.81)}}
    found = comparing.Comparison(curves, [])
    (one,) = found.differences()
    assert one.sure and one.high < 0 and one.mean == pytest.approx(-0.2, abs=1e-6) and "less" in str(found)
    curves["mine"][metric] = curve(0.8, 2.2, 3.1)
    assert not found.differences()[0].sure and "no difference seen" in str(found)
    curves["mine"][metric] = curve(0.8)
    assert "one seed" in str(found)


def test_an_interrupt_leaves_what_there_is(config, monkeypatch):
    def trained(setting, seed, steps, evaluations, score):
        yield 1, {"train/loss": 1.0, "train/loss/plan_text": 2.0}
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "_trained", trained)
    found = lab.compare({"base": config, "mine": config}, steps=3, seeds=1, progress=False)
    assert not found.finished and found.curves["base"]["train/plan_text"] == {0: [(1, 2.0)]}
    assert "interrupted" in str(found) and found.plot()


def test_of_an_error_what_was_measured_is_kept(config, monkeypatch):
    def trained(setting, seed, steps, evaluations, score):
        yield 1, {"train/loss": 1.0, "train/loss/plan_text": 2.0}
        raise MemoryError("no room")

    monkeypatch.setattr(comparing, "_trained", trained)
    with pytest.raises(MemoryError) as found:
        lab.compare({"base": config, "mine": config}, steps=3, seeds=1, progress=False)
    kept = found.value.comparison
    assert kept.curves["base"]["train/plan_text"] == {0: [(1, 2.0)]} and "no room" in str(kept)


def test_what_could_not_be_compared_at_the_end_is_refused_before_anything_is_trained(config, monkeypatch):
    monkeypatch.setattr(comparing, "_trained", lambda *_: pytest.fail("trained"))
    stored = config.copy_and_resolve_references()
    stored.data.source = "folder"
    monkeypatch.setattr(comparing.Setting, "of", lambda config: SimpleNamespace(held_out=lambda: None))
    with pytest.raises(ConfigError, match="mine: a score is for config.data.source='scenes'"):
        lab.compare({"base": config, "mine": stored}, steps=3, seeds=1, score=2)
    with pytest.raises(ConfigError, match="base holds nothing out.*config.data.validation"):
        lab.compare({"base": config, "mine": stored}, steps=3, seeds=1)


def test_a_frozen_network_may_begin_with_arrays_that_somebody_holds(config):
    held = {"w": jnp.ones((3,))}
    losses.register_network("test_held", lambda key: held, lambda weights, x: x * weights["w"].sum())

    def reading(outputs, batch, labels, key, *, stage):
        return velocity_l1(outputs, batch, labels, key, stage=stage)

    losses.register("test_reading", networks="test_held")(reading)
    mine = config.copy_and_resolve_references()
    with mine.unlocked():
        mine.losses = dict(mine=dict(loss="test_reading", stage="sketch", weight=1.0))
    (weights,) = Setting.of(mine).state(0).networks["test_held"].values()
    assert weights.unsafe_buffer_pointer() != held["w"].unsafe_buffer_pointer()


def test_weights_that_are_no_numbers_are_named(config):
    def divided(outputs, batch, labels, key, *, stage):
        term = velocity_l1(outputs, batch, labels, key, stage=stage)
        return Term(term.values, 0 * term.weights / (0 * term.weights.sum()))

    with pytest.raises(LossError, match="weights are not finite"):
        lab.try_loss(divided, config)


def test_a_loss_that_is_no_number_is_not_called_equal():
    curves = {"base": {"loss/a": curve(1.0, 2.0, 3.0)}, "mine": {"loss/a": curve(0.8, math.nan, 2.8)}}
    assert comparing.Comparison(curves, []).differences()[0].verdict == "not a number"
    curves = {"base": {"loss/a": curve(1.0)}, "mine": {"loss/a": curve(0.8)}}
    assert comparing.Comparison(curves, []).differences()[0].verdict == ""  # no interval from one seed
    curves["mine"] = {"loss/a": curve(math.inf)}
    assert comparing.Comparison(curves, []).differences()[0].verdict == "not a number"


def test_arms_of_other_data_get_no_verdict():
    metric = "held out/a"
    curves = {"base": {metric: curve(1.0, 2.0, 3.0)}, "mine": {metric: curve(0.8, 1.79, 2.81)}}
    found = comparing.Comparison(curves, [], apart=frozenset({"mine"}))
    assert found.differences()[0].verdict == "other trajectories"


def test_a_changed_loss_is_said(config):
    mine = config.copy_and_resolve_references()
    with mine.unlocked():
        mine.losses.mine = dict(loss="test_changing", stage="sketch", weight=1.0)
    losses.register("test_changing")(velocity_l1)
    assert comparing._changed({"mine": mine}) == []
    assert comparing._changed({"mine": mine}) == []
    losses.register("test_changing")(lambda *_, stage: None)
    (note,) = comparing._changed({"mine": mine})
    assert note == "mine: config.losses.mine changed since the last call; trained afresh"


def test_arms_that_cannot_be_compared_say_so(config):
    with pytest.raises(ConfigError, match="two arms"):
        lab.compare({"base": config}, steps=1)
    other = config.copy_and_resolve_references()
    other.flow.drop_text = 0.3
    (note,), apart = comparing._unlike({"base": config, "mine": other})
    assert note == "mine: config.flow differs from base: batches and noise are not the same" and not apart
    other.eval.loss_batches = 2
    (note,), apart = comparing._unlike({"base": config, "mine": other})
    assert "config.eval.loss_batches, config.flow differs" in note and apart == {"mine"}

"""Images of the model's own in context: what is shown, what stays, what has no label, and the meter."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen import train as training
from process_gen.distributed import sharding
from process_gen.distributed.mesh import make_mesh
from process_gen.experiment import cli
from process_gen.lab.setting import Setting
from process_gen.models import autoencoder
from process_gen.models.config import NO_RANDOM_DROPS
from process_gen.models.inputs import make_inputs
from process_gen.models.unified import UnifiedModel
from process_gen.training.own import OwnStates, _drawing
from process_gen.training.program import TrainProgram
from process_gen.trajectory.batch import Batch
from tests.models.tiny import FLUX, IDS, make_batch
from tests.models.tiny import layout as tiny_layout

STAGES = ("plan", "sketch", "inspect")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """One small model, two short trajectories a row, all images drawn."""
    config = cli.load_config("configs/scenes.py:debug")
    config.data.data_dir = str(tmp_path_factory.mktemp("data"))
    config.layout.update(dict(turns=4, trajectories=2, copies=1))
    config.data.update(dict(examples=16, detour=0.0, wrong=0.5))
    config.optimizer.name = "adamw"
    config.train.own.update(dict(share=1.0, every=2, keep=64))
    config.eval.final_per_group = 0
    names = ("plan_text", "sketch_flow", "inspect_text", "inspect_decision")
    with config.unlocked():
        config.losses = {name: config.losses[name].to_dict() for name in names}
    return config


@pytest.fixture(scope="module")
def built(config):
    """The setting, its state, a batch, and what is fed at a step at which images are drawn."""
    setting = Setting.of(config)
    state, batch = setting.state(0), dict(vars(setting.batch(0)))
    state = state.replace(params=jax.tree.map(lambda x: 1.3 * x + 0.01, state.params))  # its head is zeros
    own = setting.own_states(0)
    batch = {name: x for name, x in batch.items() if x is not None}
    assert own.due(batch)
    own.draw(2, state, batch)
    fed = own.fed(2, batch)
    assert not own.due(batch), "every second batch is"
    return setting, state, batch, own, fed


def right(batch):
    return batch["has_image"] & (batch["target"] == 0)


def test_images_that_are_right_are_shown_as_the_model_draws_them_and_targets_stay(built):
    _, _, batch, _, fed = built
    changed = (fed["shown"] != batch["image"]).any((-1, -2, -3))
    np.testing.assert_array_equal(changed, right(batch))
    assert (batch["has_image"] & ~right(batch)).any(), "the batch has a planted error"
    np.testing.assert_array_equal(fed["unjudged"], batch["has_image"])
    for name, x in batch.items():
        assert fed[name] is x or np.array_equal(fed[name], x)


def test_what_was_drawn_is_shown_again_when_its_trajectories_come_again(built):
    setting, _, batch, own, fed = built
    again = own.fed(3, {name: x[::-1] for name, x in batch.items()})
    np.testing.assert_array_equal(again["shown"], fed["shown"][::-1])
    other = dict(vars(setting.batch(0, number=1)))
    unseen = own.fed(3, {name: x for name, x in other.items() if x is not None})
    known = {tuple(x) for x in batch["prompt_tokens"].reshape(-1, batch["prompt_tokens"].shape[-1])}
    for row, prompts in enumerate(other["prompt_tokens"]):
        if not any(tuple(x) in known for x in prompts):
            assert not unseen["unjudged"][row].any()
            np.testing.assert_array_equal(unseen["shown"][row], other["image"][row])


def test_the_meter_has_every_stage_under_both_contexts(built):
    _, state, batch, own, _ = built
    gap = own.measure(2, state, batch)
    for stage in STAGES:
        teacher, own = (gap[f"context_{context}/stage/{stage}"] for context in ("teacher", "own"))
        assert np.isfinite(teacher) and np.isfinite(own) and teacher > 0
    assert gap["context_own/loss/sketch_flow"] != gap["context_teacher/loss/sketch_flow"]
    assert gap["context_own/loss/inspect_text"] > 0, "inspections of planted errors have labels"


def test_the_share_of_images_that_were_shown_is_told(built, config):
    setting, state, batch, own, _ = built
    counted = OwnStates(config, setting.programs, (0, 1), own._draw)
    assert "context_own/share" not in counted.measure(2, state, batch), "nothing has been fed"
    counted._kept = own._kept
    fed = [counted.fed(step, batch) for step in (2, 3)]
    replaced = sum((one["shown"] != batch["image"]).any((-1, -2, -3)).sum() for one in fed)
    for wanted in (replaced / (2 * batch["has_image"].sum()), None):
        assert counted.measure(4, state, batch).get("context_own/share") == wanted


def test_a_share_of_the_images_is_chosen_by_row_and_step_whatever_the_hosts(built, config):
    setting, _, batch, own, _ = built
    config = config.copy_and_resolve_references()
    config.train.own.share = 0.5
    some = OwnStates(config, setting.programs, (0, 1))
    some._kept = own._kept
    whole = some.fed(3, batch)["unjudged"]
    assert 0 < whole.sum() < batch["has_image"].sum()
    assert (some.fed(5, batch)["unjudged"] != whole).any()
    for row in (0, 1):
        one = OwnStates(config, setting.programs, (row,))
        one._kept = own._kept
        fed = one.fed(3, {name: x[row : row + 1] for name, x in batch.items()})
        np.testing.assert_array_equal(fed["unjudged"][0], whole[row])


def test_no_more_is_kept_than_the_config_says(built, config):
    setting, state, batch, own, _ = built
    config = config.copy_and_resolve_references()
    config.train.own.keep = 1
    small = OwnStates(config, setting.programs, (0, 1), own._draw)
    small.draw(2, state, batch)
    fed = small.fed(2, batch)
    assert len(small._kept) == 1 and 0 < fed["unjudged"].sum() < batch["has_image"].sum()


def test_every_image_size_is_drawn_at_its_first_batch_and_every_second_one_of_its_own(built, config):
    _, _, batch, own, _ = built
    small = {"image": batch["image"][:, :, :8, :8]}
    twos = OwnStates(config, {}, (0, 1), own._draw)
    seen = []
    for of in (batch, small, batch, small, small, batch):
        seen.append(twos.due(of))
        twos._fed[of["image"].shape[-3:-1]] += 1
    assert seen == [True, True, False, False, True, True]


def test_of_micro_batches_each_is_drawn_with_a_key_of_its_own(built, config):
    _, state, batch, own, _ = built
    split = config.copy_and_resolve_references()
    split.train.accumulate = 2
    parted, draw = Setting.of(split).own_states(0), own._draw[batch["image"].shape[-3:-1]]
    shown = batch | {"shown": batch["image"], "unjudged": np.zeros_like(batch["has_image"])}
    whole = parted._draw[batch["image"].shape[-3:-1]](state.params, None, Batch(**shown), jax.random.key(5))
    for row, key in enumerate(jax.random.split(jax.random.key(5), 2)):
        alone = draw(state.params, None, Batch(**{name: x[row : row + 1] for name, x in shown.items()}), key)
        difference = whole["shown"][row].astype(jnp.int32) - alone["shown"][0]
        assert alone["shown"].std() > 1 and abs(difference).max() <= 1


def test_images_that_are_shown_as_they_are_change_no_number(built):
    setting, state, batch, _, _ = built
    key, program = jax.random.key(1), setting.program
    shown = batch | {"shown": batch["image"], "unjudged": np.zeros_like(batch["has_image"])}
    plain, same = (program.losses(state.params, state.given, Batch(**x), key) for x in (batch, shown))
    jax.tree.map(np.testing.assert_array_equal, plain, same)


def test_latents_are_those_of_the_pixels_that_were_drawn():
    config = dataclasses.replace(FLUX, layers=1)
    layout = tiny_layout(latent_values=16, copies=1)
    model, key = UnifiedModel(config, layout, IDS), jax.random.key(0)
    recipe = types.SimpleNamespace(model=model, options=NO_RANDOM_DROPS, accumulate=1)
    spec = Batch.spec(layout, 2, latents=True, shown=True)
    program = TrainProgram(recipe, make_mesh(), spec)
    frozen, batch = autoencoder.random_weights(config, key), make_batch(2, seed=2, copies=1)
    latents = jnp.zeros((2, 5, 4, 16), jnp.float16)
    batch = batch.replace(image_latents=latents, shown=batch.image, shown_latents=latents + 1)
    batch = batch.replace(unjudged=batch.present)
    shapes = sharding.unbox(jax.eval_shape(model.init, key, batch)["params"])
    params = jax.tree.map(lambda x: jnp.full(x.shape, 0.01), shapes)
    drawn = _drawing(program, 1, 1.0)(params, frozen, batch, key)
    wanted = autoencoder.to_tokens(config, drawn["shown"], frozen)
    np.testing.assert_allclose(drawn["shown_latents"], wanted, rtol=1e-2, atol=1e-2)
    inputs = jax.jit(lambda batch: make_inputs(model, batch, key, NO_RANDOM_DROPS, frozen))(batch)
    assert (inputs.turns.latents["image"] == 1).all() and not inputs.flows["clean"].any()
    assert not inputs.flows["previous"].any()
    np.testing.assert_array_equal(inputs.flows["masked"]["after"], batch.present)


def test_without_a_share_nothing_is_built_and_batches_hold_nothing_more(config):
    config = config.copy_and_resolve_references()
    config.train.own.share = 0.0
    setting = Setting.of(config)
    spec = setting.program.spec
    assert spec.shown is spec.unjudged is spec.shown_latents is None
    assert setting.own_states(0) is None


@pytest.mark.slow  # a train step is compiled
def test_a_run_is_fed_and_logs_the_meter(config, tmp_path, monkeypatch):
    config = config.copy_and_resolve_references()
    config.train.update(dict(steps=4, checkpoint_every=4))
    config.train.own.every = 3
    written = {}

    def write(self, step, scalars):
        written.setdefault(step, {}).update(scalars)

    monkeypatch.setattr("clu.metric_writers.MultiWriter.write_scalars", write)
    with jax.numpy_rank_promotion("allow"):
        state = training.train(config, str(tmp_path / "run"))
    assert int(state.step) == 4
    for step in (1, 4):  # the first one, and every third from there
        assert "context_own/stage/sketch" in written[step]
        assert "context_teacher/loss/plan_text" in written[step]
    assert not any(name.startswith("context") for step in (2, 3) for name in written[step])
    assert all(written[step]["finite"] == 1 for step in (1, 2, 3, 4))

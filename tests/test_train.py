"""The loop: resume bit for bit, accumulate exactly, survive a bad step, refuse a bad config."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import skimage
from etils import epath
from PIL import Image

from process_gen import losses
from process_gen import train as training
from process_gen.checkpoints import load
from process_gen.checkpoints.errors import CheckpointError
from process_gen.distributed import sharding
from process_gen.evaluation.tasks.base import TaskError
from process_gen.experiment import builders, cli
from process_gen.experiment.builders import ConfigError
from process_gen.losses import LossTable
from process_gen.models.config import UnrollOptions
from process_gen.models.unroll import unroll
from process_gen.training import evaluating, scoring
from process_gen.training.step import Recipe, init_state, make_train_step
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.controls import labels
from tests.models.tiny import IDS, layout, make_batch, make_model


def debug_config(folder: pathlib.Path):
    config = cli.load_config("configs/scenes.py:debug")
    config.data.data_dir = str(folder / "data")
    config.eval.final_per_group = 0
    config.train.keep = 10
    return config


def train(config, folder: pathlib.Path):
    with jax.numpy_rank_promotion("allow"):  # Optax and Orbax are not ours to be strict about
        return training.train(config, str(folder))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps with checkpoints at two and four."""
    folder = tmp_path_factory.mktemp("train")
    return folder, train(debug_config(folder), folder / "run")


def leaves(state):
    state = state.replace(key=jax.random.key_data(state.key))
    named = jax.tree_util.tree_leaves_with_path(state)
    return [(jax.tree_util.keystr(path), np.asarray(x)) for path, x in named]


def test_a_resumed_run_ends_bit_for_bit_like_one_that_never_stopped(finished):
    folder, straight = finished
    shutil.copytree(folder / "run", folder / "resumed")
    shutil.rmtree(folder / "resumed" / "checkpoints" / "4")
    resumed = train(debug_config(folder), folder / "resumed")
    assert int(straight.step) == int(resumed.step) == 4
    for (name, a), (_, b) in zip(leaves(straight), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    account = json.loads((folder / "resumed" / "goodput.json").read_text())
    assert account["starts"] == 2 and account["step"] == 4 and account["done"]
    for category in ("init", "compile", "restore", "save", "steps", "lost"):  # steps 3 and 4 of the first
        assert account["seconds"][category] > 0, category


def test_the_loss_curves_are_of_all_starts(finished, monkeypatch):
    folder, _ = finished
    shutil.copytree(folder / "run", folder / "curved")
    shutil.rmtree(folder / "curved" / "checkpoints" / "4")
    drawn = []
    monkeypatch.setattr(evaluating.plots, "curves", lambda curves, *_, **__: drawn.append(dict(curves)))
    train(debug_config(folder), folder / "curved")
    lines = [(folder / name / "losses.jsonl").read_text().splitlines() for name in ("run", "curved")]
    assert lines[0] == lines[1]  # steps 3 and 4 once
    logged = [json.loads(line) for line in lines[0]]
    assert drawn[0]["loss"] == [(line["step"], line["losses"]["loss"]) for line in logged]
    assert [step for step, _ in drawn[0]["loss"]] == [1, 2, 3, 4] and len(drawn[0]) > 2


def test_the_weights_to_start_from_are_checked_before_data_are_prepared_and_remembered(finished, tmp_path):
    config = debug_config(tmp_path)
    config.train.init = str(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="nothing"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "data").exists()
    folder, _ = finished
    shutil.copytree(folder / "run", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "4")
    config = debug_config(folder)
    config.train.init = "scenes"  # it began with random weights, and does not read these
    train(config, tmp_path / "resumed")
    stored = load.read_json(epath.Path(tmp_path / "resumed" / "checkpoints" / "4"), load.METADATA)
    assert stored["config"]["train"]["init"] == ""


def test_a_run_leaves_its_config_its_curves_and_its_first_batch(finished):
    folder, _ = finished
    assert json.loads((folder / "run" / "config.json").read_text())["model"]["size"] == "debug"
    for name in ("losses.png", "first_batch.png"):
        assert (folder / "run" / name).stat().st_size > 1000
    assert list((folder / "run").glob("events.out.tfevents.*"))


@pytest.mark.slow  # samples
def test_prompts_of_the_config_are_drawn_at_the_end_whatever_is_evaluated(finished):
    folder, _ = finished
    shutil.copytree(folder / "run", folder / "drawn")
    config = debug_config(folder)
    config.eval.update(dict(tasks=(), prompts=("a red circle", "two stars")))
    train(config, folder / "drawn")
    drawn = sorted(path.name for path in (folder / "drawn" / "sheets").iterdir())
    assert drawn == ["0000004_prompt_0.png", "0000004_prompt_1.png"]


def test_another_model_size_is_refused_by_name(finished):
    folder, _ = finished
    config = debug_config(folder)
    config.train.batch_size = 2
    config.losses.plan_text.weight = 0.5  # a loss weight may change
    config.model.size = "scenes_s"
    with pytest.raises(ConfigError, match="config.model.size is 'scenes_s', .* with 'debug'"):
        train(config, folder / "run")


def test_configs_that_cannot_work_stop_before_any_work(tmp_path):
    config = debug_config(tmp_path)
    config.optimizer.warmup_steps = 10
    with pytest.raises(ConfigError, match="optimizer.warmup_steps"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_workdir_that_is_no_folder_is_refused_before_any_work(tmp_path):
    with pytest.raises(OSError, match="s3://bucket/run: a workdir is a folder .* or gs://"):
        training.train(debug_config(tmp_path), "s3://bucket/run")
    assert not list(tmp_path.iterdir())


def test_a_run_in_a_bucket_ends_like_one_in_a_folder_and_is_resumed_anywhere(finished, gcs):
    folder, straight = finished
    train(debug_config(folder), "gs://bucket/run")
    (epath.Path("gs://bucket/run/checkpoints/4")).rmtree()
    resumed = train(debug_config(folder), "gs://bucket/run")
    for (name, a), (_, b) in zip(leaves(straight), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert gcs.read("run/losses.jsonl") == (folder / "run" / "losses.jsonl").read_bytes()
    assert json.loads(gcs.read("run/goodput.json"))["starts"] == 2
    tops = {name.split("/")[1] for name in gcs.names() if name.startswith("run/")}
    assert {"config.json", "first_batch.png", "losses.png", "checkpoints"} <= tops
    assert len([name for name in tops if name.startswith("events.out.tfevents")]) == 2
    assert not {".lock.json", "evaluation"} & tops
    assert load.open_saved("gs://bucket/run").metadata["step"] == 4


TABLE = LossTable(
    {
        "plan": dict(loss="text_cross_entropy", stage="plan", weight=0.5),
        "sketch": dict(loss="flow_mse", stage="sketch", weight=1.0),
        "refine": dict(loss="flow_mse", stage="refine", weight=1.0),
        "inspect": dict(loss="decision_cross_entropy", stage="inspect", weight=1.0),
    }
)


def recipe(accumulate: int = 1, options: UnrollOptions | None = None) -> Recipe:
    model, _ = make_model()
    quiet = options or UnrollOptions(drop_text=0.0, drop_images=0.0)
    return Recipe(model, TABLE, quiet, optax.sgd(0.1), lambda step: 0.1, ema=0.5, accumulate=accumulate)


def start(made: Recipe):
    spec = Batch.spec(layout(), 4)
    return jax.jit(lambda key: sharding.unbox(init_state(made, spec, key)))(jax.random.key(0))


@pytest.mark.slow  # two train steps are compiled
def test_accumulation_divides_by_the_count_of_the_whole_batch():
    made = recipe(accumulate=2)
    batch = make_batch(4, seed=10)
    first = start(made)
    _, metrics = jax.jit(make_train_step(made))(first, batch)
    keys = jax.random.split(jax.random.fold_in(first.key, 0), 2)

    @jax.jit
    def terms(half, key):
        outputs = unroll(made.model, first.params, half, key, made.options)
        return TABLE.terms(outputs, half, labels(half, IDS), jax.random.fold_in(key, 1))

    parts = [terms(jax.tree.map(lambda x, i=i: x[i::2], batch), keys[i]) for i in range(2)]
    key = jax.random.fold_in(start(made).key, 0)
    held_out = jax.jit(functools.partial(scoring.score_in_parts, made))(
        start(made).params, start(made).given, batch, key
    )
    for name in ("plan", "sketch", "refine", "inspect"):
        total, count = (sum(float(part[i][name]) for part in parts) for i in (0, 1))
        np.testing.assert_allclose(metrics[f"loss/{name}"], total / count, rtol=1e-5)
        np.testing.assert_allclose([one[name] for one in held_out], (total, count), rtol=1e-5)
        assert float(parts[0][1][name]) != float(parts[1][1][name])  # so that the division matters
    for norm in ("grad_norm", "update_norm"):  # what the parts have adds up to all there is
        squares = sum(float(value) ** 2 for name, value in metrics.items() if name.startswith(f"{norm}/"))
        np.testing.assert_allclose(np.sqrt(squares), metrics[norm], rtol=1e-5)


@pytest.mark.slow  # two train steps are compiled
def test_the_order_of_the_loops_changes_nothing_but_rounding(finished):
    """`train.unroll` of the config, over a few steps that draw and drop at random."""
    config, ends = debug_config(finished[0]), {}
    config.flow.update(dict(drop_text=0.3, drop_images=0.3, drop_latents=0.3))
    for order in ("layers", "scan"):
        config.train.unroll = order
        options = builders.build_unroll_options(config)
        assert options.order == order
        made = dataclasses.replace(recipe(options=options), optimizer=optax.adam(1e-3, eps=1e-3))
        state, step, losses = start(made), jax.jit(make_train_step(made)), []
        for seed in range(4):
            state, metrics = step(state, make_batch(4, seed=seed))
            losses.append({name: float(value) for name, value in metrics.items()})
        ends[order] = state, losses
    (one, losses), (other, again) = ends["layers"], ends["scan"]
    for a, b in zip(losses, again, strict=True):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4 if "norm" in name else 1e-5, err_msg=name)
    assert losses[-1]["loss"] < losses[0]["loss"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.params, other.params)


def test_steps_without_a_finite_gradient_are_left_out_until_there_are_too_many_in_a_row(finished, tmp_path):
    @losses.register("test_broken")
    def broken(outputs, batch, labels, key, *, stage):
        return losses.Term(outputs.t * jnp.nan, jnp.ones_like(outputs.t))

    config = debug_config(finished[0])
    with config.unlocked():
        config.losses = dict(broken=dict(loss="test_broken", stage="sketch", weight=1.0))
    config.train.max_nonfinite = 2
    said = r"no finite .*loss.* is saved as step 3; the batch is in nonfinite/"
    with pytest.raises(training.NonFiniteLoss, match=said):
        train(config, tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run" / "nonfinite").iterdir())
    assert kept == ["step_0000001.npz", "step_0000002.npz"]


def test_a_step_that_is_not_finite_changes_nothing_and_says_so():
    made = recipe()
    state = start(made)
    step = jax.jit(make_train_step(made))
    batch = make_batch(4, seed=5)
    good, metrics = step(state, batch)
    assert metrics["finite"] == 1 and int(good.step) == 1
    poisoned = good.replace(params=jax.tree.map(lambda x: x * jnp.inf, good.params))
    kept, metrics = step(poisoned, batch)
    assert metrics["finite"] == 0 and int(kept.step) == 2  # the next batch, and other noise
    for a, b in zip(jax.tree.leaves(kept.opt_state), jax.tree.leaves(poisoned.opt_state), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow  # a train step is compiled for each of two image shapes
def test_photographs_of_several_shapes_train_in_buckets_and_resume_exactly(finished, tmp_path):
    lines = []
    for name in ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg"):  # square, and three wide ones
        shutil.copy(pathlib.Path(skimage.__file__).parent / "data" / name, tmp_path / name)
        lines.append(json.dumps({"prompt": "a circle", "turns": [{"image": name}]}))
    (tmp_path / "trajectories.jsonl").write_text("\n".join(lines))
    config = debug_config(finished[0])
    config.data.source, config.data.path, config.data.buckets = "folder", str(tmp_path), ((16, 48), (32, 48))
    config.train.batch_size = 1
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    state = train(config, whole)
    shutil.copytree(whole, halves)
    shutil.rmtree(halves / "checkpoints" / "4")
    again = train(config, halves)
    for (name, x), (_, y) in zip(leaves(state), leaves(again), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)
    iterator = json.loads(load.read_json(epath.Path(whole) / "checkpoints" / "4", "iterator")["hosts"][0])
    assert iterator["state"]["given"] == {"32x32": 1, "32x48": 3}  # nothing is three times as wide as high
    config.data.buckets = ()
    with pytest.raises(ConfigError, match="config.data.buckets is .*, and .* was trained with"):
        train(config, halves)


@pytest.mark.slow  # a train step and the losses of held-out trajectories are compiled for a mixture
def test_a_mixture_trains_with_losses_of_each_source_on_what_is_learned_and_what_is_held_out(
    finished, tmp_path, monkeypatch
):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    line = json.dumps({"prompt": "a circle", "turns": [{"image": "a.png"}]})
    (tmp_path / "trajectories.jsonl").write_text("\n".join([line] * 20))
    config = debug_config(finished[0])
    config.eval.update(losses_every=2, loss_batches=2)
    with config.unlocked():
        config.data.sources = {
            "scenes": {"weight": 3.0},
            "pictures": {"source": "folder", "path": str(tmp_path), "stages": ("sketch",), "validation": 0.1},
        }
    written = {}
    monkeypatch.setattr(
        "clu.metric_writers.MultiWriter.write_scalars",
        lambda self, step, scalars: written.setdefault(step, {}).update(scalars),
    )
    # Told to stop where the losses of what is held out have just had the step logged.
    with monkeypatch.context() as patched:
        patched.setattr(training.stopping.Stop, "at", lambda self, step: step == 2)
        with pytest.raises(training.stopping.Stopped, match="step 2 is saved"):
            train(config, tmp_path / "run")
    assert sorted(written) == [0, 1, 2]
    train(config, tmp_path / "run")
    assert sorted(written) == [0, 1, 2, 3, 4]
    assert written.pop(0)["validation/loss"] > written[4]["validation/loss"]  # before the first step
    for step, scalars in written.items():
        assert {"source/scenes/sketch_flow", "source/pictures/sketch_flow"} < set(scalars)
        assert scalars["source/pictures/plan_decision"] == 0 < scalars["source/scenes/plan_decision"]
        assert (scalars.get("validation/source/pictures/sketch_flow", 0.0) > 0) == (step in (2, 4))
    assert written[2]["validation/loss"] > written[4]["validation/loss"] > 0
    with config.unlocked():
        config.data.sources.pictures.weight = 2.0
    with pytest.raises(ConfigError, match="data.sources.pictures.weight|2 of pictures"):
        train(config, tmp_path / "run")


def test_sources_of_a_mixture_that_cannot_be_are_refused_by_name(tmp_path):
    for entry, message in (
        ({"wieght": 1.0}, "data.sources.a has no key 'wieght'; did you mean weight"),
        ({"stages": ("scetch",)}, "unknown stage in data.sources.a 'scetch'; did you mean sketch"),
        ({"source": "folder"}, "needs --config.data.sources.a.path=PATH"),
        (
            {"tokenizer": "scenes"},
            "data.sources.a has no key 'tokenizer' of its own, .*--config.data.tokenizer",
        ),
        ({"on_error": "skip"}, "data.sources.a has no key 'on_error' of its own"),
        ({"level": "grid"}, "config.data.sources.a.level must be one of default, .*, got 'grid'"),
        ({"weight": 0}, "config.data.sources.a.weight must be .*, got 0"),
    ):
        config = debug_config(tmp_path)
        with config.unlocked():
            config.data.sources = {"a": entry}
        with pytest.raises(ConfigError, match=message):
            builders.check(config)


def test_an_evaluation_on_the_way_that_fails_ends_no_run(caplog):
    def pictures(step, sampler):
        raise TaskError("the judge does not answer")

    evaluation = SimpleNamespace(make_sampler=lambda state: object(), _pictures=pictures)
    assert training.Evaluation.pictures(evaluation, 3, None) is None
    assert "step 3 was not evaluated: the judge does not answer" in caplog.text

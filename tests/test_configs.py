"""Every config and every variant of it builds, is checked and traces, without computing anything."""

from __future__ import annotations

import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from process_gen import cli, experiment
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.train_step import Recipe, init_state, make_train_step
from process_gen.trajectory.batch import Batch

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").glob("*.py"))


def variants(path: pathlib.Path) -> list[str]:
    """The variants that a config's docstring names as `:variant`."""
    return sorted(set(re.findall(r"[`/.\w]:(\w+)", path.read_text().split('"""')[1])))


CASES = [(path, variant) for path in FILES for variant in variants(path)]
IDS = [f"{path.stem}:{variant}" for path, variant in CASES]


def load(path: pathlib.Path, variant: str) -> ConfigDict:
    return cli.load_config(f"{path}:{variant}")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_docstring_has_the_command_and_the_debug_variant(path):
    document = path.read_text().split('"""')[1]
    assert f"python -m process_gen.train --config=configs/{path.name}" in document
    assert "debug" in variants(path)
    with pytest.raises(cli.CommandError, match="no variant 'nonsense'"):
        load(path, "nonsense")


@pytest.mark.parametrize(("path", "variant"), CASES, ids=IDS)
def test_a_config_is_locked_and_survives_its_checkpoint(path, variant):
    config = load(path, variant)
    with pytest.raises(AttributeError):
        config.train.stepz = 1
    experiment.check(config)
    again = experiment.from_json(experiment.to_json(config))
    experiment.check(again)
    assert experiment.build_layout(again) == experiment.build_layout(config)
    assert experiment.build_model_config(again) == experiment.build_model_config(config)


@pytest.mark.parametrize(("path", "variant"), CASES, ids=IDS)
def test_the_train_step_of_a_config_traces(path, variant):
    traces(load(path, variant))


def test_images_in_context_may_be_vit_tokens_too():
    config = load(ROOT / "configs" / "scenes.py", "debug")
    config.update_from_flattened_dict({"layout.vit_grid": (4, 4)})
    experiment.check(config)
    assert experiment.build_layout(experiment.from_json(experiment.to_json(config))).vit_tokens == 16
    traces(config)


def traces(config: ConfigDict) -> None:
    model = experiment.build_model(config, scenes_tokenizer())
    optimizer, schedule = experiment.build_optimizer(config)
    recipe = Recipe(
        model,
        experiment.build_losses(config),
        experiment.build_unroll_options(config),
        optimizer,
        schedule,
        accumulate=config.train.accumulate,
    )
    spec = Batch.spec(model.layout, config.train.batch_size)
    state = nn.unbox(jax.eval_shape(lambda key: init_state(recipe, spec, key, nn.unbox), jax.random.key(0)))
    after, metrics = jax.eval_shape(make_train_step(recipe), state, spec)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert {f"loss/{name}" for name in config.losses} <= set(metrics)
    assert all(value.shape == () for value in metrics.values())


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    config = load(ROOT / "configs" / "scenes.py", "debug")
    config.optimizer.name = "muon"
    model = experiment.build_model(config, scenes_tokenizer())
    init = jax.eval_shape(
        lambda key, one: model.init(key, one)["params"], jax.random.key(0), Batch.spec(model.layout, 1)
    )
    params = nn.unbox(init)
    state = jax.eval_shape(experiment.build_optimizer(config)[0].init, params)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    second_moments = [path for path in paths if ".nu" in path]  # AdamW keeps them, Muon does not
    assert any("embedding" in path for path in second_moments)
    assert any("head" in path for path in second_moments)
    assert any("layers" in path and "q_norm" in path for path in second_moments)
    assert not any("layers" in path and "kernel" in path for path in second_moments)
    momenta = [path for path in paths if ".mu" in path and "layers" in path and "kernel" in path]
    assert len(momenta) == 2 * 7  # q, k, v, o, gate, up and down of both experts


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_first_moments_take_the_dtype_that_the_config_says(name):
    config = load(ROOT / "configs" / "scenes.py", "debug")
    config.optimizer.update(dict(name=name, moment_dtype="bfloat16"))
    spec = jax.ShapeDtypeStruct((2, 4, 4), jnp.float32)
    params = {"layers": {"q_proj": {"kernel": spec}}, "embedding": spec}
    optimizer = experiment.build_optimizer(config)[0]
    state = jax.eval_shape(optimizer.init, params)
    updates, after = jax.eval_shape(optimizer.update, params, state, params)
    for tree in (state, after):
        moments = jax.tree_util.tree_leaves_with_path(tree)
        found = {
            (".mu" in jax.tree_util.keystr(p), x.dtype.name) for p, x in moments if x.shape == spec.shape
        }
        assert found == {(True, "bfloat16"), (False, "float32")}
    assert {x.dtype.name for x in jax.tree.leaves(updates)} == {"float32"}


BAD = [
    ("optimizer.name", "sgd", "optimizer.name must be one of adamw, muon, got 'sgd'"),
    ("optimizer.muon_learning_rate", 0.0, "muon_learning_rate must be a number above 0"),
    ("train.steps", 0, "train.steps must be a whole number of at least 1, got 0"),
    ("train.log_every", 0, "train.log_every must be"),
    ("data.wrong", 1.5, "data.wrong must be between 0 and 1, got 1.5"),
    ("optimizer.learning_rate", float("nan"), "learning_rate must be a number above 0, got nan"),
    ("optimizer.warmup_steps", 9, r"warmup_steps \(9\) must be below config.train.steps \(4\)"),
    ("train.accumulate", 2, None),
    ("train.accumulate", 3, r"batch_size \(2\) must be a multiple of config.train.accumulate \(3\)"),
    ("layout.trajectories", 9, r"layout.trajectories \(9\) exceeds layout.steps \(6\)"),
    ("layout.plan", 20, "set --config.layout.plan=40"),
    ("layout.vit_grid", (4, 0), r"layout.vit_grid must be two whole numbers above 0, or '\(0, 0\)' for none"),
    ("layout.vit_grid", (4, 4), None),
    ("layout.vit_grid", (17, 4), r"layout.vit_grid \(17, 4\) exceeds model.vit.max_side 16"),
    ("layout.context", "all", "layout.context must be 'full', 'step' or 'last'"),
    ("data.level", "hard", "data.level must be one of default, "),
    ("data.level", "free64", r"set --config.layout.image_size='\(64, 64\)'"),
    ("data.mode", "all", "data.mode must be one of process, "),
    ("data.buckets", ((32, 32), (48,)), r"data.buckets must be sizes of images, e.g. '\(\(512, 512\), "),
    ("data.buckets", ((32, 36),), r"data.buckets: image sides \(32, 36\) must be multiples of 8"),
    ("data.buckets", ((32, 48), (16, 24)), r"data.buckets: \(32, 48\) and \(16, 24\) are of one shape"),
    ("data.buckets", ((32, 48),), "data.buckets is for folders of pictures, scenes have one size"),
    ("data.source", "folder", "needs --config.data.path=FOLDER"),
    ("model.size", "scene_s", "did you mean scenes_s"),
    ("model.logit_chunk", 60, r"logit_chunk \(60\) must divide model.vocab_size \(320\): set it to 40"),
    ("model.logit_chunk", 64, None),
    ("model.remat", "half", "model.remat must be one of none, dots, save_attended, save_qkv, full, offload"),
    ("optimizer.moment_dtype", "float16", "moment_dtype must be one of float32, bfloat16"),
    ("train.local_every", 1, "train.local_every=1 needs --config.train.local_dir=FOLDER"),
    ("train.local_every", 2, r"train.local_every \(2\) must be below config.train.checkpoint_every \(2\)"),
    ("train.local_every", -1, "train.local_every must be a whole number, 0 for none, got -1"),
    ("train.local_dir", "gs://bucket", "local_dir=gs://bucket must be a folder of a disk"),
    ("train.offload", "all", r"train.offload must be one of none, optimizer, optimizer\+ema, got 'all'"),
    ("train.max_nonfinite", 0, "train.max_nonfinite must be a whole number of at least 1, got 0"),
    ("model.dtype", "float16", "model.dtype must be one of float32, bfloat16"),
    ("sampling.flow_steps", 0, "sampling.flow_steps must be"),
    ("mesh.data", 0, "mesh.data must be at least 1, or -1"),
    ("mesh.fsdp", -1, "at most one axis of config.mesh may be -1"),
    ("losses.plan_text.loss", "cross_entropy", "did you mean .*text_cross_entropy"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD, ids=[f"{key}={value}" for key, value, _ in BAD])
def test_a_config_that_cannot_work_says_which_key(key, value, message):
    config = load(ROOT / "configs" / "scenes.py", "debug")
    config.update_from_flattened_dict({key: value})
    if message is None:
        experiment.check(config)
        return
    with pytest.raises(experiment.ConfigError, match=message):
        experiment.check(config)


def test_more_steps_than_a_full_context_holds_is_refused():
    config = load(ROOT / "configs" / "scenes.py", "debug")
    config.update_from_flattened_dict({"layout.context": "full", "sampling.max_steps": 7})
    with pytest.raises(experiment.ConfigError, match=r"max_steps \(7\) exceeds config.layout.steps \(6\)"):
        experiment.check(config)


def test_images_that_the_model_cannot_cut_are_refused():
    config = load(ROOT / "configs" / "scenes.py", "debug")
    config.update_from_flattened_dict({"layout.image_size": (33, 32)})
    with pytest.raises(experiment.ConfigError, match="must be multiples of 8"):
        experiment.check(config)


def test_a_missing_key_is_named():
    fields = experiment.to_json(load(ROOT / "configs" / "scenes.py", "debug"))
    del fields["train"]["keep"]
    with pytest.raises(experiment.ConfigError, match="config.train.keep is missing"):
        experiment.check(experiment.from_json(fields))

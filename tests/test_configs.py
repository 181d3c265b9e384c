"""Every config and every variant of it builds, is checked and traces, without computing anything."""

from __future__ import annotations

import dataclasses
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from process_gen import cli, experiment
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.models.unroll import UnrollOptions
from process_gen.sampling import SamplerConfig
from process_gen.train_step import Recipe, init_state, make_train_step
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.layout import Layout

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").glob("*.py"))


def variants(path: pathlib.Path) -> list[str]:
    """The variants that a config's docstring names as `:variant`."""
    return sorted(set(re.findall(r"[`/.\w]:(\w+)", path.read_text().split('"""')[1])))


CASES = [(path, variant) for path in FILES for variant in variants(path)]
SLOW = ("bagel_7b",)  # their traces take more than ten seconds
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


@pytest.mark.parametrize(
    ("path", "variant"),
    [pytest.param(*case, marks=pytest.mark.slow if case[0].stem in SLOW else ()) for case in CASES],
    ids=IDS,
)
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
    ("layout.trajectories", 9, r"layout.trajectories \(9\) exceeds layout.turns \(8\)"),
    ("layout.turns", 0, "layout.turns must be a whole number of at least 1, got 0"),
    ("layout.before", 20, "set --config.layout.before=40"),
    ("layout.after", 12, "set --config.layout.after=18"),
    (
        "layout.corrections",
        -1,
        r"corrections must be a whole number of at least 0 \(0 is off\), got -1",
    ),
    ("layout.corrections", 2, None),
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
    ("train.local_every", -1, r"train.local_every must be a whole number of at least 0 \(0 is off\), got -1"),
    ("train.local_dir", "gs://bucket", "local_dir=gs://bucket must be a folder of a disk"),
    ("train.offload", "all", r"train.offload must be one of none, optimizer, optimizer\+ema, got 'all'"),
    ("train.max_nonfinite", 0, "train.max_nonfinite must be a whole number of at least 1, got 0"),
    ("model.dtype", "float16", "model.dtype must be one of float32, bfloat16"),
    ("flow.drop_latents", 1.5, "flow.drop_latents must be between 0 and 1, got 1.5"),
    ("flow.drop_vit", -0.1, "flow.drop_vit must be between 0 and 1, got -0.1"),
    ("data.misplan", 2.0, "data.misplan must be between 0 and 1, got 2.0"),
    ("train.unroll", "turns", "train.unroll must be one of layers, scan, got 'turns'"),
    ("train.unroll", "scan", None),
    ("sampling.flow_steps", 0, "sampling.flow_steps must be"),
    ("sampling.max_turns", 0, "sampling.max_turns must be a whole number of at least 1, got 0"),
    ("sampling.interval", (1.0, 0.4), "sampling.interval must be two numbers low < high"),
    ("sampling.renorm", "local", "sampling.renorm must be one of global, "),
    ("sampling.refine_threshold", 1.5, "sampling.refine_threshold must be None or a probability, got 1.5"),
    ("sampling.refine_threshold", 0.5, None),
    ("sampling.max_flow_steps", 1, "sampling.max_flow_steps must be 0, or at least the 2 steps of one image"),
    ("sampling.seed", -1, "sampling.seed must be a whole number"),
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


def test_more_turns_than_a_full_context_holds_are_refused():
    config = load(ROOT / "configs" / "scenes.py", "debug")
    config.update_from_flattened_dict({"layout.context": "full", "sampling.max_turns": 9})
    with pytest.raises(experiment.ConfigError, match=r"max_turns is 9, but .* has room for layout.turns = 8"):
        experiment.check(config)


def test_the_slots_of_steps_that_an_earlier_version_had_are_refused():
    fields = experiment.to_json(load(ROOT / "configs" / "scenes.py", "debug"))
    fields["layout"] |= dict(steps=6, plan=40)
    with pytest.raises(experiment.ConfigError, match=r"the keys \['plan', 'steps'\] of an earlier version"):
        experiment.check(experiment.from_json(fields))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_read_from_a_config_stands_in_it(path):
    """No default of a class decides what no config says."""
    config = load(path, "debug")
    own = {"layout": {"latent_grid", "latent_values"}, "flow": {"order"}, "sampling": {"mode"}}
    for group, kind in (("layout", Layout), ("flow", UnrollOptions), ("sampling", SamplerConfig)):
        assert set(config[group]) == {field.name for field in dataclasses.fields(kind)} - own[group]
    groups = ("data", "train", "optimizer", "eval", "mesh")
    assert {(g, key) for g in groups for key in config[g]} == {
        (g, key) for g in groups for key in load(FILES[0], "debug")[g]
    }
    assert {"init", "unroll", "local_every"} <= set(config.train)
    assert config.sampling.decision_temperature is None and config.sampling.refine_threshold is None
    config.sampling.refine_threshold = 0.5  # what is None can be set


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

"""Every config and every variant of it builds, is checked and traces, without computing anything."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from process_gen.capacity import topology
from process_gen.checkpoints import arrays
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.experiment import builders, cli
from process_gen.models import cost
from process_gen.models.config import UnrollOptions
from process_gen.models.spec import model_spec
from process_gen.sampling import SamplerConfig
from process_gen.training.amounts import of_a_full_row
from process_gen.training.program import build_recipe
from process_gen.training.step import Recipe, ema_decay, init_state, make_train_step
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.layout import Layout
from tests.own_process import printed

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").glob("*.py"))


def variants(path: pathlib.Path) -> list[str]:
    """The variants that a config's docstring names as `:variant`."""
    return sorted(set(re.findall(r"[`/.\w]:(\w+)", path.read_text().split('"""')[1])))


CASES = [(path, variant) for path in FILES for variant in variants(path)]
SLOW = ("bagel_7b",)  # their traces take more than ten seconds
IDS = [f"{path.stem}:{variant}" for path, variant in CASES]
DOCUMENTED = {"dtype", "attention", "remat", "scan_unroll", "autoencoder", "prediction", "logit_chunk"}


def load(path: pathlib.Path, variant: str) -> ConfigDict:
    return cli.load_config(f"{path}:{variant}")


def debug(**changes) -> ConfigDict:
    """The smallest config of scenes, keys as `layout__before`."""
    config = load(ROOT / "configs" / "scenes.py", "debug")
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


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
    builders.check(config)
    assert set(config.model) >= DOCUMENTED
    again = builders.from_json(builders.to_json(config))
    builders.check(again)
    assert builders.build_layout(again) == builders.build_layout(config)
    assert builders.build_model_config(again) == builders.build_model_config(config)


@pytest.mark.parametrize(
    ("path", "variant"),
    [pytest.param(*case, marks=pytest.mark.slow if case[0].stem in SLOW else ()) for case in CASES],
    ids=IDS,
)
def test_the_train_step_of_a_config_traces(path, variant):
    traces(load(path, variant))


def test_images_in_context_may_be_vit_tokens_too():
    config = debug(layout__vit_grid=(4, 4))
    builders.check(config)
    assert builders.build_layout(builders.from_json(builders.to_json(config))).vit_tokens == 16
    traces(config)


def traces(config: ConfigDict) -> None:
    model = builders.build_model(config, scenes_tokenizer())
    recipe = build_recipe(config, model)
    spec = Batch.spec(model.layout, config.train.batch_size)
    state = nn.unbox(jax.eval_shape(lambda key: init_state(recipe, spec, key), jax.random.key(0)))
    after, metrics = jax.eval_shape(make_train_step(recipe), state, spec)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert {f"loss/{name}" for name in config.losses} <= set(metrics)
    assert all(value.shape == () for value in metrics.values())


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    config = debug(optimizer__name="muon")
    model = builders.build_model(config, scenes_tokenizer())
    init = jax.eval_shape(
        lambda key, one: model.init(key, one)["params"], jax.random.key(0), Batch.spec(model.layout, 1)
    )
    params = nn.unbox(init)
    state = jax.eval_shape(builders.build_optimizer(config)[0].init, params)
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
    config = debug(optimizer__name=name, optimizer__moment_dtype="bfloat16")
    spec = jax.ShapeDtypeStruct((2, 4, 4), jnp.float32)
    params = {"layers": {"q_proj": {"kernel": spec}}, "embedding": spec}
    optimizer = builders.build_optimizer(config)[0]
    state = jax.eval_shape(optimizer.init, params)
    updates, after = jax.eval_shape(optimizer.update, params, state, params)
    for tree in (state, after):
        moments = jax.tree_util.tree_leaves_with_path(tree)
        found = {
            (".mu" in jax.tree_util.keystr(p), x.dtype.name) for p, x in moments if x.shape == spec.shape
        }
        assert found == {(True, "bfloat16"), (False, "float32")}
    assert {x.dtype.name for x in jax.tree.leaves(updates)} == {"float32"}


def test_muon_orthogonalizes_in_whatever_precision_is_fastest():
    config = debug(optimizer__name="muon")
    optimizer = builders.build_optimizer(config)[0]
    params = {"layers": {"q_proj": {"kernel": jax.ShapeDtypeStruct((2, 4, 6), jnp.float32)}}}
    text = jax.jit(optimizer.update).lower(params, jax.eval_shape(optimizer.init, params), params).as_text()
    assert "stablehlo.dot_general" in text and "HIGHEST" not in text


BAGEL = ROOT / "configs" / "bagel_7b.py"
DOCUMENT = " ".join(BAGEL.read_text().split('"""')[1].split())


@pytest.mark.parametrize("variant", ["paper", "paper_1024"])
def test_the_base_models_own_values_can_be_given_as_flags(variant, monkeypatch):
    """Each line of flags in the docstring of the 7B config makes a config that works."""
    lines = re.findall(r"^ +(--config\..*)$", BAGEL.read_text(), re.MULTILINE)
    *others, rounded, largest = (shlex.split(line) for line in lines)
    assert len(others) == 2
    chosen = [largest if variant == "paper_1024" else rounded, *others]
    arguments = ["train", f"--config={BAGEL}:{variant}", *(flag for line in chosen for flag in line)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    monkeypatch.setattr(sys, "argv", arguments)  # where the library looks for overrides
    values(arguments)
    config = values.config
    builders.check(config)
    layout = builders.build_layout(config)
    assert layout.vit_tokens == {"paper": 37**2, "paper_1024": 70**2}[variant]
    recipe = build_recipe(config, builders.build_model(config, scenes_tokenizer()))
    assert recipe.ema == 0.9999 and not recipe.ema_warmup
    assert build_recipe(load(BAGEL, variant), recipe.model).ema_warmup


def test_what_the_choices_of_the_7b_config_cost():
    """The figures of its docstring, counted again."""
    config = load(BAGEL, "paper")
    sizes, layout = builders.build_model_config(config), builders.build_layout(config)
    params = arrays.flatten(nn.unbox(model_spec(sizes)))
    gib = 4 / 2**30
    whole = sum(x.size for x in params.values()) * gib
    hidden = {n: x for n, x in params.items() if "layers" in n.split("/") and n.endswith("kernel")}
    assert any(name.startswith("vit/") for name in hidden)
    halves = sum(x.size for x in hidden.values()) * gib
    # Newton-Schulz: five times X X^T, its square, and that times X, of which X has the fewer rows k.
    steps = sum(
        5 * x.shape[0] * (4 * min(x.shape[1:]) ** 2 * max(x.shape[1:]) + 2 * min(x.shape[1:]) ** 3)
        for x in hidden.values()
    )
    muon = steps / (config.train.batch_size * layout.row_tokens) / 1e9

    def turn(layout: Layout) -> float:
        return sum(cost.useful(sizes, layout, of_a_full_row(layout)).values()) / layout.turns / 1e12

    token = turn(layout) * layout.turns / layout.row_tokens * 1e3
    rounded = dataclasses.replace(layout, vit_grid=(37, 37), turns=8)
    large = builders.build_layout(load(BAGEL, "paper_1024"))
    largest = dataclasses.replace(large, vit_grid=(70, 70), turns=3)
    blind = dataclasses.replace(layout, vit_grid=(0, 0))
    for said in (
        f"in float32, {whole:.1f} GiB", f"two moments, {2 * whole:.1f} GiB", f"{halves:.1f} GiB less",
        f"{muon:.1f} GFLOP a token more", f"takes {token:.1f})", f"{np.exp(-1):.0%} of it is still",
        f"{layout.vit_tokens} tokens an image, {turn(layout):.0f} TFLOP a turn ({turn(blind):.0f} without",
        f"{rounded.vit_tokens:,} tokens, {turn(rounded):.0f} TFLOP.",
        f"{largest.vit_tokens:,} tokens, {turn(largest):.0f} TFLOP a turn ({turn(large):.0f} with 308)",
        f"three turns has {largest.row_tokens:,} tokens",
    ):  # fmt: skip
        assert said in DOCUMENT, said
    assert 0.9 < rounded.row_tokens / layout.row_tokens < 1.0


def test_the_average_warms_up_or_is_constant():
    recipe = Recipe(None, None, None, None, None, ema=0.9999)
    steps = np.array([1, 10_000, 100_000])
    np.testing.assert_allclose(ema_decay(recipe, steps), [2 / 11, 10_001 / 10_010, 0.9999], rtol=1e-6)
    assert ema_decay(dataclasses.replace(recipe, ema_warmup=False), 1) == 0.9999


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
    ("layout.corrections", -1, r"corrections must be a whole number of at least 0 \(0 is off\), got -1"),
    ("layout.corrections", 2, None),
    (
        "layout.corrections",
        0,
        "scenes with wrong or misplan above 0 .* --config.data.wrong=0.0 --config.data.mi",
    ),
    ("layout.after", 0, None),
    ("layout.image_size", (33, 32), "must be multiples of 8"),
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
    ("data.source", "folder", "needs --config.data.path=PATH"),
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
    ("train.own.share", 1.5, "config.train.own.share must be between 0 and 1, got 1.5$"),
    ("train.own.every", 0, "config.train.own.every must be a whole number of at least 1, got 0$"),
    ("train.own.keep", 0, "config.train.own.keep must be a whole number of at least 1, got 0$"),
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
    config = debug(**{key: value})
    if message is None:
        builders.check(config)
        return
    with pytest.raises(builders.ConfigError, match=message):
        builders.check(config)


def test_more_turns_than_a_full_context_holds_are_refused():
    with pytest.raises(builders.ConfigError, match=r"max_turns is 9, but .* has room for layout.turns = 8"):
        builders.check(debug(layout__context="full", sampling__max_turns=9))


def test_the_slots_of_steps_that_an_earlier_version_had_are_refused():
    fields = builders.to_json(debug())
    fields["layout"] |= dict(steps=6, plan=40)
    with pytest.raises(builders.ConfigError, match=r"the keys \['plan', 'steps'\] of an earlier version"):
        builders.check(builders.from_json(fields))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_read_from_a_config_stands_in_it(path):
    """No default of a class decides what no config says."""
    config = load(path, "debug")
    own = {"layout": {"latent_grid", "latent_values", "fields"}, "flow": {"order"}, "sampling": {"mode"}}
    for group, kind in (("layout", Layout), ("flow", UnrollOptions), ("sampling", SamplerConfig)):
        assert set(config[group]) == {field.name for field in dataclasses.fields(kind)} - own[group]
    groups = ("data", "train", "optimizer", "eval", "mesh")
    assert {(g, key) for g in groups for key in config[g]} == {
        (g, key) for g in groups for key in load(FILES[0], "debug")[g]
    }
    assert {"init", "unroll", "local_every"} <= set(config.train)
    assert config.sampling.decision_temperature is None and config.sampling.refine_threshold is None
    config.sampling.refine_threshold = 0.5  # what is None can be set


SCENES_KEYS = {"level", "examples", "data_dir", "seed", "wrong", "misplan", "slip", "detour"}


@pytest.mark.parametrize("variant", ["paper", "paper_1024"])
def test_only_a_config_that_trains_on_scenes_has_the_keys_of_scenes(variant):
    config = load(BAGEL, variant)
    assert not (SCENES_KEYS | {"mixture"}) & set(config.data)
    assert set(load(BAGEL, "debug").data) == SCENES_KEYS | {"mixture"} | set(config.data)  # optional
    config.data.source = "scenes"
    with pytest.raises(builders.ConfigError, match="config.data.source=scenes needs ") as error:
        builders.check(config)
    assert all(f"config.data.{key}" in str(error.value) for key in SCENES_KEYS)
    assert "configs/scenes.py" in str(error.value)


def test_a_missing_key_of_scenes_is_named_alone():
    fields = builders.to_json(debug())
    del fields["data"]["slip"]
    with pytest.raises(builders.ConfigError, match="source=scenes needs config.data.slip, which this"):
        builders.check(builders.from_json(fields))


def test_a_stored_config_for_folders_may_still_have_the_keys_of_scenes():
    fields = builders.to_json(load(BAGEL, "paper"))
    fields["data"] |= dict.fromkeys(SCENES_KEYS, "whatever it was")
    builders.check(builders.from_json(fields))


def test_a_missing_key_is_named():
    fields = builders.to_json(debug())
    del fields["train"]["keep"]
    with pytest.raises(builders.ConfigError, match="config.train.keep is missing"):
        builders.check(builders.from_json(fields))


@pytest.mark.slow
@pytest.mark.skipif(
    not topology.is_installed("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"),
    reason="needs JAX's GPU plugin: the cuda13 or the cuda12 extra",
)
@pytest.mark.parametrize(("path", "variant"), CASES, ids=IDS)
def test_a_train_step_lowers_for_gpus(path, variant):
    spec = f"configs/{path.name}:{variant}"
    script = pathlib.Path(__file__).parent / "lower_for_gpus.py"
    assert printed(script, spec, XLA_FLAGS="") == [spec, "ok"]

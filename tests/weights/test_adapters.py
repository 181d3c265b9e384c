"""Adapters: they start as nothing, train alone, and leave merged or by themselves, to come back the same."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from process_gen import convert
from process_gen.checkpoints import arrays
from process_gen.checkpoints.errors import CheckpointMismatch, CheckpointNotFound
from process_gen.checkpoints.published import adapters, sources
from process_gen.checkpoints.store import CheckpointStore
from process_gen.experiment import builders, cli
from process_gen.models.config import LoraConfig
from process_gen.models.unroll import unroll
from process_gen.trajectory.batch import Batch
from process_gen.weights.origin import read_weights
from process_gen.weights.restore import load_model
from tests.checkpoints.published.test_bagel import same
from tests.data.fake import fake_batch
from tests.test_convert import run, same_file
from tests.weights.test_start import FOLDER, ROOT, make_recipe, started

PATTERNS = ("backbone/layers/*_proj/kernel", "vit/layers/q_proj/kernel", "latent_in/kernel")
LORA = {"model.lora.rank": 4, "model.lora.alpha": 8.0, "model.lora.patterns": PATTERNS}


@pytest.fixture(scope="module")
def tuned():
    """A recipe with adapters, and a state that starts from published weights and has moved since."""
    recipe = make_recipe(**LORA)
    state = started(recipe, FOLDER)
    rng = np.random.default_rng(0)

    def move(x):
        return jax.numpy.asarray(0.1 * rng.standard_normal(x.shape), x.dtype)

    params = {
        name: move(x) if adapters.is_adapter(name) else x for name, x in arrays.flatten(state.params).items()
    }
    params, ema = arrays.unflatten_like(state.params, params), jax.tree.map(move, state.ema)
    return recipe, state, state.replace(params=params, ema=ema, step=jax.numpy.ones((), int))


@pytest.fixture(scope="module")
def workdir(tuned, tmp_path_factory):
    """The run as it lies on disk."""
    recipe, _, state = tuned
    folder = tmp_path_factory.mktemp("runs") / "lora"
    config = cli.load_config(f"{ROOT}/configs/bagel_7b.py:debug")
    with config.unlocked():
        config.update_from_flattened_dict(LORA | {"train.init": FOLDER})
    metadata = {"config": builders.to_json(config)}
    with CheckpointStore(str(folder), metadata) as store, jax.numpy_rank_promotion("allow"):
        store.save(1, dataclasses.replace(state, key=jax.random.key(0)))
        store.wait()
    return folder


def outputs(recipe):
    """A program for what losses read, of parameters and autoencoder: hidden states and velocities by name."""
    batch = Batch(**fake_batch(recipe.model.layout, 1, seed=3))

    def run(params, autoencoder):
        found = unroll(recipe.model, params, batch, jax.random.key(1), recipe.options, autoencoder)
        return found.hidden, found.velocity

    return jax.jit(run)


def test_adapters_change_nothing_at_first_and_are_all_that_is_trained(tuned):
    recipe, state, _ = tuned
    named = arrays.flatten(state.params)
    mine = {name for name in named if adapters.is_adapter(name)}
    assert len(mine) == 2 * (2 * 7 + 1 + 1) and arrays.flatten(state.ema).keys() == mine
    assert all(not np.any(x) for name, x in named.items() if name.endswith("lora_b"))
    assert named["backbone/layers/und/q_proj/lora_a"].shape == (3, 64, 4)
    plain = make_recipe()
    for name, x in arrays.flatten(started(plain, FOLDER).params).items():
        np.testing.assert_array_equal(named[name], x)


@pytest.mark.slow  # two forward passes are compiled
def test_a_merged_model_computes_what_adapters_do(tuned):
    recipe, first, state = tuned
    whole = state.average
    merged = sources.tree(adapters.Merged(sources.TreeArrays(whole), recipe.model.config.lora.scale))
    adapted = outputs(recipe)
    wanted = adapted(whole, state.autoencoder)
    plain = make_recipe()
    for x, y in zip(*map(jax.tree.leaves, (outputs(plain)(merged, state.autoencoder), wanted)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * max(1.0, float(abs(y).max())))
    start = adapted(first.params, state.autoencoder)
    assert float(abs(start[0]["before"] - wanted[0]["before"]).max()) > 0.1


def test_a_run_comes_out_merged(tuned, workdir, tmp_path):
    recipe, _, state = tuned
    scale = recipe.model.config.lora.scale
    merged = sources.tree(adapters.Merged(sources.TreeArrays(state.average), scale))
    restored = load_model(str(workdir))
    assert restored.model.config.lora == LoraConfig()
    same(restored.params, merged)
    run(source=workdir, target=tmp_path / "bagel")
    again = read_weights(tmp_path / "bagel")
    assert again.kind == "bagel"
    same(sources.tree(again.params), merged)
    same(
        sources.tree(read_weights(workdir, which="params").params),
        sources.tree(adapters.Merged(sources.TreeArrays(state.params), scale)),
    )
    source = read_weights(workdir).params
    name = "backbone/layers/gen/up_proj/kernel"
    box = (slice(1, 3), slice(5, 20), slice(0, 7))
    np.testing.assert_array_equal(source.read(name, box), source.read(name)[box])
    assert "lora" not in " ".join(source.spec) and source.spec.keys() == arrays.flatten(merged).keys()


def test_adapters_leave_alone_as_peft_names_them_and_come_back(tuned, workdir, tmp_path):
    recipe, _, state = tuned
    out = tmp_path / "adapters"
    run(source=workdir, target=out, to="adapters")
    written = safetensors.numpy.load_file(out / "adapter_model.safetensors")
    fields = json.loads((out / "adapter_config.json").read_text())
    assert (fields["peft_type"], fields["r"], fields["lora_alpha"]) == ("LORA", 4, 8.0)
    assert pathlib.Path(fields["base_model_name_or_path"]) == pathlib.Path(FOLDER).absolute()
    module = "language_model.model.layers.1.self_attn.q_proj_moe_gen"
    tower = "vit_model.vision_model.encoder.layers.0.self_attn.q_proj"
    assert {module, tower} < set(fields["target_modules"])
    assert len(written) == 2 * len(fields["target_modules"]) == 2 * (3 * 14 + 2 + 1)
    ours = state.ema["backbone"]["layers"]["gen"]["q_proj"]
    for theirs, name in (("lora_A", "lora_a"), ("lora_B", "lora_b")):
        np.testing.assert_array_equal(written[f"base_model.model.{module}.{theirs}.weight"].T, ours[name][1])

    for source in (out, workdir):  # rounded once, after they are merged
        run(source=source, target=tmp_path / f"half_{source.name}", to="bagel", dtype="bfloat16")
    same_file(*((tmp_path / f"half_{one.name}" / "ema.safetensors") for one in (out, workdir)))
    run(source=out, target=tmp_path / "merged", to="bagel")
    whole = load_model(str(workdir)).params
    same(sources.tree(read_weights(tmp_path / "merged").params), whole)
    again = started(recipe, str(out))  # and go on being trained
    same(again.ema, state.ema)
    same(again.params, state.average)
    other = make_recipe(**LORA | {"model.lora.rank": 2})
    anew = started(other, str(out))  # of another rank: merged, and new ones
    new, merged = (params["backbone"]["layers"]["gen"]["q_proj"] for params in (anew.params, whole))
    np.testing.assert_array_equal(new["kernel"], merged["kernel"])
    assert not np.any(new["lora_b"]) and new["lora_b"].shape == (3, 2, 64)


def test_adapters_that_do_not_fit_say_why(workdir, tmp_path):
    out = tmp_path / "adapters"
    run(source=workdir, target=out, to="adapters")
    with pytest.raises(convert.ConvertError, match="holds no adapters"):
        run(source=FOLDER, target=tmp_path / "x", to="adapters")
    with pytest.raises(convert.ConvertError, match="--base is for a source of the kind adapters"):
        run(source=FOLDER, target=tmp_path / "x", to="ours", base=FOLDER)
    more = read_weights(workdir)
    more = dataclasses.replace(more, adapted=dataclasses.replace(more.adapted, besides=("embedding",)))
    with pytest.raises(convert.ConvertError, match="has trained embedding besides its adapters"):
        convert.convert(more, str(tmp_path / "x"), "adapters")
    path = out / "adapter_config.json"
    fields = json.loads(path.read_text())
    for changes, error, words in (
        ({"use_dora": True}, CheckpointMismatch, "use_dora.*other than plain LoRA"),
        ({"peft_type": "IA3"}, CheckpointMismatch, "IA3.*other than plain LoRA"),
        ({"r": 0}, CheckpointMismatch, "r=0"),
        ({"r": 8}, CheckpointMismatch, "of another shape"),
        ({"base_model_name_or_path": "gone"}, CheckpointNotFound, "'gone', and nothing is.*--base=PATH"),
    ):
        path.write_text(json.dumps(fields | changes))
        with pytest.raises(error, match=words):
            read_weights(out)
    assert read_weights(out, base=FOLDER).kind == "adapters"
    tensors = safetensors.numpy.load_file(out / "adapter_model.safetensors")
    other = {"base_model.model.h.0.attn.lora_A.weight": next(iter(tensors.values()))}
    safetensors.numpy.save_file(other, out / "adapter_model.safetensors")
    with pytest.raises(CheckpointMismatch, match="has no adapters of matrices of this project"):
        read_weights(out)

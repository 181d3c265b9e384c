"""Models that start from published weights, and what training makes of them out in the world again."""

from __future__ import annotations

import pathlib
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest

from process_gen import convert
from process_gen.checkpoints.errors import CheckpointMismatch, CheckpointNotFound
from process_gen.checkpoints.export import load_weights, save_weights
from process_gen.checkpoints.load import open_saved
from process_gen.checkpoints.published import export_bagel, import_bagel, read_published
from process_gen.checkpoints.published.sources import Replaced, TreeArrays
from process_gen.checkpoints.shipped import located, shipped_weights
from process_gen.data.qwen2 import Qwen2Tokenizer
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.experiment import builders, cli, vocabulary
from process_gen.training.program import build_recipe
from process_gen.training.step import Recipe, TrainState, init_state, make_train_step
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.markup import MARKUP_TOKENS, MEANINGS, SPECIAL_TOKENS
from process_gen.weights.origin import read_weights
from process_gen.weights.start import load_onto_devices, start_from, weights_for
from tests.checkpoints.published.test_bagel import same
from tests.data.tiny_qwen2 import write_tiny_qwen2

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = str(ROOT / "tests" / "golden" / "bagel_tiny")
QUICK = {"xla_backend_optimization_level": 0}


def make_recipe(config: str = "bagel_7b.py:debug", **changes) -> Recipe:
    config = cli.load_config(f"{ROOT}/configs/{config}")
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return build_recipe(config, builders.build_model(config, scenes_tokenizer()))


def blank_state(recipe: Recipe) -> TrainState:
    """A state of zeros: its weights are to be replaced."""
    spec = Batch.spec(recipe.model.layout, 1)
    shapes = jax.eval_shape(lambda: init_state(recipe, spec, jax.random.key(0)))
    shapes = nn.meta.unbox(shapes.replace(key=None))
    return jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), shapes)


def started(recipe: Recipe, path, tokenizer=None) -> TrainState:
    return start_from(blank_state(recipe), recipe.model, weights_for(recipe.model, path), tokenizer)


def read_for(model, path, tokenizer=None):
    return load_onto_devices(read_weights(path, vit=bool(model.layout.vit_tokens)), model, tokenizer)


def test_a_run_starts_from_published_weights():
    recipe = make_recipe()
    state = started(recipe, FOLDER)
    params, autoencoder = import_bagel(read_published(FOLDER))
    same(state.params, params)
    same(state.ema, params)
    same(state.autoencoder, autoencoder)
    same(read_for(recipe.model, FOLDER), (params, autoencoder))


def test_a_run_starts_from_the_weights_that_ship_with_the_package(tmp_path, monkeypatch):
    recipe = make_recipe("scenes.py:quick")
    state = started(recipe, "scenes", scenes_tokenizer())
    params = open_saved(shipped_weights()).params()
    same(state.params, params)
    same(state.ema, params)
    assert state.autoencoder is None
    found = read_weights(shipped_weights())
    assert found.kind == "ours" and found.model.width == recipe.model.config.width
    with pytest.raises(CheckpointNotFound, match="holds no 'params' weights, only ema"):
        read_weights(shipped_weights(), which="params")
    (tmp_path / "scenes").mkdir()  # as the workdir of this run may be called
    monkeypatch.chdir(tmp_path)
    assert located("scenes") == shipped_weights() and located("runs/scenes") == "runs/scenes"
    (tmp_path / "scenes" / "llm_config.json").touch()
    assert located("scenes") == "scenes"
    with pytest.raises(CheckpointMismatch, match="width 128, the config has 32"):
        weights_for(make_recipe("scenes.py:debug").model, shipped_weights())


def test_a_file_says_which_tokenizer_its_weights_are_for_and_of_which_sizes_they_are(tmp_path):
    recipe, path = make_recipe("scenes.py:quick"), str(tmp_path / "w.safetensors")
    params, metadata = load_weights(shipped_weights())
    save_weights(path, params, metadata | {"tokenizer_fingerprint": "of another"})
    with pytest.raises(CheckpointMismatch, match="this is another one"):
        read_for(recipe.model, path, tokenizer=scenes_tokenizer())
    del metadata["config"]
    save_weights(path, params, metadata)
    with pytest.raises(CheckpointMismatch, match="does not say of which sizes its model is"):
        read_for(recipe.model, path)


def test_a_model_may_do_without_the_vit():
    recipe = make_recipe(**{"layout.vit_grid": (0, 0)})
    params, _ = read_for(recipe.model, FOLDER)
    assert "vit" not in params and "connector" not in params


def test_weights_of_other_sizes_are_refused():
    recipe = make_recipe(**{"model.rope_theta": 1e4})
    with pytest.raises(CheckpointMismatch, match=r"rope_theta 1000000.0, the config has 10000.0"):
        read_for(recipe.model, FOLDER)


@pytest.fixture
def published(tmp_path):
    """The golden folder beside a vocabulary that lacks the markup, and has room left for it."""
    folder = pathlib.Path(shutil.copytree(FOLDER, tmp_path / "published"))
    write_tiny_qwen2(folder, size=280)
    return folder


def test_tokens_that_nobody_has_trained_start_as_the_mean_of_their_words(published, tmp_path):
    recipe, tokenizer = make_recipe(), Qwen2Tokenizer(published)
    assert set(tokenizer.added) == set(MARKUP_TOKENS) and tokenizer.vocab_size <= 320
    raw, autoencoder = import_bagel(read_published(published))
    state = started(recipe, published, tokenizer)
    same(state.ema, state.params)
    same(state.autoencoder, autoencoder)
    tables = [
        (np.asarray(params["embedding"]), np.asarray(params["head"]["kernel"]).T)
        for params in (state.params, raw)
    ]
    for found, before in zip(*tables, strict=True):
        wanted = before.copy()
        for token, number in tokenizer.added.items():
            words = tokenizer.encode(f" {MEANINGS[token]}")
            assert words and not set(words) & set(tokenizer.added.values())
            wanted[number] = before[words].mean(0)
        np.testing.assert_array_equal(found, wanted)  # all other rows too
        new = found[list(tokenizer.added.values())]
        assert len({row.tobytes() for row in new}) == len(MARKUP_TOKENS), "no two of them are alike"
    rest = {**raw, "embedding": state.params["embedding"], "head": state.params["head"]}
    same(state.params, rest)

    convert.convert(read_weights(published), str(tmp_path / "run"))
    same(open_saved(tmp_path / "run").params(), raw)  # a conversion leaves them as they are
    same(read_for(recipe.model, str(tmp_path / "run"), tokenizer=tokenizer)[0], state.params)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (published / name).rename(tmp_path / name)
    same(read_for(recipe.model, str(published), tokenizer=Qwen2Tokenizer(tmp_path))[0], state.params)


def test_tokens_that_were_trained_stay_as_they_are(published, tmp_path):
    """In a run of ours, in what was exported from one, and in what that is converted to again."""
    recipe, tokenizer = make_recipe(), Qwen2Tokenizer(published)
    params, autoencoder = read_for(recipe.model, FOLDER)
    exported, again = tmp_path / "exported", tmp_path / "again"
    assert vocabulary.untrained(tokenizer, {}) and not vocabulary.untrained(tokenizer, {"config": {}})
    export_bagel(params, autoencoder, recipe.model.config, exported)
    tokenizer.save(exported)
    convert.convert(read_weights(exported), str(again))
    for place in (exported, again):
        same(read_for(recipe.model, str(place), tokenizer=tokenizer), (params, autoencoder))
    same(read_for(recipe.model, FOLDER, tokenizer=scenes_tokenizer())[0], params)  # it adds nothing


def test_every_special_token_has_a_meaning_of_its_own():
    assert set(MEANINGS) == set(SPECIAL_TOKENS) and len(set(MEANINGS.values())) == len(MEANINGS)


def test_lines_of_a_matrix_are_replaced_in_any_box_of_it():
    matrix = np.arange(20.0, dtype=np.float32).reshape(4, 5)
    for axis in (0, 1):
        lines = {2: np.full(matrix.shape[1 - axis], -1.0), 3: np.arange(100.0, 100 + matrix.shape[1 - axis])}
        source = Replaced(TreeArrays({"m": matrix, "n": matrix}), {"m": (axis, lines)})
        wanted = np.moveaxis(matrix, axis, 0).copy()
        wanted[2], wanted[3] = lines[2], lines[3]
        wanted = np.moveaxis(wanted, 0, axis)
        for box in ((), (slice(1, 3),), (slice(None), slice(3, 5)), (slice(0, 2), slice(0, 2))):
            np.testing.assert_array_equal(source.read("m", box), wanted[box])
            np.testing.assert_array_equal(source.read("n", box), matrix[box])
    np.testing.assert_array_equal(matrix, np.arange(20).reshape(4, 5))


@pytest.mark.slow
def test_weights_trained_and_exported_give_the_same_losses_again(tmp_path):
    from tests.data.fake import fake_batch

    recipe = make_recipe(**{"layout.turns": 2, "layout.trajectories": 1})
    state = started(recipe, FOLDER).replace(key=jax.random.key(1))
    batch = Batch(**fake_batch(recipe.model.layout, 2, seed=3))
    step = jax.jit(make_train_step(recipe), compiler_options=QUICK)
    losses = []
    for _ in range(8):
        state, metrics = step(state.replace(key=jax.random.key(1), step=state.step), batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] and metrics["finite"]
    export_bagel(state.params, state.autoencoder, recipe.model.config, tmp_path)
    params, autoencoder = read_for(recipe.model, str(tmp_path))
    same((params, autoencoder), (state.params, state.autoencoder))
    _, before = step(state, batch)
    _, after = step(state.replace(params=params, autoencoder=autoencoder), batch)
    same(before, after)

"""A checkpoint finds its tokenizer again, and refuses another one."""

from __future__ import annotations

import pathlib
import shutil
import types

import jax
import pytest
from ml_collections import ConfigDict

from process_gen import train as training
from process_gen.checkpoints.errors import CheckpointMismatch
from process_gen.data.qwen2 import Qwen2Tokenizer
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.experiment import builders, cli, vocabulary
from process_gen.experiment.builders import ConfigError
from process_gen.weights.restore import load_model
from tests.data.tiny_qwen2 import PUBLISHED, write_tiny_qwen2

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    """A config with a published tokenizer, what its checkpoint would say, and the step's folder."""
    config = ConfigDict({"data": {"tokenizer": str(write_tiny_qwen2(tmp_path / "published"))}})
    tokenizer = vocabulary.build_tokenizer(config)
    vocabulary.keep(tokenizer, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "4"
    step.mkdir(parents=True)
    return types.SimpleNamespace(
        config=config, tokenizer=tokenizer, metadata=vocabulary.describe(config, tokenizer), step=str(step)
    )


def test_configs_without_a_tokenizer_mean_the_one_that_ships(tmp_path):
    config = ConfigDict({"data": {}})
    tokenizer = vocabulary.build_tokenizer(config)
    assert tokenizer is scenes_tokenizer()
    assert vocabulary.describe(config, tokenizer) == {
        "tokenizer": "scenes",
        "tokenizer_fingerprint": tokenizer.fingerprint,
    }
    vocabulary.keep(tokenizer, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for metadata in ({}, {"tokenizer": "scenes"}):  # checkpoints from before there was a choice
        assert vocabulary.tokenizer_of(metadata, "old.safetensors") is tokenizer


def test_a_checkpoint_finds_its_tokenizer_where_it_was_and_beside_itself(run, tmp_path):
    shutil.rmtree(tmp_path / "published")
    found = vocabulary.tokenizer_of(run.metadata, run.step)
    assert found.fingerprint == run.tokenizer.fingerprint
    (tmp_path / "run" / "tokenizer").rename(tmp_path / "moved")
    with pytest.raises(CheckpointMismatch, match="needs the tokenizer .*published.*no such folder"):
        vocabulary.tokenizer_of(run.metadata, run.step)
    found = vocabulary.tokenizer_of(run.metadata, run.step, str(tmp_path / "moved"))
    assert found.fingerprint == run.tokenizer.fingerprint


def test_another_tokenizer_is_refused(run, tmp_path):
    other = write_tiny_qwen2(tmp_path / "other", PUBLISHED[:-1])
    with pytest.raises(CheckpointMismatch, match="was trained with the tokenizer .*published.*another one"):
        vocabulary.tokenizer_of(run.metadata, run.step, str(other))
    with pytest.raises(CheckpointMismatch, match="another one"):
        vocabulary.check_same(scenes_tokenizer(), run.metadata, run.step)
    vocabulary.check_same(run.tokenizer, run.metadata, run.step)


def test_a_config_that_names_no_tokenizer_folder_cannot_work(tmp_path):
    with pytest.raises(ConfigError, match="holds no Qwen2 tokenizer"):
        vocabulary.build_tokenizer(ConfigDict({"data": {"tokenizer": str(tmp_path)}}))


@pytest.mark.slow
def test_a_run_keeps_its_published_tokenizer_and_is_not_resumed_with_another(tmp_path):
    config = cli.load_config(str(ROOT / "configs" / "scenes.py:debug"))
    with config.unlocked():
        config.data.update(dict(data_dir=str(tmp_path / "data"), examples=8))
        config.data.tokenizer = str(write_tiny_qwen2(tmp_path / "published", size=290))
        config.model.vocab_size = 384
        config.layout.update(dict(prompt=160, before=250, after=100, copies=1))
        config.train.update(dict(steps=1, checkpoint_every=1))
        config.optimizer.warmup_steps = 0
        config.eval.final_per_group = 0
    with jax.numpy_rank_promotion("allow"):  # Optax and Orbax are not ours to be strict about
        training.train(config, str(tmp_path / "run"))
        shutil.rmtree(tmp_path / "published")
        restored = load_model(str(tmp_path / "run"))
        assert (
            isinstance(restored.tokenizer, Qwen2Tokenizer)
            and restored.model.ids.im_end == restored.tokenizer.im_end
        )
        assert restored.tokenizer.added == {}, "the copy holds the added tokens"
        config.data.tokenizer = str(write_tiny_qwen2(tmp_path / "other", PUBLISHED[:-1], size=290))
        with pytest.raises(
            CheckpointMismatch, match="was trained with the tokenizer .*published.*another one"
        ):
            training.train(config, str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="has room for 100: set --config.model.vocab_size="):
        config.model.vocab_size = 100
        builders.build_model(config, restored.tokenizer)

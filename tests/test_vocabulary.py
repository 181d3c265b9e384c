"""A checkpoint finds its tokenizer again, and refuses another one."""

from __future__ import annotations

import shutil
import types

import pytest
from ml_collections import ConfigDict

from process_gen import vocabulary
from process_gen.checkpoints.errors import CheckpointMismatch
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.experiment import ConfigError
from tests.data.tiny_qwen2 import PUBLISHED, write_tiny_qwen2


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

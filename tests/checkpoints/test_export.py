from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from process_gen.checkpoints.errors import CheckpointCorrupt, CheckpointNotFound
from process_gen.checkpoints.export import is_ours, load_weights, save_weights
from process_gen.checkpoints.load import open_saved
from process_gen.checkpoints.published.tensors import open_file

METADATA = {"which": "ema", "size": "debug", "layout": {"prompt": 40}, "level": "default"}


def make_params(rng):
    return {
        "blocks": {"up": jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32), "ids": jnp.arange(3)},
        "head": jnp.asarray(rng.normal(size=(3, 5)), jnp.float32).T,
    }


@pytest.fixture
def file(tmp_path, rng):
    path = tmp_path / "sub" / "w.safetensors"
    save_weights(str(path), make_params(rng), METADATA)
    return path


def test_round_trip_is_exact(file, rng):
    params, metadata = load_weights(str(file))
    wanted = make_params(np.random.default_rng(0))
    assert metadata == METADATA
    np.testing.assert_array_equal(params["blocks"]["up"], wanted["blocks"]["up"])
    np.testing.assert_array_equal(params["blocks"]["ids"], wanted["blocks"]["ids"])
    np.testing.assert_array_equal(params["head"], wanted["head"])
    assert [p.name for p in file.parent.iterdir()] == ["w.safetensors"]


def test_bfloat16_is_kept_and_read_as_float32(file, tmp_path):
    params, _ = load_weights(str(file))
    small = tmp_path / "half.safetensors"
    half = {**params, "head": params["head"].astype(jnp.bfloat16)}
    save_weights(str(small), half, METADATA)
    assert small.stat().st_size < file.stat().st_size
    again, _ = load_weights(str(small))
    assert again["head"].dtype == np.float32 and again["blocks"]["ids"].dtype == params["blocks"]["ids"].dtype
    np.testing.assert_array_equal(again["head"], params["head"].astype(jnp.bfloat16).astype(np.float32))
    assert open_file(small)["head"].dtype == jnp.bfloat16


def test_loads_like_a_checkpoint(file):
    params, _ = load_weights(str(file))
    found = open_saved(file)
    assert found.metadata == METADATA and found.items == ("ema",)
    np.testing.assert_array_equal(found.params()["head"], params["head"])
    with pytest.raises(CheckpointNotFound, match="holds no 'params' weights, only ema"):
        found.params("params")


def test_any_damage_is_noticed(file):
    good = file.read_bytes()
    for size in (0, 4, 8, 40, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:size])
        with pytest.raises(CheckpointCorrupt, match="cut off or garbled"):
            open_saved(file)
    for place in range(0, len(good), 7):
        flipped = bytearray(good)
        flipped[place] ^= 1
        file.write_bytes(bytes(flipped))
        try:
            metadata = open_saved(file).metadata
        except (CheckpointCorrupt, CheckpointNotFound):
            continue
        raise AssertionError(f"byte {place} was changed and the file loaded: {metadata}")


def test_a_header_that_lies_about_its_size(file):
    file.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    for read in (load_weights, is_ours):
        with pytest.raises(CheckpointCorrupt):
            read(str(file))


def test_files_of_other_kinds(tmp_path, rng):
    safetensors.numpy.save_file({"a": np.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointNotFound, match="not written by process_gen"):
        load_weights(str(tmp_path / "foreign.safetensors"))
    save_weights(str(tmp_path / "w.safetensors"), make_params(rng), METADATA)
    assert is_ours(str(tmp_path / "w.safetensors")) and not is_ours(str(tmp_path / "foreign.safetensors"))
    (tmp_path / "w.pkl").write_bytes(b"cos\nsystem\n(S'exit 3'\ntR.")
    with pytest.raises(CheckpointNotFound, match="can run code"):
        open_saved(tmp_path / "w.pkl")
    with pytest.raises(CheckpointNotFound, match="no such weights"):
        open_saved(tmp_path / "missing.safetensors")
    with pytest.raises(ValueError, match="safetensors"):
        save_weights(str(tmp_path / "w.bin"), make_params(rng), {})

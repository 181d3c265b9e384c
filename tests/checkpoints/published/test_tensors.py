"""Reading `.safetensors`: whole and by rows, and every kind of damage."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from process_gen.checkpoints.errors import CheckpointCorrupt, CheckpointNotFound
from process_gen.checkpoints.published import tensors
from tests.checkpoints.published.conftest import shard


@pytest.fixture
def file(tmp_path, rng):
    path = tmp_path / "ema.safetensors"
    values = {
        "a": rng.normal(size=(7, 3)).astype(np.float32),
        "b": np.ones(4, jnp.bfloat16),
        "c": np.float32(2),
    }
    safetensors.numpy.save_file({k: np.asarray(v) for k, v in values.items()}, path)
    return path


def raw(path, entries: dict, size: int) -> None:
    """A file with a header as given and as many bytes of data."""
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))


def test_tensors_and_rows_are_read_as_they_are_stored(file):
    found, wanted = tensors.open_file(file), safetensors.numpy.load_file(file)
    assert found["b"].dtype == jnp.bfloat16
    for name, value in wanted.items():
        np.testing.assert_array_equal(found.read(name), value)
    np.testing.assert_array_equal(found.read("a", 2, 5), wanted["a"][2:5])
    np.testing.assert_array_equal(found.read("a", 5, 99), wanted["a"][5:])
    assert found.read("c").shape == ()


def test_a_file_that_is_cut_off_anywhere_is_refused(file):
    good = file.read_bytes()
    for size in (0, 3, 8, 20, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:size])
        with pytest.raises(CheckpointCorrupt, match="ema.safetensors is cut off or garbled"):
            tensors.open_file(file)
    file.write_bytes(good + b"x")
    with pytest.raises(CheckpointCorrupt, match="the file has"):
        tensors.open_file(file)


def test_a_file_that_becomes_shorter_while_it_is_read(file):
    found = tensors.open_file(file)
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(CheckpointCorrupt, match="it ends inside a"):
        found.read("a")


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": ENTRY | {"data_offsets": [0, 4]}}, "a of F32"),
        ({"a": ENTRY | {"data_offsets": [4, 12]}}, "a of F32"),
        ({"a": ENTRY | {"data_offsets": [0]}}, "cannot be read"),
        ({"a": ENTRY | {"shape": [-2]}}, "a has shape"),
        ({"a": ENTRY | {"shape": [2.0]}}, "a has shape"),
        ({"a": ENTRY | {"shape": [True, 2]}}, "a has shape"),
        ({"a": ENTRY | {"shape": [1 << 62, 4]}}, "a of F32"),
        ({"a": {"shape": [2]}}, "cannot be read"),
        ({"a": 3}, "cannot be read"),
        ({"a": ENTRY, "b": ENTRY}, "b of F32"),  # over the same bytes
    ],
)
def test_headers_that_make_no_sense(tmp_path, entries, message):
    path = tmp_path / "ema.safetensors"
    raw(path, entries, 8)
    with pytest.raises(CheckpointCorrupt, match=message):
        tensors.open_file(path)


def test_headers_that_are_no_json_object(tmp_path):
    path = tmp_path / "ema.safetensors"
    for text in (b"[1]", b"\xff\xfe", b"{", b"[" * 100_000):
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(CheckpointCorrupt):
            tensors.open_file(path)
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointCorrupt, match="a header of"):
        tensors.open_file(path)


def test_quantized_weights_are_not_taken_for_others(tmp_path):
    path = tmp_path / "ema.safetensors"
    raw(path, {"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}, 8)
    with pytest.raises(CheckpointNotFound, match="a is stored as F8_E4M3.*not quantized"):
        tensors.open_file(path)


def test_pickles_are_refused_with_a_word(tmp_path):
    for name in ("ema.pt", "pytorch_model.bin", "model.ckpt"):
        (tmp_path / name).write_bytes(b"\x80\x02.")
        with pytest.raises(CheckpointNotFound, match="pickles .* can run code"):
            tensors.open_file(tmp_path / name)
        with pytest.raises(CheckpointNotFound, match="pickles .* can run code"):
            tensors.find(tmp_path, ("ema",))
        (tmp_path / name).unlink()
    assert tensors.find(tmp_path, ("ema",)) is None


# ---------------------------------------------------------------------- shards


def test_shards_read_like_one_file(file):
    wanted = safetensors.numpy.load_file(file)
    shard(file.parent, 2)
    found = tensors.find(file.parent, ("nothing", "ema"))
    assert set(found) == set(wanted) and len({entry.path for entry in found.values()}) == 2
    for name, value in wanted.items():
        np.testing.assert_array_equal(found.read(name), value)


def test_a_missing_shard_is_named(file):
    index = shard(file.parent)
    (file.parent / "ema-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointCorrupt, match="lacks 1 of 3 shards, with 1 tensors.*ema-00002-of-00003"):
        tensors.open_index(index)


OUTSIDE = ["../ema.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "C:\\x.safetensors", ""]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        *((lambda _, at=at: {"a": at}, CheckpointCorrupt, "names a file outside its") for at in OUTSIDE),
        (lambda _: {"a": "a.bin"}, CheckpointNotFound, "can run code"),
        (lambda places: {name: places[name] for name in "bc"}, CheckpointCorrupt, "a is only in the shard"),
        (lambda places: places | {"a": places["b"]}, CheckpointCorrupt, "a is only in the shard"),
        (lambda places: places | {"d": places["a"]}, CheckpointCorrupt, "d is missing in the shard"),
    ],
)
def test_an_index_that_leads_elsewhere_or_does_not_match_its_shards(file, change, error, message):
    index = shard(file.parent, 2)
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": change(places)}))
    with pytest.raises(error, match=message):
        tensors.open_index(index)


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{}"])
def test_an_index_that_is_none(file, text):
    index = shard(file.parent)
    index.write_text(text)
    with pytest.raises(CheckpointCorrupt, match="it is no index of shards"):
        tensors.open_index(index)

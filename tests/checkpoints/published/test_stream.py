"""Streaming into a checkpoint's step, and arrays read box by box, with blocks of a few bytes."""

import json
import math
import pathlib

import numpy as np
import pytest

from process_gen.checkpoints import arrays, load, manifest
from process_gen.checkpoints.errors import CheckpointCorrupt, CheckpointError
from process_gen.checkpoints.published import import_bagel, read_published, sources, stream
from process_gen.checkpoints.published.rules import LINEAR, Move
from process_gen.checkpoints.published.tensors import Tensors, open_file
from process_gen.checkpoints.store import CheckpointStore
from tests.checkpoints.published.conftest import GOLDEN
from tests.checkpoints.published.test_bagel import same
from tests.own_process import printed


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that the golden model takes many."""
    for module in (sources, stream):
        monkeypatch.setattr(module, "BLOCK", 20_000)
    monkeypatch.setattr(stream, "_WHOLE", 6000)


@pytest.fixture
def step(tmp_path, small_blocks):
    published, counts = read_published(GOLDEN), []
    items = {
        "ema": (published.params, {"head/kernel": (32, 160), "embedding": (320, 64)}),
        "autoencoder": (published.autoencoder, {}),
    }
    stream.write_step(tmp_path / "run", items, {"about": "a test"}, counts.append)
    assert sum(counts) == sum(source.nbytes for source, _ in items.values())
    return tmp_path / "run" / "checkpoints" / "0"


def test_what_is_streamed_reads_like_any_checkpoint(step, tmp_path):
    params, autoencoder = import_bagel(read_published(GOLDEN))
    assert load.latest_step_dir(load.epath.Path(tmp_path / "run")) == step
    found = load.open_saved(tmp_path / "run")
    same(found.params(), params)
    assert found.metadata["about"] == "a test" and found.metadata["step"] == 0
    same(load.open_saved(step).params("autoencoder"), autoencoder)
    with CheckpointStore(str(tmp_path / "run")) as store:
        same(store.restore({"ema": params, "autoencoder": autoencoder})["ema"], params)


def test_chunks_are_the_shards_of_the_mesh(step):
    chunks = json.loads((step / "ema" / "head.kernel" / ".zarray").read_text())["chunks"]
    assert chunks[0] == 32 and 160 % chunks[1] == 0
    layers = json.loads((step / "ema" / "backbone.layers.und.q_proj.kernel" / ".zarray").read_text())
    assert layers["chunks"][0] == 1 and layers["shape"] == [3, 64, 64]


def test_a_flipped_bit_is_noticed(step):
    chunk = step / "ema" / "head.kernel" / "0.0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(bytes(data))
    with pytest.raises(CheckpointCorrupt, match="head.kernel/0.0 has changed"):
        load.open_saved(step).params()


def test_a_workdir_that_is_taken(step, tmp_path):
    with pytest.raises(CheckpointError, match="already holds step 0"):
        stream.write_step(tmp_path / "run", {}, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written to"):
        stream.write_step(tmp_path / "file", {}, {})


def test_a_save_that_was_not_finished_is_no_checkpoint(tmp_path, small_blocks, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(manifest, "write", killed)
    published = read_published(GOLDEN)
    items = {"autoencoder": (published.autoencoder, {})}
    with pytest.raises(KeyboardInterrupt):
        stream.write_step(tmp_path / "run", items, {})
    monkeypatch.undo()
    assert load.steps(load.epath.Path(tmp_path / "run" / "checkpoints")) == []
    stream.write_step(tmp_path / "run", items, {})
    assert load.steps(load.epath.Path(tmp_path / "run" / "checkpoints")) == [0]


def test_stored_arrays_read_what_training_saved(step, tmp_path):
    params = load.open_saved(step).params()
    with CheckpointStore(str(tmp_path / "other")) as store:
        store.save(3, {"params": params})
    for folder, item in ((tmp_path / "other" / "checkpoints" / "3", "params"), (step, "ema")):
        source = sources.StoredArrays(load.epath.Path(folder), item)
        named = arrays.flatten(params)
        assert dict(source.spec) == {name: x.shape for name, x in named.items()}
        name = "backbone/layers/gen/up_proj/kernel"
        np.testing.assert_array_equal(source.read(name), named[name])
        box = (slice(1, 2), slice(None), slice(5, 9))
        np.testing.assert_array_equal(source.read(name, box), named[name][box])


@pytest.mark.parametrize(
    ("shape", "shard", "at", "stacked"),
    [
        ((4, 30, 70), (4, 15, 35), 2, True),
        ((4, 30, 70), (4, 30, 70), 1, True),
        ((1201, 9), (1201, 9), 0, False),
    ],
)
def test_every_chunk_is_written_once_and_every_place_is_covered(small_blocks, shape, shard, at, stacked):
    chunk = stream.chunk_shape(shape, shard, at, stacked, 4)
    assert math.prod(chunk) * 4 <= 20_000
    written = np.zeros(shape, int)
    chunks = np.zeros([-(-s // c) for s, c in zip(shape, chunk, strict=True)], int)
    for box in stream.boxes(shape, chunk, at, stacked, 4):
        written[box] += 1
        ranges = [range(*part.indices(size)) for part, size in zip(box, shape, strict=True)]
        assert all(r.start % c == 0 for r, c in zip(ranges, chunk, strict=True))
        chunks[tuple(slice(r.start // c, -(-r.stop // c)) for r, c in zip(ranges, chunk, strict=True))] += 1
    assert (written == 1).all() and (chunks == 1).all()


def test_a_piece_reads_the_rows_that_it_needs(tmp_path, small_blocks):
    class Counting(Tensors):
        rows = 0

        def read(self, name, start=0, stop=None):
            self.rows += stop - start
            return super().read(name, start, stop)

    name = "language_model.lm_head.weight"
    tensors = Counting(GOLDEN, {name: open_file(GOLDEN / "ema.safetensors")[name]})
    move = Move(name, (320, 64), "head/kernel", None, LINEAR)
    made = sources.Pieces([move], tensors, {"head/kernel": (64, 320)})
    part = made.read("head/kernel", (slice(16, 32), slice(40, 80)))
    assert tensors.rows == 40
    np.testing.assert_array_equal(part, tensors.read(name, 0, 320)[40:80, 16:32].T)


def test_eight_devices_each_hold_their_part():
    script = pathlib.Path(__file__).with_name("eight_devices_published.py")
    assert printed(script) == ["imported", "streamed"]

"""Checkpoints in a bucket: committed by a marker, checked, set aside and removed as in a folder."""

from __future__ import annotations

import numpy as np
import pytest
from etils import epath

from process_gen.checkpoints.errors import CheckpointCorrupt, CheckpointNotFound
from process_gen.checkpoints.load import open_saved
from process_gen.checkpoints.store import CheckpointStore
from tests.checkpoints.test_store import Counting, assert_same, make_state


@pytest.fixture
def saved(gcs, request):
    """A workdir with steps 1 and 2, of three that were saved."""
    workdir = f"gs://bucket/{request.node.name}"
    with CheckpointStore(workdir, {"config": {"a": 1}}, keep=2) as store:
        for step in (0, 1, 2):
            store.save(step, make_state(step), Counting(step))
    return workdir


def test_a_step_is_restored_as_it_was(saved):
    with CheckpointStore(saved) as store:
        assert store.steps() == [1, 2] and store.newest_whole_step() == 2
        iterator = Counting()
        assert_same(store.restore(make_state(7), iterator), make_state(2))
        assert iterator.at == 2 and store.metadata(1)["config"] == {"a": 1}
    params = open_saved(saved).params("params")
    np.testing.assert_array_equal(params["embed"], np.asarray(make_state(2).params["embed"]))


def test_a_changed_file_is_noticed_and_its_step_set_aside(saved, gcs):
    run = saved.removeprefix("gs://bucket/")
    name = max(
        (n for n in gcs.names() if n.startswith(f"{run}/checkpoints/2/params/")),
        key=lambda n: len(gcs.read(n)),
    )
    content = bytearray(gcs.read(name))
    content[len(content) // 2] ^= 1
    gcs.write(name, bytes(content))
    with pytest.raises(CheckpointCorrupt, match="has changed since it was written"):
        open_saved(saved).params("params")
    with CheckpointStore(saved) as store:
        assert store.newest_whole_step() == 1 and store.steps() == [1]
        assert_same(store.restore(make_state(7)), make_state(1))
    assert "has changed" in gcs.read(f"{run}/quarantine/2.txt").decode()
    assert name.replace("/checkpoints/", "/quarantine/") in gcs.names()


def test_a_save_that_was_never_finished_is_no_step_and_is_removed(saved, gcs):
    marker = epath.Path(saved) / "checkpoints" / "2" / "commit_success.txt"
    marker.unlink()
    assert open_saved(saved).place.name == "1"
    with CheckpointStore(saved) as store:
        assert store.steps() == [1] and not (marker.parent).exists()
        store.save(2, make_state(3))
        store.wait()
        assert_same(store.restore(make_state(7)), make_state(3))


def test_a_bucket_without_a_run_is_named(gcs):
    with pytest.raises(CheckpointNotFound, match="no such workdir: gs://bucket/nothing"):
        open_saved("gs://bucket/nothing")

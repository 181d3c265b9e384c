"""Checkpoints on local disks in front of those that last; `tests.faults` has the same with two hosts."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import shutil
import types
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from process_gen.checkpoints import local as local_lib
from process_gen.checkpoints import tiers
from process_gen.checkpoints.errors import CheckpointCorrupt, CheckpointError, CheckpointNotSaved
from process_gen.checkpoints.local import LocalStore
from process_gen.checkpoints.store import CheckpointStore
from process_gen.checkpoints.tiers import NAME, TieredStore, local_folder, open_store
from tests.checkpoints.test_store import Counting, assert_same
from tests.own_process import printed


def make_state(step):
    mesh = Mesh(np.array(jax.devices()[:1]), ("fsdp",))
    w = jax.device_put(jnp.arange(8.0) + step, NamedSharding(mesh, P("fsdp")))
    return {"params": {"w": w, "b": jnp.full(3, step, jnp.bfloat16)}, "key": jax.random.key(step)}


@contextlib.contextmanager
def opened(tmp_path):
    """The two tiers of a run: every step on the local disk, every fourth in the workdir."""
    config = dict(checkpoint_every=4, keep=9, keep_every=0, keep_best=0)
    config |= dict(local_every=1, local_dir=str(tmp_path / "disk"))
    with open_store(config, str(tmp_path / "run"), {"config": {}}, make_state(0)) as store:
        yield store


def run(tmp_path, steps):
    with opened(tmp_path) as store:
        for step in steps:
            assert store.due(step)
            store.save(step, make_state(step), Counting(step), lasting=False)
        store.wait()


def resumed(tmp_path):
    """The step that a restart goes on from, whether it was a local one, and its contents checked."""
    with opened(tmp_path) as store:
        step, data = store.newest_whole_step(), Counting()
        assert_same(store.source.restore(make_state(0), data, step), make_state(step))
        assert store.source.metadata(step)["step"] == step == data.at
        return step, isinstance(store.source, LocalStore)


def local_steps(tmp_path):
    (root,) = (tmp_path / "disk").glob("*/process_0/checkpoints")
    return root, sorted(int(p.name) for p in root.iterdir() if p.name.isdigit())


def test_the_newest_step_of_both_tiers_is_taken(tmp_path):
    run(tmp_path, range(1, 7))
    root, steps = local_steps(tmp_path)
    assert steps == [5, 6]
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["4"]
    assert resumed(tmp_path) == (6, True)
    run(tmp_path, range(7, 9))
    assert resumed(tmp_path) == (8, False)
    assert local_steps(tmp_path) == (root, [6, 7])


def test_a_step_that_has_to_last_does(tmp_path):
    with opened(tmp_path) as store:
        store.save(3, make_state(3), Counting(3))
        store.wait()
        assert store.latest_step() == 3
    shutil.rmtree(tmp_path / "disk")
    assert resumed(tmp_path) == (3, False)


def test_a_broken_local_step_is_set_aside(tmp_path, caplog):
    run(tmp_path, range(1, 8))
    root, steps = local_steps(tmp_path)
    assert steps == [6, 7]
    files = [p for p in (root / "7" / "params").rglob("*") if p.is_file()]
    file = max(files, key=lambda p: p.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    assert resumed(tmp_path) == (6, True)
    assert (root.parent / "quarantine" / "7").is_dir() and "bytes instead of" in caplog.text
    (root / "6" / "manifest.sha256.json").unlink()
    assert resumed(tmp_path) == (4, False)
    assert sorted(p.name for p in (root.parent / "quarantine").iterdir() if p.is_dir()) == ["6", "7"]
    run(tmp_path, range(5, 8))  # whose steps are not those of before
    (root / "6" / "manifest.sha256.json").unlink()  # as a kill leaves a step that was being deleted
    assert resumed(tmp_path) == (7, True)
    assert local_steps(tmp_path)[1] == [7] and not (root.parent / "quarantine" / "6-2").exists()


def test_local_steps_save_a_run_whose_lasting_ones_are_all_broken(tmp_path):
    run(tmp_path, range(1, 6))
    (tmp_path / "run" / "checkpoints" / "4" / "manifest.sha256.json").unlink()
    assert resumed(tmp_path) == (5, True)
    shutil.rmtree(tmp_path / "disk")
    run(tmp_path, [8])
    (tmp_path / "run" / "checkpoints" / "8" / "manifest.sha256.json").unlink()
    with opened(tmp_path) as store, pytest.raises(CheckpointCorrupt):
        store.newest_whole_step()


def test_steps_of_another_mesh_are_not_used(tmp_path, monkeypatch, caplog):
    run(tmp_path, range(1, 6))
    monkeypatch.setattr(local_lib, "placement", lambda state: "another")
    assert resumed(tmp_path) == (4, False)
    assert local_steps(tmp_path)[1] == [] and "lay on the devices in another way" in caplog.text


def test_only_steps_that_every_host_has_from_the_same_start_are_used(tmp_path, monkeypatch, caplog):
    run(tmp_path, range(1, 8))

    def gather(text):
        """What two hosts have: the other one killed step 7, and has 5 of the same start."""
        mine = json.loads(text)
        assert [step for step, _ in mine] == [6, 7] and mine[0][1] == mine[1][1] != ""
        return [text, json.dumps([[5, mine[0][1]], mine[0]])]

    monkeypatch.setattr(local_lib, "allgather_text", gather)
    assert resumed(tmp_path) == (6, True)
    assert local_steps(tmp_path)[1] == [6] and "not every host has this step" in caplog.text
    monkeypatch.setattr(local_lib, "allgather_text", lambda text: [text, json.dumps([[6, "another start"]])])
    assert resumed(tmp_path) == (4, False)
    assert local_steps(tmp_path)[1] == []


def test_steps_of_a_start_have_its_name(tmp_path):
    names = []
    for steps in ([1], [2]):
        run(tmp_path, steps)
        with opened(tmp_path) as store:
            store.newest_whole_step()
            names.append(store.source.metadata(steps[0])[local_lib.START])
    assert len(set(names)) == 2


def test_pieces_of_a_second_copy_are_not_left_out():
    """Devices of a host that hold one piece of the first copy of the model, and another of the second."""

    def of(*pieces):
        shards = [types.SimpleNamespace(index=index, replica_id=copy) for index, copy in pieces]
        array = unittest.mock.create_autospec(jax.Array, instance=True)
        array.addressable_shards = shards
        return local_lib._not_saved({"w": array})

    assert of(("a", 0), ("b", 0)) == of(("a", 1), ("b", 1)) == of(("a", 0), ("a", 1)) == ""
    assert "holds parts of two copies of w" in of(("a", 0), ("b", 1))
    assert local_lib._not_saved({"w": np.zeros(3)}) == ""


def test_a_new_workdir_does_not_meet_the_steps_of_an_old_one(tmp_path):
    run(tmp_path, range(1, 6))
    shutil.rmtree(tmp_path / "run")
    with opened(tmp_path) as store:
        assert store.newest_whole_step() is None


def test_a_copy_of_a_workdir_does_not_meet_the_steps_of_the_first(tmp_path):
    disk, runs = str(tmp_path / "disk"), [tmp_path / name for name in "ab"]
    folder = local_folder(disk, str(runs[0]))
    assert local_folder(disk, str(runs[0])) == folder
    shutil.copytree(*runs)
    assert local_folder(disk, str(runs[1])) != folder
    (runs[0] / NAME).write_text("")  # killed while it was written
    again = pathlib.Path(local_folder(disk, str(runs[0])))
    assert again.parent.parent == tmp_path / "disk" and len(again.parent.name) == 32


def test_what_processes_of_other_machines_have_left_on_a_disk_goes(tmp_path, monkeypatch):
    folder = pathlib.Path(local_folder(str(tmp_path / "disk"), str(tmp_path / "run")))
    mine = (folder / "machine").read_text()
    for index, machine in enumerate((mine, mine, mine, mine, "another")):
        (folder.parent / f"process_{index}" / "7").mkdir(parents=True)
        (folder.parent / f"process_{index}" / "machine").write_text(machine)

    def machines(mine):
        return [mine, mine, "another", mine, "another"]

    monkeypatch.setattr(tiers, "allgather_text", machines)
    monkeypatch.setattr(tiers, "first_message", lambda text: text)
    assert local_folder(str(tmp_path / "disk"), str(tmp_path / "run")) == str(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        "process_0",
        "process_1",
        "process_3",
        "process_4",
    ]


def test_a_disk_that_cannot_be_used_is_named_and_a_full_one_ends_no_run(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"process 0 cannot write to config.train.local_dir=.*file"):
        local_folder(str(tmp_path / "file"), str(tmp_path / "run"))
    with opened(tmp_path) as store:
        store.save(1, make_state(1), Counting(1), lasting=False)
        store.wait()
        full = type(shutil.disk_usage("/"))(10**9, 10**9, 10)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
        store.save(2, make_state(2), Counting(2), lasting=False)
        assert re.search("step 2 needs .*disk.* last good one is step 1", caplog.text)
        with pytest.raises(CheckpointNotSaved):
            store.save(2, make_state(2), Counting(2), lasting=True)


def test_without_a_local_tier_it_is_the_shared_store(tmp_path):
    with TieredStore(CheckpointStore(str(tmp_path), save_every=2)) as store:
        assert store.newest_whole_step() is None and store.due(2) and not store.due(1)
        store.save(1, make_state(1), lasting=False)
        store.poll()
        store.wait()
        assert store.latest_step() == store.newest_whole_step() == 1


def test_eight_devices_go_on_as_they_lay_before(tmp_path):
    assert printed(pathlib.Path(__file__).with_name("eight_devices_local.py"), tmp_path) == ["ok"]

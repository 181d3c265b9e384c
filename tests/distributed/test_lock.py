"""One process at a time in a folder: refusing, waiting, taking over, and nothing left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from process_gen.distributed import lock

ROOT = pathlib.Path(__file__).parents[2]
HOLDER = """
import sys, time
from process_gen.distributed import lock
with lock.hold(sys.argv[1], "a training"):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(folder: pathlib.Path) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], env=env, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def written(folder: pathlib.Path, **changes) -> lock.Owner:
    """A lock as another process may have left it."""
    other = dataclasses.replace(lock.Owner.me("a training"), **changes)
    (folder / lock.NAME).write_text(json.dumps(dataclasses.asdict(other)))
    return other


def test_a_second_process_is_refused_by_name_and_a_killed_one_is_not_in_the_way(tmp_path):
    process = holder(tmp_path)
    try:
        with pytest.raises(lock.Occupied, match=f"a training is going on in .*process {process.pid} of "):
            with lock.hold(tmp_path, "another training"):
                pass
    finally:
        process.kill()
    time.sleep(0.5)  # a zombie: its parent has not asked for its exit code
    with lock.hold(tmp_path, "another training"):
        assert [file.name for file in tmp_path.iterdir()] == [lock.NAME]
    process.wait()
    assert not list(tmp_path.iterdir())


def test_an_address_is_no_folder_to_lock(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("gs://bucket/run", pathlib.Path("s3://bucket/run")):
        with pytest.raises(OSError, match="is an address, and this has to be a folder"):
            with lock.hold(folder, "sampling"):
                pass
    assert not list(tmp_path.iterdir())


def test_it_is_given_up_after_an_error_and_made_with_its_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.hold(tmp_path / "a" / "b", "a training"):
        raise ZeroDivisionError
    assert not list((tmp_path / "a" / "b").iterdir())


def test_who_waits_comes_after(tmp_path):
    order = []

    def second():
        with lock.hold(tmp_path, "the second", wait=True):
            order.append("second")

    with lock.hold(tmp_path, "the first"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(timeout=30)
    assert order == ["first", "second"]


def test_who_waits_can_be_told_to_stop(tmp_path):
    def stop():
        raise KeyboardInterrupt

    with lock.hold(tmp_path, "the first"), pytest.raises(KeyboardInterrupt):
        with lock.hold(tmp_path, "the second", wait=True, check=stop):
            pass


@pytest.mark.parametrize("changes", [dict(started="1"), dict(pid=2**22 + 1)], ids=lambda one: next(iter(one)))
def test_a_process_of_this_host_that_has_ended_is_known_at_once(tmp_path, changes):
    written(tmp_path, **changes)
    with lock.hold(tmp_path, "a training"):
        pass


@pytest.mark.parametrize(
    "changes",
    [dict(host="elsewhere"), dict(boot="another"), dict(pid_namespace="pid:[1]", pid=2**22 + 1)],
    ids=lambda one: next(iter(one)),
)
def test_one_of_another_host_counts_as_long_as_it_gives_a_sign(tmp_path, monkeypatch, changes):
    """A container, or another machine, may have the name of this host."""
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.5)
    other = written(tmp_path, **changes)
    with lock.repeated(lambda: lock._touch(tmp_path / lock.NAME), 0.05):
        with pytest.raises(lock.Occupied, match=f"of {other.host}"):
            with lock.hold(tmp_path, "a training"):
                pass
    with lock.hold(tmp_path, "a training"):  # silent now
        pass


def test_a_file_of_another_version_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.1)
    fields = dataclasses.asdict(written(tmp_path))
    del fields["pid_namespace"]
    fields["of_a_later_version"] = 1
    (tmp_path / lock.NAME).write_text(json.dumps(fields))
    assert lock._read(tmp_path / lock.NAME).pid == os.getpid()
    with lock.hold(tmp_path, "a training"):  # silent
        pass


def test_a_file_that_nobody_finished_is_not_in_the_way_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_TRIES", 3)
    (tmp_path / lock.NAME).write_text("{")
    with lock.hold(tmp_path, "a training"):
        assert lock._read(tmp_path / lock.NAME).pid == os.getpid()


def test_a_lock_of_somebody_else_is_left_alone(tmp_path):
    other = written(tmp_path)
    lock._remove(tmp_path / lock.NAME, lock.Owner.me("a training"))
    assert lock._read(tmp_path / lock.NAME) == other and len(list(tmp_path.iterdir())) == 1


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "link", refuse)
    with lock.hold(tmp_path, "a training"), pytest.raises(lock.Occupied):
        with lock.hold(tmp_path, "another"):
            pass
    assert not list(tmp_path.iterdir())

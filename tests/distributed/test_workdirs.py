"""A workdir in a bucket: one run at a time, and its files are there at the end."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import time

import pytest
from etils import epath

from process_gen.checkpoints import load
from process_gen.common import buckets, files
from process_gen.distributed import lock, workdirs


def contents(gcs, run: str) -> dict[str, bytes]:
    return {
        name.removeprefix(f"{run}/"): gcs.read(name) for name in gcs.names() if name.startswith(f"{run}/")
    }


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.4)
    monkeypatch.setattr(lock, "TOUCH_SECONDS", 0.05)
    monkeypatch.setattr(workdirs, "COPY_SECONDS", 0.05)


def leave_lock(gcs, run: str, **changes) -> None:
    """Writes a lock as another process may have left it."""
    gcs.write(f"{run}/{lock.NAME}", dataclasses.replace(lock.Owner.me("a training"), **changes).to_text())


def test_a_folder_is_used_as_it_is_and_locked(tmp_path):
    with workdirs.opened(str(tmp_path / "run"), "a training") as folder:
        assert folder == tmp_path / "run" and (folder / lock.NAME).exists()
    assert not list(folder.iterdir())


def test_files_are_copied_meanwhile_and_at_the_end_and_fetched_by_the_next_start(gcs, fast):
    gcs.write("copied/checkpoints/1/data", b"left where it is")
    gcs.write("copied/events.out.tfevents.1", b"of an earlier start")
    with workdirs.opened("gs://bucket/copied", "a training") as folder:
        assert not list(folder.iterdir())
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("a")
        (folder / "b.txt").write_text("b")
        (folder / "c.txt.1234.unfinished").write_text("half")
        deadline = time.monotonic() + 10
        while "b.txt" not in contents(gcs, "copied") and time.monotonic() < deadline:
            time.sleep(0.02)
        assert lock.NAME in contents(gcs, "copied")
        (folder / "b.txt").write_text("changed")
        (folder / "sub" / "a.txt").unlink()  # stays there
    assert not folder.exists()
    assert contents(gcs, "copied") == {
        "b.txt": b"changed",
        "sub/a.txt": b"a",
        "checkpoints/1/data": b"left where it is",
        "events.out.tfevents.1": b"of an earlier start",
    }
    with workdirs.opened("gs://bucket/copied/", "a training") as again:
        assert {path.name: path.read_text() for path in again.iterdir()} == {"b.txt": "changed"}


def test_files_are_copied_after_an_error_too(gcs):
    with pytest.raises(ZeroDivisionError), workdirs.opened("gs://bucket/failed", "a training") as folder:
        (folder / "nonfinite").mkdir()
        (folder / "nonfinite" / "batch.npz").write_bytes(b"bad")
        raise ZeroDivisionError
    assert contents(gcs, "failed") == {"nonfinite/batch.npz": b"bad"}


def test_what_cannot_be_copied_is_kept_and_named_and_the_rest_is_copied(gcs, monkeypatch):
    monkeypatch.setattr(gcs, "refused_content", b"refused")
    with pytest.raises(OSError, match="a.txt could not be copied to gs://bucket/refusing") as caught:
        with workdirs.opened("gs://bucket/refusing", "a training") as folder:
            (folder / "a.txt").write_text("refused")
            (folder / "b.txt").write_text("b")
    assert (folder / "a.txt").read_text() == "refused" and str(folder) in str(caught.value)
    assert contents(gcs, "refusing") == {"b.txt": b"b"}


def test_a_scratch_folder_that_has_gone_deletes_nothing(gcs):
    gcs.write("gone/losses.jsonl", b"of before")
    with workdirs.opened("gs://bucket/gone", "a training") as folder:
        shutil.rmtree(folder)
    assert contents(gcs, "gone") == {"losses.jsonl": b"of before"}


def test_folders_that_the_console_has_made_are_no_files(gcs):
    for name in ("console/", "console/evaluation/", "console/checkpoints/", "console/checkpoints/3/"):
        gcs.write(name, b"")
    with workdirs.opened("gs://bucket//console/", "a training") as folder:
        assert not [path for path in folder.rglob("*") if path.is_file()]
    assert load.steps(epath.Path("gs://bucket/console/checkpoints")) == []


def test_a_bucket_that_does_not_answer_is_not_an_empty_one(gcs, monkeypatch):
    gcs.write("mute/checkpoints/3/commit_success.txt", b"")
    gcs.write("mute/losses.jsonl", b"of before")
    monkeypatch.setattr(gcs, "refused", [("GET", "/o[?].*mute")])
    with pytest.raises(OSError, match="the files in gs://bucket/mute cannot be read"):
        with workdirs.opened("gs://bucket/mute", "a training"):
            pass
    with pytest.raises(OSError):
        load.steps(epath.Path("gs://bucket/mute/checkpoints"))
    assert gcs.read("mute/losses.jsonl") == b"of before"


def test_another_run_is_refused_by_name(gcs):
    with workdirs.opened("gs://bucket/locked", "a training"):
        with pytest.raises(lock.Occupied, match="a training is going on in 'gs://bucket/locked', by process"):
            with workdirs.opened("gs://bucket/locked", "a training"):
                pass
        assert lock.NAME in contents(gcs, "locked")
    assert not contents(gcs, "locked")


@pytest.mark.parametrize("changes", [{"started": "1"}, {"host": "elsewhere"}], ids=["dead here", "silent"])
def test_the_lock_of_a_run_that_has_ended_is_taken_over(gcs, fast, changes):
    leave_lock(gcs, "ended", **changes)
    with workdirs.opened("gs://bucket/ended", "a training"):
        owner = json.loads(gcs.read(f"ended/{lock.NAME}"))
        assert owner["pid"] == lock.Owner.me("").pid and owner["host"] != "elsewhere"
    assert not contents(gcs, "ended")


def test_a_lock_that_cannot_be_read_is_taken_over(gcs):
    gcs.write(f"unreadable/{lock.NAME}", b"{")
    with workdirs.opened("gs://bucket/unreadable", "a training"):
        assert lock.Owner.from_text(gcs.read(f"unreadable/{lock.NAME}")) is not None


def test_an_owner_elsewhere_that_is_alive_is_not_disturbed(gcs, fast, monkeypatch):
    leave_lock(gcs, "alive", host="elsewhere")
    monkeypatch.setattr(time, "sleep", lambda _: leave_lock(gcs, "alive", host="elsewhere"))  # it touches it
    with pytest.raises(lock.Occupied, match="by process .* of elsewhere"):
        with workdirs.opened("gs://bucket/alive", "a training"):
            pass


def test_of_two_that_take_it_at_the_same_time_one_does(gcs):
    owners = [workdirs._Lease("gs://bucket/race", lock.Owner.me("a training")) for _ in range(2)]
    generation, nobody = owners[0].read()
    assert nobody is None and [owner.take(generation) for owner in owners] == [True, False]
    owners[1].release()  # not its own: stays
    assert lock.NAME in contents(gcs, "race")
    owners[0].release()
    assert not contents(gcs, "race")


def test_a_lost_answer_is_no_lost_lock(gcs, caplog):
    lease = workdirs._Lease("gs://bucket/answer", lock.Owner.me("a training"))
    assert lease.take(lease.read()[0])
    gcs.write(
        f"answer/{lock.NAME}", gcs.read(f"answer/{lock.NAME}")
    )  # written, and the answer did not arrive
    lease.touch()
    lease.touch()
    assert "taken" not in caplog.text
    leave_lock(gcs, "answer", host="elsewhere")
    lease.touch()
    assert "another process has taken the lock of this workdir over" in caplog.text
    lease.touch()  # which leaves it alone
    lease.release()
    assert json.loads(gcs.read(f"answer/{lock.NAME}"))["host"] == "elsewhere"


def test_a_failed_renewal_does_not_lose_the_lock(gcs, monkeypatch):
    lease = workdirs._Lease("gs://bucket/renewed", lock.Owner.me("a training"))
    assert lease.take(lease.read()[0])
    gcs.write(f"renewed/{lock.NAME}", gcs.read(f"renewed/{lock.NAME}"))
    monkeypatch.setattr(lease, "read", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lease.touch()
    monkeypatch.undo()
    lease.touch()
    lease.release()
    assert not contents(gcs, "renewed")


@pytest.mark.parametrize(
    "refused, message",
    [
        (("POST", "denied"), "the workdir gs://bucket/denied cannot be written to"),
        (("GET", "/b/bucket$"), "the bucket bucket cannot be looked at; it takes storage.buckets.get"),
    ],
)
def test_what_an_account_may_not_do_is_named_and_final(gcs, monkeypatch, refused, message):
    monkeypatch.setattr(gcs, "refused", [refused])
    with pytest.raises(OSError, match=message) as caught:
        with workdirs.opened("gs://bucket/denied", "a training"):
            pass
    assert not files.passes(caught.value)


def test_other_failures_of_a_bucket_pass():
    assert files.passes(buckets.failure(RuntimeError("503, backend error"), "x"))
    assert not files.passes(buckets.failure(FileNotFoundError("bucket"), "x"))


def test_what_is_shown_is_where_the_user_finds_it(tmp_path):
    file = pathlib.Path("runs/one/evaluation/index.html")
    assert workdirs.shown(file, pathlib.Path("runs/one"), epath.Path("/x/runs/one")) == str(file)
    there = workdirs.shown(tmp_path / "a" / "b", tmp_path, epath.Path("gs://bucket/run"))
    assert there == "gs://bucket/run/a/b"

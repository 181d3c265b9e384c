"""The folder of a run: on a file system that all hosts see, or `gs://bucket/folder`.

In a bucket, every host writes its part of a checkpoint directly (`process_gen.checkpoints.store`). All other
files of a run are written to a scratch folder of each host, and copied to the bucket every `COPY_SECONDS` and
at the end. The lead host first fetches what earlier starts have left there, so any machine can go on.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator

import tensorstore as ts
from absl import logging
from etils import epath

from process_gen.common import buckets
from process_gen.distributed import hosts, lock

COPY_SECONDS = 30.0
"""Time between two copies to a bucket: a killed run loses the metrics of so long, a stopped one none."""
_NOT_FETCHED = ("checkpoints", "quarantine", "profile", "nonfinite")
"""Folders that are large, or that no start reads again."""
_RETRIES = 6  # of a request, with growing pauses: a minute in all
_EVENTS = "events.out.tfevents"
"""How the names of TensorBoard's files begin: every start writes one of its own."""


@contextlib.contextmanager
def opened(workdir: str, what: str) -> Iterator[pathlib.Path]:
    """Yields the folder for the files of this process; the lead host locks the workdir meanwhile.

    Args:
      workdir: a folder, made if need be, or `gs://bucket/folder`.
      what: is told to another process that finds the lock.

    Raises:
      Occupied: another run writes to the workdir.
      OSError: it cannot be written.
    """
    if buckets.is_bucket(workdir):
        buckets.connect()
        with (
            _held(workdir, what) if hosts.is_lead() else contextlib.nullcontext(),
            _copied(workdir) as folder,
        ):
            yield folder
    elif "://" in workdir:
        raise OSError(f"--workdir={workdir}: a workdir is a folder that all hosts see, or gs://bucket/folder")
    else:
        with lock.hold(workdir, what) if hosts.is_lead() else contextlib.nullcontext():
            yield pathlib.Path(workdir)


def shown(path: pathlib.Path, folder: pathlib.Path, workdir: epath.Path) -> str:
    """A file in the folder that `opened` has yielded, as the user finds it: a path, or an address."""
    return str(workdir / path.relative_to(folder) if buckets.is_bucket(workdir) else path)


# -------------------------------------------------------------------- the lock


class _Lease:
    """The object that locks a workdir in a bucket.

    A write is conditional on the object's generation, so of several processes one succeeds. Its owner writes
    it again every few seconds; see `lock` for when an owner counts as dead.
    """

    def __init__(self, workdir: str, owner: lock.Owner):
        self._owner = owner
        self._generation = b""  # that of the object while it is this process's
        context = ts.Context({"gcs_request_retries": {"max_retries": _RETRIES}})
        self._objects = ts.KvStore.open(f"{workdir.rstrip('/')}/", context=context).result()

    def read(self) -> tuple[bytes, lock.Owner | None]:
        """The generation of the object, and who wrote it; None where it is missing or unreadable."""
        found = self._objects.read(lock.NAME).result()
        return found.stamp.generation, lock.Owner.from_text(found.value)

    def take(self, known: bytes) -> bool:
        """Makes the object this process's; False if its generation is not the one known any more."""
        written = self._objects.write(lock.NAME, self._owner.to_text(), if_equal=known).result()
        self._generation = written.generation
        return bool(written.generation)

    def touch(self) -> None:
        """Shows that the owner is alive."""
        if not self._generation or self.take(self._generation):
            return
        generation, owner = self.read()
        if owner == self._owner:  # the answer to a write was lost
            self._generation = generation
        else:
            logging.error("%s has taken the lock of this workdir over", owner.name if owner else "somebody")

    def release(self) -> None:
        """Removes the object, if it is still this process's."""
        if self._generation:
            self._objects.write(lock.NAME, None, if_equal=self._generation).result()


@contextlib.contextmanager
def _held(workdir: str, what: str) -> Iterator[None]:
    """Locks a workdir in a bucket during the block."""
    file = f"{workdir.rstrip('/')}/{lock.NAME}"
    try:
        lease = _Lease(workdir, lock.Owner.me(what))
        generation, other = lease.read()
        if other is not None:
            if not lock.is_dead(other, file, lambda: lease.read()[0], lambda: None):
                raise other.occupied(workdir, file)
            logging.warning("%s: taken over from %s, which has ended", file, other.name)
        if not lease.take(generation):
            raise lock.Occupied(
                f"another process has just begun {what} in {workdir!r}: choose another folder"
            )
    except ValueError as error:  # TensorStore's, for whatever a bucket refuses
        raise OSError(f"the workdir {workdir} cannot be written to ({error})") from error
    try:
        with _repeated(lease.touch, lock.TOUCH_SECONDS):
            yield
    finally:
        with contextlib.suppress(ValueError):
            lease.release()


@contextlib.contextmanager
def _repeated(work: Callable[[], None], seconds: float) -> Iterator[None]:
    """Does `work` every so often in a thread.

    Errors are logged: the next time may go well.
    """
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            try:
                work()
            except Exception as error:  # of gcsfs or TensorStore: they share no base class
                logging.warning("%s", error)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# ------------------------------------------------------------------ the copies


class _Copy:
    """A scratch folder, and the folder of a bucket to which its files are copied."""

    def __init__(self, workdir: str):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="process_gen_"))
        self._bucket = epath.Path(workdir)
        self._sent: dict[str, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Fetches the files of earlier starts that this one may read."""
        if not self._bucket.is_dir():
            return
        for top in self._bucket.iterdir():
            if top.name in (*_NOT_FETCHED, lock.NAME) or top.name.startswith(_EVENTS):
                continue
            for path in buckets.fetch(top, self.folder / top.name):
                self._sent[self._name(path)] = _stamp(path)

    def _name(self, path: pathlib.Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def send(self) -> None:
        """Copies new and changed files to the bucket, and removes those there that are removed here."""
        found = {self._name(path): path for path in self.folder.rglob("*") if path.is_file()}
        for name, path in sorted(found.items()):
            with contextlib.suppress(FileNotFoundError):  # it was renamed or removed just now
                if not name.endswith(".unfinished") and self._sent.get(name) != (stamp := _stamp(path)):
                    (self._bucket / name).write_bytes(path.read_bytes())
                    self._sent[name] = stamp
        for name in self._sent.keys() - found:
            (self._bucket / name).unlink(missing_ok=True)
            del self._sent[name]


@contextlib.contextmanager
def _copied(workdir: str) -> Iterator[pathlib.Path]:
    """Yields a scratch folder whose files are copied to a bucket during the block and at its end."""
    copy = _Copy(workdir)
    if hosts.is_lead():
        copy.fetch()
    logging.info("files are written to %s and copied to %s every %.0f s", copy.folder, workdir, COPY_SECONDS)
    try:
        with _repeated(copy.send, COPY_SECONDS):
            yield copy.folder
    finally:
        try:
            copy.send()
            shutil.rmtree(copy.folder, ignore_errors=True)
        except Exception as error:  # of gcsfs; the error of the block, if any, is the one to show
            logging.error("%s keeps what could not be copied to %s (%s)", copy.folder, workdir, error)


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns

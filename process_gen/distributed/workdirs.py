"""The folder of a run: on a file system that all hosts see, or `gs://bucket/folder`.

In a bucket, every host writes its part of a checkpoint directly (`process_gen.checkpoints.store`). All other
files of a run are written to a scratch folder of each host, and copied to the bucket every `COPY_SECONDS` and
at the end; nothing is deleted there. The lead host first fetches what earlier starts have left, so any
machine can go on.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import tensorstore as ts
from absl import logging
from etils import epath

from process_gen.common import buckets
from process_gen.distributed import hosts, lock, stopping

COPY_SECONDS = 30.0
"""Time between two copies to a bucket, or ten times that which one takes: a killed run loses the metrics of
so long, a stopped one none."""
STOP_SECONDS = 240.0
"""How long a host that was told to stop waits for the copies of the others; launchers give it 300 s."""
_EVENTS = "events.out.tfevents"
"""How the names of TensorBoard's files begin: every start writes one of its own."""
_RETRIES = {"max_retries": 6, "max_delay": "4s"}  # 19 s in all: less than `lock.SILENT_SECONDS`


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
    workdir = buckets.normal(workdir)
    if buckets.is_bucket(workdir):
        buckets.check_access(workdir)
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
        context = ts.Context({"gcs_request_retries": _RETRIES})
        self._objects = ts.KvStore.open(f"{workdir.rstrip('/')}/", context=context).result()

    def read(self) -> tuple[bytes, lock.Owner | None]:
        """The generation of the object, and who wrote it; None where it is missing or unreadable."""
        found = self._objects.read(lock.NAME).result()
        return found.stamp.generation, lock.Owner.from_text(found.value)

    def take(self, known: bytes) -> bool:
        """Makes the object this process's; False if another one has written it since it was `known`."""
        written = self._objects.write(lock.NAME, self._owner.to_text(), if_equal=known).result().generation
        if not written:
            now, owner = self.read()
            written = now if owner == self._owner else b""  # its own, of which the answer was lost
        self._generation = written or self._generation
        return bool(written)

    def touch(self) -> None:
        """Shows that the owner is alive."""
        if self._generation and not self.take(self._generation):
            self._generation = b""
            logging.error("another process has taken the lock of this workdir over")

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
    except ValueError as error:  # TensorStore's, whatever it is
        raise buckets.failure(error, f"the workdir {workdir} cannot be written to") from error
    try:
        with lock.repeated(lease.touch, lock.TOUCH_SECONDS):
            yield
    finally:
        with contextlib.suppress(ValueError):
            lease.release()


# ------------------------------------------------------------------ the copies


class _Copy:
    """A scratch folder, and the folder of a bucket to which its files are copied."""

    def __init__(self, workdir: str):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="process_gen_"))
        self._workdir = workdir
        self._sent: dict[str, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Fetches the files of earlier starts that this one may read."""
        try:
            names = [name for name in buckets.names_below(epath.Path(self._workdir)) if _read_again(name)]
            buckets.fetch(self._workdir, names, self.folder)
        except stopping.Stopped:
            raise
        except Exception as error:
            raise buckets.failure(error, f"the files in {self._workdir} cannot be read") from error
        self._sent = dict(self._stamps())

    def _stamps(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Name, and size and time, of every file that is complete."""
        for path in sorted(self.folder.rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # it was renamed or removed just now
                found = path.stat()
                if path.is_file() and path.suffix != ".unfinished":
                    yield path.relative_to(self.folder).as_posix(), (found.st_size, found.st_mtime_ns)

    def send(self) -> None:
        """Copies new and changed files to the bucket; OSError, after all others are, if one could not be."""
        failed: Exception | None = None
        for name, stamp in self._stamps():
            if self._sent.get(name) == stamp:
                continue
            try:
                (epath.Path(self._workdir) / name).write_bytes((self.folder / name).read_bytes())
                self._sent[name] = stamp
            except FileNotFoundError:
                continue
            except stopping.Stopped:
                raise
            except Exception as error:  # of gcsfs
                what = f"{self.folder / name} could not be copied to {self._workdir}"
                failed = buckets.failure(error, what)
        if failed:
            raise failed


def _read_again(name: str) -> bool:
    """Whether a start may read a file of an earlier one: those at the top, and of the final evaluation."""
    top, _, below = name.partition("/")
    if below:
        return top == "evaluation" and not below.startswith("step_")
    return name != lock.NAME and not name.startswith(_EVENTS)


@contextlib.contextmanager
def _copied(workdir: str) -> Iterator[pathlib.Path]:
    """Yields a scratch folder whose files are copied to a bucket during the block and at its end.

    Collective at the end, unless an error ends the block: no host leaves before all have copied.
    """
    copy = _Copy(workdir)
    try:
        if hosts.is_lead():
            copy.fetch()
        logging.info("files are written to %s and copied to %s", copy.folder, workdir)
        with lock.repeated(copy.send, COPY_SECONDS, rest=10.0):
            yield copy.folder
    except BaseException as error:
        if not getattr(error, "at_once", False):  # the error of the block is the one to show
            try:
                copy.send()
                shutil.rmtree(copy.folder, ignore_errors=True)
            except OSError as failed:
                logging.error("%s", failed)
        if isinstance(error, stopping.Stopped) and not error.at_once:
            with contextlib.suppress(hosts.HostMissing):
                hosts.barrier("the last files are copied", STOP_SECONDS)
        raise
    copy.send()
    shutil.rmtree(copy.folder, ignore_errors=True)
    hosts.barrier("the last files are copied", hosts.PREPARE_SECONDS)

"""Locks a folder for one process at a time: a file in it names its owner and shows whether it is alive.

The file is made by exclusive creation, which works where `flock` does not. Its owner touches it every
few seconds. The lock of a dead process is taken over: on the same host at once, since the system knows
its processes; from another host when the file has not been touched for a while, which needs no synchronized
clocks. Hosts of one name count as different if boot id or PID namespace differ: a container, a second
machine, or this machine before its last reboot.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from absl import logging

from process_gen.common import files
from process_gen.common.buckets import check_on_disk

NAME = ".lock.json"
TOUCH_SECONDS = 10.0
"""How often an owner shows that it is alive."""
SILENT_SECONDS = 60.0
"""How long an owner on another host has to be silent until it is taken for dead."""
_TRIES = 50
"""Failed reads of a lock file, 0.1 s apart, after which it counts as half-written by a dead process."""


class Occupied(OSError):
    """Another process works in the folder; the message names its host and number."""


@dataclasses.dataclass(frozen=True)
class Owner:
    """The process that holds a lock, and `what` it does, for the message.

    Process ids are reused. So `boot` is the host's boot id, `pid_namespace` says in which namespace `pid`
    counts, and `started` is the start time of the process ("" where the system does not say any of these);
    `token` differs between two locks of one process.
    """

    host: str
    boot: str
    pid: int
    started: str
    token: str
    what: str
    pid_namespace: str = ""

    @classmethod
    def me(cls, what: str) -> Owner:
        pid = os.getpid()
        return cls(socket.gethostname(), boot(), pid, _started(pid), uuid.uuid4().hex, what, _pid_namespace())

    @classmethod
    def from_text(cls, text: bytes) -> Owner | None:
        """The owner that a lock file names; None where it cannot be read."""
        try:
            found = files.from_json(text)
            known = [field.name for field in dataclasses.fields(cls)]  # later versions may write more
            return cls(**{name: found[name] for name in known if name in found})
        except (ValueError, TypeError):
            return None

    def to_text(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @property
    def name(self) -> str:
        return f"process {self.pid} of {self.host}"

    def occupied(self, folder: object, file: object) -> Occupied:
        """The error of another process that wants to work in the folder."""
        return Occupied(
            f"{self.what} is going on in {str(folder)!r}, by {self.name}: wait for its end, or choose "
            f"another folder (if there is no such process, delete {file})"
        )

    def is_dead_here(self) -> bool | None:
        """Whether it has ended; None where that cannot be known, because its host may be another one."""
        here = socket.gethostname(), boot(), _pid_namespace()
        if (self.host, self.boot, self.pid_namespace) != here:
            return None
        return not _exists(self.pid) or self.started != _started(self.pid)


@contextlib.contextmanager
def hold(
    folder: str | os.PathLike[str],
    what: str,
    wait: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Locks a folder (made if need be) during the block; other processes are told `what` is done there.

    `check` is called about once a second during a wait, and may raise to end it.

    Raises:
      Occupied: another process is there, and `wait` (for its end) is False.
      OSError: the folder cannot be written, or is the address of a bucket.
    """
    check_on_disk(folder)
    path, owner = pathlib.Path(folder) / NAME, Owner.me(what)
    path.parent.mkdir(parents=True, exist_ok=True)
    said, unread = False, 0
    while not _created(path, owner):
        other = _read(path)
        if other is None:  # just released, or half-written, perhaps by a dead process
            time.sleep(0.1)
            if (unread := unread + 1) >= _TRIES:
                logging.warning("%s cannot be read: removed", path)
                path.unlink(missing_ok=True)
                unread = 0
            continue
        if is_dead(other, path, lambda: _touched(path), check):
            logging.warning("%s: taken over from %s, which has ended", path, other.name)
            _remove(path, other)
        elif not wait:
            raise other.occupied(path.parent, path)
        else:
            if not said:
                logging.info("waiting for %s in %s", other.name, path.parent)
                said = True
            check()
            time.sleep(1.0)
    try:
        with repeated(lambda: _touch(path), TOUCH_SECONDS):
            yield
    finally:
        _remove(path, owner)


@contextlib.contextmanager
def repeated(work: Callable[[], None], seconds: float, rest: float = 0.0) -> Iterator[None]:
    """Does `work` in a thread every so many seconds of the block; errors are logged, another try may do.

    After each time it waits at least `rest` times as long as the work has taken.
    """
    ended = threading.Event()

    def repeat() -> None:
        wait = seconds
        while not ended.wait(wait):
            started = time.monotonic()
            try:
                work()
            except Exception as error:  # of gcsfs or TensorStore, too, which share no base class
                logging.warning("%s", error)
            wait = max(seconds, rest * (time.monotonic() - started))

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _created(path: pathlib.Path, owner: Owner) -> bool:
    """Makes the lock file, with its content at once; False if there is one already."""
    draft = path.with_name(f"{path.name}.{owner.token}")
    try:
        draft.write_bytes(owner.to_text())
        return _link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _link(file: pathlib.Path, path: pathlib.Path) -> bool:
    """Hard-links `file` as `path`, or copies it where that is not supported; False if `path` exists."""
    try:
        os.link(file, path)
    except FileExistsError:
        return False
    except OSError:
        try:
            with path.open("x") as copy:
                copy.write(file.read_text())
        except FileExistsError:
            return False
    return True


def _read(path: pathlib.Path) -> Owner | None:
    with contextlib.suppress(FileNotFoundError):
        return Owner.from_text(path.read_bytes())
    return None


def is_dead(owner: Owner, place: object, touched: Callable[[], object], check: Callable[[], None]) -> bool:
    """Whether the owner of a lock has ended; `touched` says when it last wrote to the lock, in any form.

    Waits for a sign from an owner on another host; `check` is called meanwhile, and may raise to end that.
    """
    if (dead := owner.is_dead_here()) is not None:
        return dead
    logging.warning("%s: is %s alive? waiting for a sign", place, owner.name)
    first, end = touched(), time.monotonic() + SILENT_SECONDS
    while time.monotonic() < end:
        check()
        time.sleep(min(1.0, SILENT_SECONDS / 10))
        if touched() != first:
            return False
    return True


def _remove(path: pathlib.Path, owner: Owner) -> None:
    """Removes the lock file of an owner (or an unreadable one); the lock of another owner stays."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        if _read(path) not in (owner, None):
            return
        os.rename(path, aside)
        if _read(aside) not in (owner, None):  # replaced by another process meanwhile: put it back
            _link(aside, path)
        aside.unlink()


def _touch(path: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(path)


def _touched(path: pathlib.Path) -> float | None:
    with contextlib.suppress(OSError), path.open() as file:  # opened: NFS answers a bare `stat` from a cache
        return os.fstat(file.fileno()).st_mtime
    return None


def boot() -> str:
    """The id of this machine's current boot; "" where the system has none."""
    with contextlib.suppress(OSError):
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _pid_namespace() -> str:
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _started(pid: int) -> str:
    with contextlib.suppress(OSError, IndexError):
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]  # a zombie has ended
    return ""

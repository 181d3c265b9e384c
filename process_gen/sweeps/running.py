"""Runs the cells of a sweep, side by side with any number of other processes that share its folder.

    WORKDIR/manifest.json            which cells there are
    WORKDIR/cells/ID/log.txt         what the command of a cell printed
    WORKDIR/cells/ID/done.json       how it ended, or
    WORKDIR/cells/ID/failed.json     the same with the end of the log
    WORKDIR/claims/ID/               who runs it (`process_gen.distributed.lock`)
    WORKDIR/results.jsonl            the cells that have results

Only the process that holds a cell's claim runs the cell. When that process dies, another one takes the claim
over, ends what still runs of the cell and runs it again.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

from absl import logging

from process_gen.common import files
from process_gen.distributed import lock, stopping
from process_gen.sweeps import child
from process_gen.sweeps.cells import Cell

DONE, FAILED, LOG = "done.json", "failed.json", "log.txt"
GRACE_SECONDS = 300.0
"""How long a command may take to save and end after SIGTERM, until it is killed; launchers give the same."""
RETRY_CLAIM_SECONDS = 15.0
"""Time between two attempts to take over a cell that another process has claimed."""
_TAIL_LINES = 20
_OF_A_LAUNCHER = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "MEGASCALE_",
    "TPU_PROCESS_ADDRESSES",
    "TPU_WORKER_HOSTNAMES",
    "SLURM_",
    "OMPI_",
    "PMI",
    "PROCESS_GEN_REFUSED",
)


class Sweep:
    """Cells and the folder where they run.

    Args:
      cells: all of them.
      workdir: shared by all processes that run the sweep.
      retry: runs the cells that have failed until now once more.
    """

    def __init__(self, cells: Sequence[Cell], workdir: str | os.PathLike[str], *, retry: bool = False):
        self.cells, self.workdir = list(cells), pathlib.Path(workdir)
        self._guard, self._mine, self._asked = threading.Lock(), set(), {}
        self._stopped_here: set[str] = set()  # left open for others; this process runs them no more
        self._stop, self._kill = threading.Event(), threading.Event()
        self._retried = {cell.id: self._read(cell, FAILED) for cell in cells} if retry else {}

    def state(self, cell: Cell) -> str:
        """`done`, `failed`, `claimed` or `open`."""
        folder = cell.folder(self.workdir)
        if (folder / DONE).exists():
            return "done"
        if (self._claim(cell) / lock.NAME).exists():
            return "claimed"
        return "failed" if (folder / FAILED).exists() else "open"

    def outcome(self, cell: Cell) -> Mapping[str, Any]:
        """How it ended: `code`, `seconds`, `command`, `ended`, `tail` (of a failed one); {} before."""
        return self._read(cell, DONE) or self._read(cell, FAILED) or {}

    def is_stale(self, cell: Cell) -> bool:
        """Whether a cell is done, and its config has said something else then."""
        return (self._read(cell, DONE) or {}).get("content", cell.content) != cell.content

    def run(self, parallel: int = 1, *, wait: bool = True, show: Callable[[str], None] | None = None) -> None:
        """Runs the cells that no process has run or is running.

        Args:
          parallel: cells at a time.
          wait: True also waits for cells that other processes run, to take over those of processes that die.
          show: is called with a line of progress whenever that changes.

        Raises:
          Stopped: a signal came. The commands got SIGTERM; cells that they did not finish are open again.
          OSError: the folder cannot be written.
        """
        said = ""
        with stopping.deferred() as stop, futures.ThreadPoolExecutor(parallel) as pool:
            workers = [pool.submit(self._work, slot, parallel, wait) for slot in range(parallel)]
            try:
                while futures.wait(workers, timeout=1.0).not_done:
                    if stop.asked or any(one.done() and one.exception() for one in workers):
                        self._stop.set()
                    if show and (text := self._progress()) != said:
                        show(said := text)
            except BaseException:  # a second signal
                self._kill.set()
                raise
            finally:
                self._stop.set()
        for worker in workers:
            worker.result()
        stop.check()

    def _progress(self) -> str:
        states = [self.state(cell) for cell in self.cells]
        counts = [f"{states.count(state)} {state}" for state in ("failed", "claimed") if state in states]
        return ", ".join([f"{states.count('done')} of {len(states)} cells done", *counts])

    def _work(self, slot: int, parallel: int, wait: bool) -> None:
        """Runs one cell after another until there is none left for this process."""
        while not self._stop.is_set():
            cell, left = self._next()
            if cell is None:
                if not left or not wait:
                    return
                self._stop.wait(1.0)
                continue
            try:
                with lock.hold(self._claim(cell), "a cell of a sweep"):
                    if self._is_wanted(cell):
                        self._end_what_is_left(cell)
                        self._run(cell, environment(slot, parallel))
            except lock.Occupied:
                self._asked[cell.id] = time.monotonic()
            finally:
                with self._guard:
                    self._mine.remove(cell.id)

    def _next(self) -> tuple[Cell | None, bool]:
        """A cell to try, unclaimed ones first (None: none now), and whether any unfinished cell is left."""
        with self._guard:
            wanted = [cell for cell in self.cells if cell.id not in self._mine and self._is_wanted(cell)]
            claimed = {cell.id for cell in wanted if (self._claim(cell) / lock.NAME).exists()}
            now = time.monotonic()
            for cell in sorted(wanted, key=lambda cell: cell.id in claimed):
                if cell.id not in claimed or now - self._asked.get(cell.id, -1e9) > RETRY_CLAIM_SECONDS:
                    self._mine.add(cell.id)
                    return cell, True
            return None, bool(wanted)

    def _is_wanted(self, cell: Cell) -> bool:
        if cell.id in self._stopped_here or (cell.folder(self.workdir) / DONE).exists():
            return False
        failed = self._read(cell, FAILED)
        return failed is None or failed == self._retried.get(cell.id)

    def _run(self, cell: Cell, env: Mapping[str, str]) -> None:
        """Runs a claimed cell and writes how it ended."""
        folder, words = cell.folder(self.workdir), cell.python_args(self.workdir)
        folder.mkdir(parents=True, exist_ok=True)
        me = [sys.executable, "-m", child.__name__, str(self._claim(cell)), str(os.getpid())]
        began = time.time()
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                [*me, *words], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C reaches it once, from here
            )  # fmt: skip
            code = self._wait(process)
        outcome = {
            "code": code,
            "seconds": round(time.time() - began, 3),
            "command": ["python", *words],
            "ended": time.time(),
            "content": cell.content,
        }
        if code == 0:
            files.write_json(folder / DONE, outcome)
            (folder / FAILED).unlink(missing_ok=True)
        elif code == stopping.EXIT_CODE or self._stop.is_set():
            self._stopped_here.add(cell.id)
        else:
            tail = (folder / LOG).read_text(errors="replace").splitlines()[-_TAIL_LINES:]
            files.write_json(folder / FAILED, outcome | {"tail": tail})
            logging.warning("cell %s failed with exit code %d: see %s", cell.id, code, folder / LOG)

    def _wait(self, process: subprocess.Popen) -> int:
        """Waits for a command and returns its exit code.

        When the sweep stops, the command gets SIGTERM, and SIGKILL after `GRACE_SECONDS`.
        """
        deadline = None
        while True:
            try:
                return process.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                pass
            if self._stop.is_set() and deadline is None:
                deadline = time.monotonic() + GRACE_SECONDS
                process.terminate()
            if self._kill.is_set() or (deadline and time.monotonic() > deadline):
                _tell(process.pid, signal.SIGKILL)

    def _end_what_is_left(self, cell: Cell) -> None:
        """Ends the command of this cell that a dead sweep has left running on this host."""
        path = self._claim(cell) / child.NAME
        try:
            owner = lock.Owner(**files.read_json(path))
        except (OSError, ValueError, TypeError):
            return
        deadline = time.monotonic() + GRACE_SECONDS
        if owner.is_dead_here() is False:
            logging.warning("cell %s: ending process %d, whose sweep is gone", cell.id, owner.pid)
            _tell(owner.pid, signal.SIGTERM)
        while owner.is_dead_here() is False:
            if time.monotonic() > deadline or self._kill.is_set():
                _tell(owner.pid, signal.SIGKILL)
            time.sleep(0.1)
        path.unlink(missing_ok=True)

    def _claim(self, cell: Cell) -> pathlib.Path:
        return self.workdir / "claims" / cell.id

    def _read(self, cell: Cell, name: str) -> Mapping[str, Any] | None:
        try:
            return files.read_json(cell.folder(self.workdir) / name)
        except FileNotFoundError:
            return None


def _tell(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a command; SIGKILL goes to its whole process group."""
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if number == signal.SIGKILL else os.kill)(pid, number)


def environment(slot: int, parallel: int) -> dict[str, str]:
    """The environment variables of a cell: those of the sweep without what makes it part of a launcher's job.

    With several GPUs in CUDA_VISIBLE_DEVICES each of the cells that run side by side gets one: `parallel` of
    them in this process, and as many in each other process of a Slurm step on this host.
    """
    tasks = int(os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").partition("(")[0].partition(",")[0])
    env = {name: value for name, value in os.environ.items() if not name.startswith(_OF_A_LAUNCHER)}
    gpus = [gpu for gpu in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if len(gpus) > 1 and parallel * tasks > 1:
        first = int(os.environ.get("SLURM_LOCALID", 0)) * parallel
        env["CUDA_VISIBLE_DEVICES"] = gpus[(first + slot) % len(gpus)]
    return env

"""The trainer under test: the real command, with two layers and few steps, and what it left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from etils import epath

from process_gen.checkpoints import load, manifest

ROOT = pathlib.Path(__file__).parents[2]
STEPS, EVERY = 40, 4
PATIENCE = 900.0  # seconds for a whole run on a machine that has other work
SMALL = {
    "layout.context": "full",
    "layout.turns": 4,
    "layout.trajectories": 2,
    "layout.copies": 1,
    "sampling.max_turns": 2,
    "data.examples": 24,
    # AdamW divides by the size of a gradient: with a small epsilon, rounding on another mesh would be seen.
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1e-3,
    "optimizer.eps": 1e-3,
    "train.batch_size": 4,
    "train.steps": STEPS,
    "train.checkpoint_every": EVERY,
    "train.keep": 2 * STEPS,
    "eval.final_per_group": 0,
}


class Failed(AssertionError):
    """A run did not do what it has to do after a fault."""


@dataclasses.dataclass
class Trainer:
    """One process of a run."""

    process: subprocess.Popen
    log: pathlib.Path
    start: int = 0  # where this process begins in the log

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code; minus the signal that ended it."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Failed(f"still running after {seconds:.0f} s, see {self.log}") from None

    def wait_until(self, there: Callable[[], object], pause: float = 0.001) -> bool:
        """Waits until something is there; False where the process ended first."""
        limit = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < limit:
            if there():
                return True
            time.sleep(pause)
        return False

    def send(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def is_past(self, step: int) -> bool:
        """Whether this process has logged a later step."""
        told = self.log.read_bytes()[self.start :].decode(errors="replace")
        return any(int(number) > step for number in re.findall(rf" step (\d+)/{STEPS} ", told))


@dataclasses.dataclass(frozen=True)
class Bench:
    """A folder with the data and the compiled programs that all runs of a test share."""

    folder: pathlib.Path

    def start(
        self,
        run: str,
        config: str = "configs/scenes.py:debug",
        *,
        devices: int = 1,
        env: dict[str, str] | None = None,
        largest_file: int | None = None,
        workdir: epath.PathLike | None = None,
        **overrides: object,
    ) -> Trainer:
        """Starts one process of a run.

        Args:
          run: names its workdir and log.
          config: its config.
          devices: of this process.
          env: more environment.
          largest_file: bytes at which a write fails, as on a full disk.
          workdir: where it is to be instead.
          **overrides: of the config, `__` for a dot.
        """
        settings = {"data.data_dir": str(self.folder / "data"), **SMALL}
        settings |= {name.replace("__", "."): value for name, value in overrides.items()}
        command = [sys.executable, "-m", "process_gen.train", f"--config={config}"]
        command += [f"--workdir={workdir or self.folder / run}"]
        command += [f"--config.{name}={value}" for name, value in settings.items()]
        flags = os.environ.get("XLA_FLAGS") or "--xla_backend_optimization_level=1"  # those of the tests
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "MPLBACKEND": "agg",
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
            **(env or {}),
        }

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        log = self.folder / f"{run}.{(env or {}).get('JAX_PROCESS_ID', '0')}.log"
        with log.open("ab") as out:
            begins = out.tell()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                preexec_fn=None if largest_file is None else limit,
            )
        return Trainer(process, log, begins)

    def start_hosts(self, run: str, count: int = 2, **settings: object) -> list[Trainer]:
        """Starts all processes of a run on this machine, one device each."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)}
        return [
            self.start(run, env={**shared, "JAX_PROCESS_ID": str(index)}, **settings)
            for index in range(count)
        ]

    def finish(self, run: str, hosts: int = 1, **settings: object) -> None:
        """Starts a run, again or for the first time, and sees it through to its last step."""
        started = [self.start(run, **settings)] if hosts == 1 else self.start_hosts(run, hosts, **settings)
        with ended(started):
            codes = [trainer.wait() for trainer in started]
        if any(codes):
            raise Failed(f"exit codes {codes} instead of 0: {started[0].text()[-2000:]}")

    def steps(self, run: str) -> list[int]:
        """The committed steps of a run."""
        return load.steps(epath.Path(self.folder / run / load.FOLDER))

    def unfinished(self, run: str) -> list[str]:
        """Folders of saves that are not committed."""
        folder = self.folder / run / load.FOLDER
        return sorted(p.name for p in folder.glob("*orbax-checkpoint-tmp*")) if folder.is_dir() else []


@contextlib.contextmanager
def ended(trainers: list[Trainer]) -> Iterator[None]:
    """Leaves no process behind, whatever happens inside."""
    try:
        yield
    finally:
        for trainer in trainers:
            trainer.send(signal.SIGKILL)
            trainer.process.wait()


def contents(workdir: epath.PathLike, step: int) -> dict[str, np.ndarray]:
    """Every array of a step (parameters, average, optimizer, keys), and the state of the data iterator."""
    step_dir = epath.Path(workdir) / load.FOLDER / str(step)
    manifest.verify(step_dir)
    found = {}
    for item in manifest.items(step_dir):
        if item == "iterator":
            found[item] = np.array(json.dumps(load.read_json(step_dir, item), sort_keys=True))
        elif item != load.METADATA:
            source = load.open_saved(step_dir).source(item)
            found |= {f"{item}/{name}": source.read(name) for name in source.spec}
    return found


def losses(workdir: pathlib.Path) -> list[tuple[int, float]]:
    """What every start of a run has logged, (step, loss), in order."""
    found = []
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        with contextlib.suppress(tf.errors.DataLossError):  # cut off in the middle of a line by a kill
            for event in tf.compat.v1.train.summary_iterator(str(path)):
                for value in event.summary.value:
                    if value.tag == "loss":
                        found.append((event.step, float(tf.make_ndarray(value.tensor))))
    return found


def check_same(bench: Bench, run: str, reference: str) -> None:
    """The run has ended bit for bit like the reference, and logged no other loss on its way.

    Raises:
      Failed: names what differs.
    """
    there, here = contents(bench.folder / reference, STEPS), contents(bench.folder / run, STEPS)
    if there.keys() != here.keys():
        raise Failed(f"{run}: other arrays than {reference}: {sorted(there.keys() ^ here.keys())[:4]}")
    if odd := sorted(n for n in there if not np.array_equal(there[n], here[n])):
        raise Failed(f"{run}: {len(odd)} of {len(there)} arrays differ from {reference}: {odd[:4]}")
    curve = dict(losses(bench.folder / reference))
    own = losses(bench.folder / run)
    if odd := [step for step, loss in own if curve.get(step) != loss]:
        raise Failed(f"{run}: other losses than {reference} at steps {odd[:8]}")
    if len(curve) != STEPS or not own or own[-1][0] != STEPS:
        raise Failed(f"{run}: {len(curve)} losses of {reference}, the last of {run} is {own[-1:]}")

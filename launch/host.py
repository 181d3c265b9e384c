#!/usr/bin/env python3
"""Runs several processes of one job on this machine.

    launch/host.py cpu 2 --config=configs/scenes.py:debug --workdir=runs/two
    launch/host.py gpu 8 --config=configs/bagel_7b.py:paper --workdir=runs/7b

On cpu every process has JAX_NUM_CPU_DEVICES devices. On gpu each has one GPU, of those that
CUDA_VISIBLE_DEVICES names if it is set; JAX recommends this over one process for all GPUs. Process 0 writes
to the terminal, process i to LOGS/i.log (LOGS is a new temporary folder by default).

On SIGTERM or SIGINT all processes get SIGTERM, upon which they save and end. If a process fails, the others
cannot continue: they get SIGTERM, and SIGKILL after GRACE seconds (10). The exit code is that of the first
failure (128 plus the signal's number if a signal ended it), else 75 if a process was stopped, else 0.
"""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

STOPPED, REFUSED = 75, 2  # as in env.sh
RUN = pathlib.Path(__file__).parent.resolve() / "run.sh"


def say(text: str) -> None:
    """Prints a line to stderr, among those of the processes."""
    print(f"launch/host.py: {text}", file=sys.stderr, flush=True)


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def gpus(count: int) -> list[str]:
    """The GPUs of CUDA_VISIBLE_DEVICES, else the first `count`; exits with REFUSED if they are too few."""
    named = [gpu.strip() for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.strip()]
    if named and len(named) < count:
        say(f"{count} processes take a GPU each, and CUDA_VISIBLE_DEVICES names {len(named)}")
        sys.exit(REFUSED)
    return named or [str(index) for index in range(count)]


def environment(platform: str, index: int, count: int, port: int) -> dict[str, str]:
    """The environment of process `index`: its GPU, and how to join the others (see `distributed.hosts`)."""
    address = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}"}
    place = {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
    devices = {"CUDA_VISIBLE_DEVICES": gpus(count)[index]} if platform == "gpu" else {}
    return {**os.environ, **address, **place, **devices}


def wait(processes: list[subprocess.Popen], told: list[int], grace: float) -> int:
    """Waits for all processes; returns the exit code. The signal handlers append to `told` meanwhile."""
    deadline, passed_on, failed = None, 0, 0
    while True:
        codes = [process.poll() for process in processes]
        running = [process for process, code in zip(processes, codes, strict=True) if code is None]
        errors = [code for code in codes if code not in (None, 0, STOPPED)]
        failed = failed or (errors[0] if errors else 0)
        if len(told) > passed_on:  # every further signal is passed on, too
            passed_on = len(told)
            for process in running:
                process.terminate()
        elif failed and not told and deadline is None:
            print(
                f"{sys.argv[0]}: a process ended with exit code {failed}, ending the others", file=sys.stderr
            )
            deadline = time.monotonic() + grace
            for process in running:
                process.terminate()
        if deadline and time.monotonic() > deadline:
            for process in running:
                process.kill()
        if not running:
            break
        time.sleep(0.1)
    if failed:
        return failed if failed > 0 else 128 - failed
    return STOPPED if STOPPED in codes else 0


def main(platform: str, count: int, arguments: list[str]) -> int:
    """Starts `count` processes and waits for them."""
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: told.append(number))
    logs = pathlib.Path(os.environ.get("LOGS") or tempfile.mkdtemp(prefix="process_gen."))
    logs.mkdir(parents=True, exist_ok=True)
    port = int(os.environ.get("PORT") or free_port())
    say(f"{count} processes, output of all but the first in {logs}")
    processes = []
    for index in range(count):
        output = open(logs / f"{index}.log", "wb") if index else None
        processes.append(
            subprocess.Popen(
                [str(RUN), platform, *arguments],
                env=environment(platform, index, count, port),
                stdout=output,
                stderr=subprocess.STDOUT if index else None,
                start_new_session=True,  # so Ctrl-C reaches them only through this process
            )
        )
    return wait(processes, told, float(os.environ.get("GRACE") or 10))


if __name__ == "__main__":
    if len(sys.argv) < 3 or not sys.argv[2].isdigit() or int(sys.argv[2]) < 1:
        say("usage: launch/host.py cpu|gpu PROCESSES --config=... --workdir=...")
        sys.exit(REFUSED)
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))

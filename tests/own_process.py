"""Scripts and jobs of tests in processes of their own: a process counts its devices once."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def printed(script: pathlib.Path, *arguments: object, **variables: str) -> list[str]:
    """The words that a script prints; it has to end well."""
    command = [sys.executable, str(script), *map(str, arguments)]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | variables
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout.split()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def start_job(command: list[str], count: int, started: int | None = None) -> list[subprocess.Popen]:
    """Starts the processes of a job, all of them or the first few; stdout and stderr are pipes."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    if count > 1:
        env |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": str(count)}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return [
        subprocess.Popen(command, env=env | {"JAX_PROCESS_ID": str(index)}, **pipes)
        for index in range(count if started is None else started)
    ]

"""The same training on one device and on meshes and processes of all kinds: how far apart it ends.

    python tests/distributed/equal_runs.py --workdir=/tmp/equal --steps=20

prints for every way of running it the largest relative difference of a loss, and of an array of parameters
(norm of the difference by norm of the array), from one device. `test_equal_runs.py` runs a part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np

from process_gen.checkpoints.load import open_saved

ROOT = pathlib.Path(__file__).parents[2]

WAYS = {
    "one device": (1, 1, {}),
    "8 fsdp": (1, 8, {"mesh.data": 1, "mesh.fsdp": 8}),
    "2 data x 2 fsdp x 2 tensor": (1, 8, {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}),
    "2 fsdp x 4 context": (1, 8, {"mesh.data": 1, "mesh.fsdp": 2, "mesh.context": 4}),
    "two processes, 4 fsdp": (2, 2, {"mesh.data": 1, "mesh.fsdp": 4}),
    "two processes, 2 slices of 2 fsdp": (2, 2, {"mesh.data": 1, "mesh.fsdp": 2, "mesh.dcn.data": 2}),
    "four processes, 2 fsdp x 2 tensor x 2 context": (
        4,
        2,
        {"mesh.data": 1, "mesh.fsdp": 2, "mesh.tensor": 2, "mesh.context": 2},
    ),
}
"""What to call it -> processes, devices of each, and what differs in the config."""


def train(workdir: pathlib.Path, steps: int, processes: int, devices: int, overrides: dict) -> list[float]:
    """Trains in processes of their own; returns the losses of the steps that were taken.

    Raises:
      RuntimeError: a process failed; with the end of its log.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    asked = json.dumps(dict(workdir=str(workdir), devices=devices, steps=steps, overrides=overrides))
    command = [sys.executable, str(pathlib.Path(__file__).with_name("one_process.py")), asked]
    running = []
    for index in range(processes):
        env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        if processes > 1:
            env["JAX_COORDINATOR_ADDRESS"] = f"localhost:{port}"
            env |= {"JAX_NUM_PROCESSES": str(processes), "JAX_PROCESS_ID": str(index)}
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        running.append(subprocess.Popen(command, env=env, **pipes))
    logs = [process.communicate()[0] for process in running]
    for process, log in zip(running, logs, strict=True):
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode}: {log[-4000:]}")
    return json.loads((workdir / "losses.json").read_text())


def differences(workdir: pathlib.Path, other: pathlib.Path) -> dict[str, float]:
    """Norm of the difference by norm, of every array of the newest parameters of two runs."""
    ours, theirs = (
        jax.tree.leaves_with_path(open_saved(folder).params("params")) for folder in (workdir, other)
    )
    return {
        jax.tree_util.keystr(path): float(np.linalg.norm(a - b) / np.linalg.norm(a))
        for (path, a), (_, b) in zip(ours, theirs, strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Differences of one training, run in many ways.")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    expected, one = [], asked.workdir / "one_device"
    for name, (processes, devices, overrides) in WAYS.items():
        folder = asked.workdir / name.replace(" ", "_")
        losses = train(folder, asked.steps, processes, devices, overrides)
        expected = expected or losses
        loss = max(abs(a - b) / abs(a) for a, b in zip(expected, losses, strict=True))
        worst = max(differences(one, folder).values())
        print(f"{name:48s} {len(losses)} steps  losses {loss:.1e}  parameters {worst:.1e}", flush=True)


if __name__ == "__main__":
    main()

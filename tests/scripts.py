"""Scripts that run in a process of their own, since a process counts its devices once."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def printed(script: str, *arguments: str) -> str:
    """What a script below `tests` prints, which must end well."""
    command = [sys.executable, str(ROOT / "tests" / script), *arguments]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout

"""Nothing whole on a device that should be in parts: the real train step on eight of them."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.long
def test_eight_devices_hold_and_receive_parts_only(tmp_path):
    """Two whole train steps are compiled, one of them for eight devices: most of a minute."""
    script = pathlib.Path(__file__).with_name("eight_devices_memory.py")
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["ok"] * 3

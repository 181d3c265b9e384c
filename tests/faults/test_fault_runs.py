"""A short selection of the faults; `python -m tests.faults --all` does all of them, for longer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.faults.trainer import ROOT


@pytest.mark.long
def test_killed_stopped_and_damaged_runs_end_like_one_that_was_left_alone(tmp_path):
    """Takes about ten starts of the trainer: a shared folder saves the compilation of all but the first."""
    command = [sys.executable, "-m", "tests.faults", "--cases=kill,stop,damage,changed_config"]
    command += ["--kills=2", "--times=1", f"--folder={tmp_path}"]
    ran = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "kills: 2, during a save: 1" in ran.stdout and "fell back" in ran.stdout

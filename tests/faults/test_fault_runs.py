"""A short selection of the faults; `python -m tests.faults --all` does all of them, for longer."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from tests.faults.trainer import ROOT


def faults(folder: pathlib.Path, *arguments: str) -> str:
    """What the script prints; a shared folder saves the compilation of all runs but the first."""
    command = [sys.executable, "-m", "tests.faults", *arguments, f"--folder={folder}"]
    ran = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.slow  # five starts of the trainer
def test_a_run_that_is_killed_twice_ends_like_one_that_was_left_alone(tmp_path):
    text = faults(tmp_path, "--cases=kill,damage", "--kills=2", "--times=0")
    assert "kills: 2, during a save: 1" in text and "fell back" in text


@pytest.mark.long  # about fifteen more
def test_signals_buckets_and_other_configs_too(tmp_path):
    text = faults(tmp_path, "--cases=stop,bucket,damage,changed_config", "--times=1")
    assert "kills: 2, left unfinished: 1, runs to the end: 1" in text
    assert "signals: 1" in text and "runs to the end: 1" in text and "refused by name: 5" in text

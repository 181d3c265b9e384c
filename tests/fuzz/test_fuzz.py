"""The harness itself: what it calls read, refused and a bug, and a few inputs of every quick kind."""

import pathlib
import subprocess
import sys

from tests.fuzz import __main__ as harness
from tests.fuzz.kinds import KINDS, Kind

ROOT = pathlib.Path(__file__).parents[2]


def outcome_of(run, tmp_path: pathlib.Path) -> tuple[str, str]:
    return harness.outcome(Kind(lambda folder: None, run, (OSError,)), tmp_path, (0, 0))


def test_outcomes(tmp_path, monkeypatch):
    def raises(error):
        def run(folder, rng):
            raise error

        return run

    assert outcome_of(lambda folder, rng: None, tmp_path) == (harness.READ, "")
    assert outcome_of(raises(OSError("no such file")), tmp_path) == (harness.REFUSED, "OSError")
    assert outcome_of(raises(OSError()), tmp_path) == (harness.BUG, "OSError without a message")
    assert outcome_of(raises(SystemExit(2)), tmp_path) == (harness.REFUSED, "exit code 2")
    what, how = outcome_of(raises(KeyError("x")), tmp_path)
    assert what == harness.BUG and how.startswith("KeyError at test_fuzz.py:")
    monkeypatch.setattr(harness, "SECONDS", 0.2)
    assert outcome_of(lambda folder, rng: __import__("time").sleep(9), tmp_path)[1] == "more than 0.2 s"


def test_damaged_input_is_read_or_refused():
    kinds = ",".join(sorted(set(KINDS) - {"checkpoints"}))
    command = [sys.executable, "-m", "tests.fuzz", f"--kinds={kinds}", "--inputs=10", "--seed=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr

"""Does to a training what machines and people do to it, and counts what follows.

    python -m tests.faults --all --kills=20
    python -m tests.faults --cases=kill,damage --kills=2 --times=1

Exit code 1 where a run did not survive; logs stay in the folder then.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import sys
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from process_gen.reports.table import table  # noqa: E402
from tests.faults.cases import CASES  # noqa: E402
from tests.faults.trainer import Bench, Failed  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every case")
    parser.add_argument("--cases", default="", help=", ".join(CASES))
    parser.add_argument("--kills", type=int, default=20, help="kill -9 of a run, half of them during a save")
    parser.add_argument("--times", type=int, default=2, help="how often the other faults happen")
    parser.add_argument("--folder", help="for data, programs, runs and logs; a temporary one by default")
    asked = parser.parse_args()
    names = list(CASES) if asked.all else [name for name in asked.cases.split(",") if name]
    if not names or set(names) - set(CASES):
        parser.error(f"--all, or --cases of {', '.join(CASES)}")
    folder = pathlib.Path(asked.folder or tempfile.mkdtemp(prefix="faults_")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    rows, failed = [], 0
    for name in names:
        started = time.monotonic()
        try:
            counts = CASES[name](Bench(folder), asked.kills if name == "kill" else asked.times)
            outcome = ", ".join(f"{what}: {count}" for what, count in counts.items())
        except Failed as error:
            failed += 1
            outcome = f"FAILED: {error}"
        rows.append((name, outcome, f"{time.monotonic() - started:.0f} s"))
        print(": ".join(rows[-1]), flush=True)
    print("\n" + table(rows, ("fault", "counts", "took")))
    if failed:
        print(f"logs are in {folder}")
    elif not asked.folder:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

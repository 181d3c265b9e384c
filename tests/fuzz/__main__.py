"""Feeds damaged input to everything that reads input, and counts what comes of it.

    python -m tests.fuzz --inputs=1000
    python -m tests.fuzz --kinds=images,listings --inputs=100 --seed=7

Each input is read by a process of its own, forked from one that has imported all it needs and
works in the input's folder. It is read, or refused by an error that the commands print as one
line, or it is a bug: another exception, the end of the process, more than 20 seconds, or a file
changed beside that folder. The exit code is 1 where there are bugs; `--first` makes an input again.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import pathlib
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402
from absl import logging  # noqa: E402

from process_gen.reports.table import table  # noqa: E402
from tests.fuzz.kinds import KINDS, Kind  # noqa: E402

SECONDS = 20
"""An input that takes longer hangs."""
BUG, REFUSED, READ = "BUG", "refused", "read"


def outcome(kind: Kind, folder: pathlib.Path, seed: tuple[int, ...]) -> tuple[str, str]:
    """What comes of one input, and of what kind: an error's name, or for a bug where it was raised."""
    read, write = os.pipe()
    if not (child := os.fork()):
        os.close(read)
        said = _in_child(kind, folder, seed)
        with contextlib.suppress(OSError):
            os.write(write, "\n".join(said).encode(errors="replace")[:4000])
        os._exit(0)
    os.close(write)
    ready, _, _ = select.select([read], [], [], SECONDS)
    text = os.read(read, 4096).decode(errors="replace") if ready else ""
    os.close(read)
    if not text:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not ready:
        return BUG, f"more than {SECONDS} s"
    if not text:
        return BUG, f"the process ended with status {status}"
    what, detail = text.split("\n", 1)
    return what, detail


def _in_child(kind: Kind, folder: pathlib.Path, seed: tuple[int, ...]) -> tuple[str, str]:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    logging.set_verbosity(logging.FATAL)
    os.chdir(folder)
    try:
        kind.run(folder, np.random.default_rng(seed))
        return READ, ""
    except kind.refuses as error:
        told = " ".join(str(error).split())
        return (REFUSED, type(error).__name__) if told else (BUG, f"{type(error).__name__} without a message")
    except SystemExit as error:
        return (REFUSED, "exit code 2") if error.code == 2 else (BUG, f"exit code {error.code}")
    except BaseException as error:
        at = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in at if "process_gen" in frame.filename] or list(at)
        place = f"{pathlib.Path(ours[-1].filename).name}:{ours[-1].lineno}"
        return BUG, f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:80]}"


def state_of(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file of a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS), help="all by default")
    parser.add_argument("--inputs", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input, to see one again")
    asked = parser.parse_args()
    if unknown := set(asked.kinds.split(",")) - set(KINDS):
        parser.error(f"no such kinds: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    with tempfile.TemporaryDirectory(prefix="fuzz_") as house:
        bugs = sum(fuzz(name, pathlib.Path(house), asked) for name in asked.kinds.split(","))
    print(f"seed {asked.seed}: {bugs} bugs")
    return 1 if bugs else 0


def fuzz(name: str, house: pathlib.Path, asked: argparse.Namespace) -> int:
    """Tries one kind, prints its table, and returns how many bugs there are."""
    kind, folder, started = KINDS[name], house / name / "inside", time.monotonic()
    folder.mkdir(parents=True)
    (house / name / "outside.txt").write_text("what is here stays as it is")
    _apart(kind.prepare, folder)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    firsts: dict[tuple[str, str], int] = {}
    before = state_of(house)
    for number in range(asked.first, asked.first + asked.inputs):
        copy = house / name / "copy"
        shutil.copytree(folder, copy, symlinks=True)
        found = outcome(kind, copy, (asked.seed, number))
        shutil.rmtree(copy)
        if (now := state_of(house)) != before:
            found, before = (BUG, f"changed {min(now.items() ^ before.items())[0]}"), now
        counts[found] += 1
        firsts.setdefault(found, number)
        if sys.stderr.isatty():
            print(f"{name} {number - asked.first + 1}/{asked.inputs}", end="\r", file=sys.stderr)
    rows = [(*found, str(count), str(firsts[found])) for found, count in sorted(counts.items())]
    print(f"{name}: {asked.inputs} inputs in {time.monotonic() - started:.0f} s\n")
    print(table(rows, ("outcome", "how", "inputs", "first")) + "\n", flush=True)
    return sum(count for (what, _), count in counts.items() if what == BUG)


def _apart(prepare: Callable[[pathlib.Path], None], folder: pathlib.Path) -> None:
    """Prepares in a process of its own: one that has computed is not to be forked."""
    if not (child := os.fork()):
        try:
            prepare(folder)
        except Exception:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"{folder}: what is good could not be made, status {status}")


if __name__ == "__main__":
    sys.exit(main())

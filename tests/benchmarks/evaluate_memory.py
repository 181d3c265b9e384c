"""Memory of an evaluation while it draws and judges, and the size of its page; Linux alone.

    python tests/benchmarks/evaluate_memory.py --per_group=250 --batch_size=96   # 2,250 trajectories

Runs `process_gen.evaluate` with the flags given in a process of its own and prints its resident memory each
time another tenth of the trajectories is drawn, then the peak, the verdicts and the size of `index.html`.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

from process_gen.reports.table import table


def resident(pid: int, field: str = "VmRSS") -> float:
    """GiB of memory that a process holds, `VmHWM` for the most that it ever held; 0 of one that has ended."""
    found = re.search(rf"{field}:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 2**20 if found else 0.0


def main(words: list[str]) -> int:
    """Measures one evaluation; returns its exit code."""
    rows, said, tenth, peak = [], [], 0, 0.0
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as printed:
        command = [sys.executable, "-m", "process_gen.evaluate", *words, f"--output_dir={folder}"]
        with subprocess.Popen(command, stdout=printed, stderr=subprocess.PIPE) as running:
            for line in _lines(running.stderr):
                said.append(line)
                if not (held := resident(running.pid)):  # it has just ended
                    continue
                peak = max(peak, resident(running.pid, "VmHWM"))
                if found := re.search(r"(\d+) of (\d+) trajectories", line):
                    done, wanted = map(int, found.groups())
                    tenth = min(tenth, done * 10 // wanted)  # another arm begins with none
                    if done * 10 // wanted > tenth:
                        tenth = done * 10 // wanted
                        rows.append((f"{done:,} trajectories drawn", f"{held:.2f} GiB"))
                elif "adding up" in line:
                    rows.append(("all images judged", f"{held:.2f} GiB"))
        if running.returncode:
            print("\n".join(said[-20:]))
            return running.returncode
        verdicts = pathlib.Path(folder).rglob("verdicts/*.jsonl")
        judged = sum(path.read_bytes().count(b'"uid"') for path in verdicts)
        page = pathlib.Path(folder, "index.html")
        size = f"{page.stat().st_size / 1e6:.2f} MB" if page.exists() else "none"
    print(table([*rows, ("peak until the last report", f"{peak:.2f} GiB")], ("after", "resident memory")))
    print(f"\n{judged:,} images judged; index.html: {size}")
    return 0


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """What is shown, also where a line is written over by the next."""
    held = b""
    while piece := stream.read1():
        *whole, held = re.split(rb"[\r\n]", held + piece)
        yield from (one.decode(errors="replace") for one in whole)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    sys.exit(main(parser.parse_known_args()[1]))

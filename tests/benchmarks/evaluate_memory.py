"""Memory of an evaluation while it draws and judges, and the size of its page; Linux alone.

    python tests/benchmarks/evaluate_memory.py --per_group=250 --batch_size=96   # 2,250 trajectories

Runs `process_gen.evaluate` with the flags given in a process of its own and prints its resident memory each
time another tenth of the trajectories is drawn, then the peak and the size of `index.html`.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

from process_gen.reports.table import table


def resident(pid: int, field: str = "VmRSS") -> float:
    """GiB of memory that a process holds, `VmHWM` for the most that it ever held."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 2**20


def main(words: list[str]) -> int:
    """Measures one evaluation; returns its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "process_gen.evaluate", f"--output_dir={folder}", *words]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        ended, peak, text = threading.Event(), [0.0], []

        def watch() -> None:
            while not ended.wait(0.2):
                try:
                    peak[0] = resident(running.pid, "VmHWM")
                except (OSError, TypeError):  # it has just ended
                    return

        watching = [threading.Thread(target=watch), threading.Thread(target=lambda: [*running.stdout])]
        for one in watching:
            one.start()
        rows, tenth = [], 0
        for line in _lines(running.stderr):
            text.append(line)
            if found := re.search(r"(\d+) of (\d+) trajectories", line):
                done, wanted = map(int, found.groups())
                if done * 10 // wanted > tenth:
                    tenth = done * 10 // wanted
                    rows.append((f"{done:,} trajectories drawn", f"{resident(running.pid):.2f} GiB"))
            elif found := re.search(r"(\d+) images judged", line):
                judged = (f"{int(found[1]):,} images judged", f"{resident(running.pid):.2f} GiB")
                rows = [row for row in rows if "judged" not in row[0]] + [judged]
        code = running.wait()
        ended.set()
        for one in watching:
            one.join()
        if code:
            print("\n".join(text[-20:]))
            return code
        page = pathlib.Path(folder, "index.html").stat().st_size
        rows += [("peak", f"{peak[0]:.2f} GiB"), ("index.html", f"{page / 1e6:.2f} MB")]
        print(table(rows, ("after", "resident memory")))
    return 0


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """What is shown, also where a line is written over by the next."""
    held = b""
    while piece := stream.read1():
        *whole, held = re.split(rb"[\r\n]", held + piece)
        yield from (one.decode(errors="replace") for one in whole)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

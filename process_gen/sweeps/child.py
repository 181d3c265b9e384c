"""Becomes a cell's command, after leaving word which process it is.

    python -m process_gen.sweeps.child CLAIM PARENT ARGUMENT_OF_PYTHON...

A sweep that is killed cannot end its cells. Whoever takes them over finds here what still runs. The word is
left before the command begins, and a process whose sweep has gone by then ends.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys

from process_gen.common import files
from process_gen.distributed.lock import Owner

NAME = "running.json"


def main(claim: str, parent: str, *arguments: str) -> None:
    """Does not return."""
    files.write_json(pathlib.Path(claim) / NAME, dataclasses.asdict(Owner.me("a cell of a sweep")))
    if os.getppid() != int(parent):
        sys.exit(f"process {parent}, which started this one, has ended")
    os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])

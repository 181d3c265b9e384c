"""Writes this process's id to CLAIM, then replaces itself by the command of a sweep cell.

    python -m process_gen.sweeps.child CLAIM PARENT ARGUMENT_OF_PYTHON...

A killed sweep cannot stop its cells; the sweep that takes them over reads the id to find those that still
run. The id is written before the command begins. Exits if the process PARENT, its sweep, has ended by then.
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
    """Does what the module's docstring says; never returns."""
    files.write_json(pathlib.Path(claim) / NAME, dataclasses.asdict(Owner.me("a cell of a sweep")))
    if os.getppid() != int(parent):
        sys.exit(f"process {parent}, which started this one, has ended")
    os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The cells of a sweep: settings, the command they make, and the folder they write to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from process_gen.common import files
from process_gen.sweeps import hyper
from process_gen.sweeps.hyper import SweepError, Value

MANIFEST = "manifest.json"
RESULTS = "results.jsonl"
FOLDER_FLAG = {"process_gen.train": "workdir"}
"""Module -> the flag for the output folder of a cell, where that is not `output_dir`."""
REPEATED = ("sampling", "task_args", "arm_args")
"""Flags that are given once for each setting: `sampling.text_scale` is `--sampling=text_scale=...`."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
      settings: key -> value of what the sweep varies.
      command: module and flags, without the flag for the output folder.
      version: of the package.
      content: a digest of all that the config of its command says, "" where it has none; not part of the id.
    """

    settings: Mapping[str, Value]
    command: tuple[str, ...]
    version: str
    content: str = ""

    @property
    def id(self) -> str:
        """Twelve hex digits, a hash of command and version."""
        return hashlib.sha256(json.dumps([self.command, self.version]).encode()).hexdigest()[:12]

    def folder(self, workdir: str | os.PathLike[str]) -> pathlib.Path:
        """The folder of its results, its log and its exit status."""
        return pathlib.Path(workdir) / "cells" / self.id

    def python_args(self, workdir: str | os.PathLike[str]) -> list[str]:
        """The arguments for the Python interpreter: `-m`, the command, the flag for the folder."""
        flag = FOLDER_FLAG.get(self.command[0], "output_dir")
        return ["-m", *self.command, f"--{flag}={self.folder(workdir)}"]


def expand(get_hyper: Callable[[Any], Any], command: Any, version: str) -> list[Cell]:
    """Makes the cells of a sweep file; equal cells become one.

    Args:
      get_hyper: takes the module `hyper`, returns a list of settings.
      command: a module that `python -m` can run, and its fixed flags.
      version: of the package.

    Raises:
      SweepError: `command` or what `get_hyper` returns is malformed, or a flag is swept and in `command`.
    """
    words = (command,) if isinstance(command, str) else tuple(command or ())
    if not words or not all(isinstance(word, str) for word in words):
        raise SweepError('COMMAND is a module and its flags: ("process_gen.train", "--config=...")')
    found = get_hyper(hyper)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found) or not found:
        raise SweepError(
            "get_hyper(hyper) returns what hyper.sweep, product, zipit or chainit return, "
            f"not {type(found).__name__ if found else 'nothing'}"
        )
    fixed = {word.partition("=")[0] for word in words[1:]} - {f"--{name}" for name in REPEATED}
    cells = {}
    for settings in found:
        flags = tuple(flag(key, value) for key, value in settings.items())
        if twice := fixed & {one.partition("=")[0] for one in flags}:
            raise SweepError(f"{', '.join(sorted(twice))} is both swept and in COMMAND")
        cell = Cell(settings, words + flags, version)
        cells.setdefault(cell.id, cell)
    return list(cells.values())


def flag(key: str, value: Value) -> str:
    """The command-line flag for a key: `--config.a.b=v`, `--sampling=x=v` (see `REPEATED`) or `--name=v`."""
    group, dot, rest = key.partition(".")
    if dot and group in REPEATED:
        return f"--{group}={rest}={value}"
    if isinstance(value, tuple) and group != "config":
        return f"--{key}={','.join(map(str, value))}"
    return f"--{key}={value}"


def write_manifest(cells: Sequence[Cell], workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the list of all cells to `MANIFEST`; the same cells give the same text."""
    path = pathlib.Path(workdir) / MANIFEST
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [{"id": cell.id, "settings": cell.settings, "command": cell.command} for cell in cells]
    files.write_json(path, {"version": cells[0].version, "cells": listed}, indent=1)
    return path


def results_of(cell: Cell, workdir: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The results files of an evaluation that a cell's command has written."""
    folder = cell.folder(workdir)
    places = folder / "results.json", folder / "evaluation" / "results.json"
    return [place for place in places if place.is_file()]


def gather(cells: Iterable[Cell], workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Writes a line to `RESULTS` for each results file: id and settings of its cell, path in the workdir."""
    path, lines = pathlib.Path(workdir) / RESULTS, []
    for cell in cells:
        for place in results_of(cell, workdir):
            where = place.relative_to(workdir).as_posix()
            lines.append({"id": cell.id, "settings": cell.settings, "results": where})
    files.write_json_lines(path, lines)
    return path

"""GenEval's files: metadata, the folder of images, results.

IMAGES/00000/metadata.jsonl          one JSON object
IMAGES/00000/samples/0000.png ...
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from process_gen.common.files import write_json_lines
from process_gen.common.names import check_name
from process_gen.evaluation.geneval.decision import COLORS, OFFICIAL, RELATIONS
from process_gen.evaluation.options import TaskError, json_lines, parse_json, read_text

Metadata = Mapping[str, Any]
"""`tag`, `include`, `exclude` (optional) and `prompt`, as in a line of the official file."""

Path = str | os.PathLike[str]

_CLAUSE = ("class", "count", "color", "position")


def check_metadata(metadata: Any, where: str) -> Metadata:
    """Returns the metadata of a prompt.

    Raises:
      TaskError: no image can be judged by them; the official scorer would fail late, or count every
        image as wrong. That is an unknown key, colour or relation, a target that is not an earlier
        clause, a count below 1 or above `max_objects`. The message starts with `where`.
    """
    if not isinstance(metadata, Mapping):
        raise TaskError(f"{where}: not a JSON object")
    for key in ("tag", "prompt"):
        if not isinstance(metadata.get(key), str):
            raise TaskError(f"{where}: {key!r} is not a text")
    for key in ("include", "exclude"):
        clauses = metadata.get(key, [])
        if not isinstance(clauses, list):
            raise TaskError(f"{where}: {key!r} is not a list of clauses")
        for index, clause in enumerate(clauses):
            _check_clause(clause, index, f"{where}: {key}[{index}]")
    if not metadata.get("include") and not metadata.get("exclude"):
        raise TaskError(f"{where}: no clauses, so every image would be correct")
    return metadata


def _check_clause(clause: Any, index: int, where: str) -> None:
    def refuse(message: str) -> TaskError:
        return TaskError(f"{where}: {message}")

    if not isinstance(clause, Mapping):
        raise refuse("not a JSON object")
    for key in clause:
        check_name(key, _CLAUSE, "key", refuse)
    if not isinstance(clause.get("class"), str):
        raise refuse("'class' is not a text")
    count = clause.get("count")
    if type(count) is not int or not 1 <= count <= OFFICIAL.max_objects:
        raise refuse(f"'count' must be from 1 to {OFFICIAL.max_objects}, got {count!r}")
    if "color" in clause:
        check_name(str(clause["color"]), COLORS, "color", refuse)
    if "position" in clause:
        match clause["position"]:
            case [str(relation), int(target)] if type(target) is int:
                check_name(relation, RELATIONS, "relation", refuse)
                if not 0 <= target < index:
                    raise refuse(f"target {target} is not an earlier clause")
            case other:
                raise refuse(f"'position' must be [relation, index of an earlier clause], got {other!r}")


def read_metadata(path: Path) -> list[Metadata]:
    """Reads an `evaluation_metadata.jsonl`, a prompt a line; empty lines are skipped.

    Raises:
      TaskError: it cannot be read, holds no prompt, or has a line that is refused
        (`check_metadata`); names file and line.
    """
    found = [check_metadata(one, where) for where, one in json_lines(path)]
    if not found:
        raise TaskError(f"{path}: no prompts")
    return found


def write_metadata(path: Path, prompts: Iterable[Metadata]) -> pathlib.Path:
    """Writes an `evaluation_metadata.jsonl`; returns its path."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(path, map(dict, prompts))
    return path


def read_images(root: Path) -> Iterator[tuple[str, Metadata, pathlib.Path]]:
    """Folder name, metadata and path of every image, by the official rules, sorted by folder and name.

    A folder counts where its name is all digits, an image where its name starts with
    digits and `.png`: `0000.png.bak` does, `grid.png` and `0000.jpg` do not. The digits
    of a folder mean nothing: its `metadata.jsonl` tells the prompt.

    Raises:
      TaskError: `metadata.jsonl` or `samples` is missing, or the metadata are not one JSON
        object (a second line is refused, as officially) or refused by `check_metadata`; names the file.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise TaskError(f"{root}: no such folder")
    for folder in sorted(root.iterdir()):
        if not (folder.is_dir() and folder.name.isdecimal()):
            continue
        about = folder / "metadata.jsonl"
        metadata = check_metadata(parse_json(read_text(about), str(about)), str(about))
        samples = folder / "samples"
        if not samples.is_dir():
            raise TaskError(f"{samples}: no such folder")
        for image in sorted(samples.iterdir()):
            if re.match(r"\d+\.png", image.name) and image.is_file():
                yield folder.name, metadata, image

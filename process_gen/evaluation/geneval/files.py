"""GenEval's files: metadata, the folder of images, results and their summary.

IMAGES/00000/metadata.jsonl          one JSON object
IMAGES/00000/samples/0000.png ...
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from process_gen.common.files import from_json, whole
from process_gen.common.names import check_name
from process_gen.evaluation.errors import TaskError
from process_gen.evaluation.geneval.decision import OFFICIAL, RELATIONS, Options, Selected

Metadata = Mapping[str, Any]
"""`tag`, `include`, `exclude` (optional) and `prompt`, as in a line of the official file."""

Path = str | os.PathLike[str]

_CLAUSE = ("class", "count", "color", "position")


def check_metadata(metadata: Any, where: str, options: Options = OFFICIAL) -> Metadata:
    """Returns the metadata of a prompt.

    Raises:
      TaskError: they ask for what no image could be judged by, where the official scorer would
        fail late or say wrong of every image: an unknown key, colour or relation, a target that
        is not an earlier clause, a count below 1 or above `max_objects`. Starts with `where`.
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
            _check_clause(clause, index, f"{where}: {key}[{index}]", options)
    if not metadata.get("include") and not metadata.get("exclude"):
        raise TaskError(f"{where}: no clauses, so every image would be correct")
    return metadata


def _check_clause(clause: Any, index: int, where: str, options: Options) -> None:
    def refuse(message: str) -> TaskError:
        return TaskError(f"{where}: {message}")

    if not isinstance(clause, Mapping):
        raise refuse("not a JSON object")
    for key in clause:
        check_name(key, _CLAUSE, "key", refuse)
    if not isinstance(clause.get("class"), str):
        raise refuse("'class' is not a text")
    count = clause.get("count")
    if type(count) is not int or not 1 <= count <= options.max_objects:
        raise refuse(f"'count' must be from 1 to {options.max_objects}, got {count!r}")
    if "color" in clause:
        check_name(str(clause["color"]), options.colors, "color", refuse)
    if "position" in clause:
        match clause["position"]:
            case [str(relation), int(target)] if type(target) is int:
                check_name(relation, RELATIONS, "relation", refuse)
                if not 0 <= target < index:
                    raise refuse(f"target {target} is not an earlier clause")
            case other:
                raise refuse(f"'position' must be [relation, index of an earlier clause], got {other!r}")


def read_metadata(path: Path, options: Options = OFFICIAL) -> list[Metadata]:
    """Reads an `evaluation_metadata.jsonl`, a prompt a line; empty lines are skipped.

    Raises:
      TaskError: it cannot be read, holds no prompt, or has a line that is refused
        (`check_metadata`); names file and line.
    """
    found = []
    for number, line in enumerate(_read(pathlib.Path(path)).splitlines(), 1):
        if line.strip():
            where = f"{path}, line {number}"
            found.append(check_metadata(_parsed(line, where), where, options))
    if not found:
        raise TaskError(f"{path}: no prompts")
    return found


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path}: {error.strerror or error}") from None


def _parsed(text: bytes, where: str) -> Any:
    try:
        return from_json(text)
    except ValueError as error:
        raise TaskError(f"{where}: {error}") from None


def write_metadata(path: Path, prompts: Iterable[Metadata]) -> pathlib.Path:
    """Writes an `evaluation_metadata.jsonl`; returns its path."""
    return _write_lines(path, (json.dumps(dict(one)) for one in prompts))


def _write_lines(path: Path, lines: Iterable[str]) -> pathlib.Path:
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as scratch:
        scratch.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def image_place(folder: str, index: int) -> str:
    """Where an image lies, relative to the images: `00000/samples/0000.png`."""
    return f"{folder}/samples/{index:04d}.png"


def read_images(root: Path, options: Options = OFFICIAL) -> Iterator[tuple[str, Metadata, pathlib.Path]]:
    """Folder name, metadata and path of every image, by the official rules, sorted by folder and name.

    A folder counts where its name is all digits, an image where its name starts with
    digits and `.png`: `0000.png.bak` does, `grid.png` and `0000.jpg` do not. The digits
    of a folder mean nothing, its `metadata.jsonl` says what was asked for.

    Raises:
      TaskError: `metadata.jsonl` or `samples` is missing, or the metadata are not one JSON
        object (a second line is refused, as officially) or refused by `check_metadata`; names the file.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise TaskError(f"{root}: no such folder")
    for folder in sorted(root.iterdir()):
        if not (folder.is_dir() and folder.name.isdigit()):
            continue
        about = folder / "metadata.jsonl"
        metadata = check_metadata(_parsed(_read(about), str(about)), str(about), options)
        samples = folder / "samples"
        if not samples.is_dir():
            raise TaskError(f"{samples}: no such folder")
        for image in sorted(samples.iterdir()):
            if re.match(r"\d+\.png", image.name) and image.is_file():
                yield folder.name, metadata, image


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the official `results.jsonl`.

    Attributes:
      filename: of the image.
      tag, prompt: of its metadata.
      correct, reason: the verdict.
      metadata: as a JSON text.
      details: what counts of each class (`boxes_of`), as a JSON text.
    """

    filename: str
    tag: str
    prompt: str
    correct: bool
    reason: str
    metadata: str
    details: str


def make_result(
    filename: str, metadata: Metadata, correct: bool, reason: str, details: Mapping[str, Any]
) -> Result:
    """The line of an image; `details` as `boxes_of` has them."""
    texts = json.dumps(dict(metadata)), json.dumps(dict(details))
    return Result(filename, metadata["tag"], metadata["prompt"], bool(correct), reason, *texts)


def boxes_of(selected: Selected) -> dict[str, list[list[float]]]:
    """Class -> [x0, y0, x1, y1, score] of what counts of it, in float32."""
    return {cls: [one.to_json() for one in ones] for cls, ones in selected.items()}


def write_results(path: Path, results: Iterable[Result]) -> pathlib.Path:
    """Writes a `results.jsonl`, sorted by folder and name; returns its path.

    The order matters to scorers that name columns by the order of the tags.
    """
    ordered = sorted(results, key=lambda one: one.filename)
    return _write_lines(path, (json.dumps(dataclasses.asdict(one)) for one in ordered))


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the official scorer prints.

    Attributes:
      images: how many.
      prompts: how many, those of equal metadata counted once.
      correct_images: the share of images that are correct.
      correct_prompts: the share of prompts with any correct image.
      tags: tag -> (correct images, images), in the order of the results.
      overall: the unweighted mean of the shares of the tags that are there.
    """

    images: int
    prompts: int
    correct_images: float
    correct_prompts: float
    tags: Mapping[str, tuple[int, int]]
    overall: float

    def __str__(self) -> str:
        lines = [
            *("Summary", "=" * 7),
            f"Total images: {self.images}",
            f"Total prompts: {self.prompts}",
            f"% correct images: {self.correct_images:.2%}",
            f"% correct prompts: {self.correct_prompts:.2%}",
            *("", "Task breakdown", "=" * 14),
            *(f"{tag:<16} = {right / of:.2%} ({right} / {of})" for tag, (right, of) in self.tags.items()),
            *("", f"Overall score (avg. over tasks): {self.overall:.5f}"),
        ]
        return "\n".join(lines)


def summarize(results: Sequence[Result]) -> Summary:
    """Adds results up.

    Raises:
      TaskError: there are none.
    """
    if not results:
        raise TaskError("no results to add up")
    tags, prompts = collections.defaultdict(list), collections.defaultdict(list)
    for one in results:
        tags[one.tag].append(one.correct)
        prompts[one.metadata].append(one.correct)
    return Summary(
        images=len(results),
        prompts=len(prompts),
        correct_images=sum(one.correct for one in results) / len(results),
        correct_prompts=sum(map(any, prompts.values())) / len(prompts),
        tags={tag: (sum(right), len(right)) for tag, right in tags.items()},
        overall=sum(sum(right) / len(right) for right in tags.values()) / len(tags),
    )

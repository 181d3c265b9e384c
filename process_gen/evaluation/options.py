"""Parses options from a command line and reads the files that they name; raises `TaskError`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from process_gen.common.files import from_json
from process_gen.common.images import UNREADABLE, rgb
from process_gen.common.names import check_name

Options = TypeVar("Options")

LONGEST_NAME = 255
"""Bytes of a file name, on most file systems."""

_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class TaskError(ValueError):
    """A task that cannot be run as asked: missing data, a broken file, a bad option; fit for a user."""


@contextlib.contextmanager
def needing_client(who: str) -> Iterator[None]:
    """Turns a missing `openai` package in the block into a TaskError that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "openai":
            raise
        raise TaskError(f'{who} needs the openai client: pip install "process_gen[judges]"') from error


def from_text(kind: type[Options], name: str, options: Mapping[str, str]) -> Options:
    """An instance of a dataclass whose fields are options; messages call them options of `name`.

    Raises:
      TaskError: an unknown option, which names the nearest one, or a value of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    known = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    values = {}
    for option, text in options.items():
        check_name(option, known, f"option of {name}", TaskError)
        values[option] = _convert(text, known[option], f"{name}.{option}")
    return kind(**values)


def from_words(words: Sequence[str], names: Sequence[str], flag: str, kind: str) -> dict[str, dict[str, str]]:
    """Name -> option -> value, from `name.option=value`; `flag` and `kind` are for messages.

    Raises:
      TaskError: other words, or a name that is not among `names`.
    """
    found: dict[str, dict[str, str]] = {name: {} for name in dict.fromkeys(names)}
    for word in words:
        left, equals, value = word.partition("=")
        name, dot, option = left.partition(".")
        if not equals or not dot:
            raise TaskError(f"{flag} takes {kind.split()[0]}.option=value, got {word!r}")
        check_name(name, names, kind, TaskError)
        found[name][option] = value
    return found


def _convert(text: str, kind: Any, where: str) -> Any:
    """The value of an option, by the type of its field."""
    if typing.get_origin(kind) is typing.Literal:
        return check_name(text, typing.get_args(kind), where, TaskError)
    if kind is bool:
        if text.lower() not in _BOOLS:
            raise TaskError(f"{where} must be true or false, got {text!r}")
        return _BOOLS[text.lower()]
    try:
        return kind(text)
    except ValueError:
        what = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise TaskError(f"{where} must be {what}, got {text!r}") from None


def data_path(task: str, option: str, value: str) -> pathlib.Path:
    """The file or folder that an option of a task names.

    Raises:
      TaskError: the option is empty, or there is nothing of that name.
    """
    if not value:
        raise TaskError(f"{task} needs {option}=PATH: its prompts are not shipped")
    path = pathlib.Path(value).expanduser()
    if not path.exists():
        raise TaskError(f"{task}.{option}: there is no {path}")
    return path


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file, with or without a byte-order mark; line ends become `\\n`.

    Raises:
      TaskError: it cannot be read, or is no UTF-8; names the file.
    """
    try:
        return pathlib.Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TaskError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 at byte {error.start}") from error


def read_image(path: pathlib.Path) -> np.ndarray:
    """An image file as [H, W, 3] uint8; TaskError, which names it, if it cannot be read."""
    try:
        return rgb(path)
    except UNREADABLE as error:
        raise TaskError(f"cannot read the image {str(path)!r}: {error}") from None


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text; TaskError, which begins with `where`, if it is none."""
    try:
        return from_json(text)
    except ValueError as error:
        raise TaskError(f"{where}: {error}") from None


def json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[str, Any]]:
    """Yields the place (for messages) and the value of each line of a JSONL file; skips empty ones.

    Raises:
      TaskError: the file cannot be read or a line is no JSON; names file and line.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, parse_json(line, where)

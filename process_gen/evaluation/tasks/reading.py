"""Text files of benchmarks, refused in one way."""

from __future__ import annotations

import os
import pathlib

from process_gen.evaluation.tasks.base import TaskError

LONGEST_NAME = 255
"""Bytes of a file name, on most file systems."""


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

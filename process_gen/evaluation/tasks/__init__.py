"""Benchmarks, one file each. To add one, write a `Task` and name it here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from process_gen.common.names import check_name
from process_gen.evaluation.tasks.base import Task, TaskError
from process_gen.evaluation.tasks.geneval import Geneval, GenevalHF
from process_gen.evaluation.tasks.scenes import Scenes

TASKS: Mapping[str, type[Task]] = {task.name: task for task in (Geneval, GenevalHF, Scenes)}
"""Name -> task."""


def make_task(name: str, options: Mapping[str, Any]) -> Task:
    """A task with options as the command line gives them.

    Raises:
      TaskError: an unknown task or option (names the nearest), or a value that cannot be.
    """
    check_name(name, TASKS, "task", TaskError)
    kinds = {field.name: type(field.default) for field in dataclasses.fields(TASKS[name])}
    found = {}
    for key, value in options.items():
        check_name(key, kinds, f"option of {name}", TaskError)
        found[key] = _read(f"{name}.{key}", str(value), kinds[key])
    return TASKS[name](**found)


def _read(option: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise TaskError(f"{option} must be true or false, got {text!r}")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise TaskError(f"{option} must be a {kind.__name__}, got {text!r}") from None

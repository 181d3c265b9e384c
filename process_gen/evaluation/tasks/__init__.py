"""Benchmarks, one file each, and how a command makes one: by name, with options as text."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from process_gen.common.names import check_name
from process_gen.evaluation.tasks.base import Task, TaskError
from process_gen.evaluation.tasks.dpg import Dpg
from process_gen.evaluation.tasks.geneval import Geneval, GenevalHF
from process_gen.evaluation.tasks.prompts import Prompts
from process_gen.evaluation.tasks.scenes import Scenes
from process_gen.evaluation.tasks.t2i_compbench import T2ICompBench
from process_gen.evaluation.tasks.wise import Wise

_OURS = (Scenes, Geneval, GenevalHF, Wise, Dpg, T2ICompBench, Prompts)

TASKS: dict[str, type[Task]] = {task.name: task for task in _OURS}
"""Add a task of your own before `make_task` is asked for it."""

_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def make_task(name: str, options: Mapping[str, str] | None = None) -> Task:
    """The task of this name; options are its fields, as text from a command line.

    Raises:
      TaskError: an unknown name or option, which names the nearest one, or a value of the wrong type.
    """
    kind = TASKS[check_name(name, TASKS, "task", TaskError)]
    hints = typing.get_type_hints(kind)
    known = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    values = {}
    for option, text in (options or {}).items():
        check_name(option, known, f"option of {name}", TaskError)
        values[option] = _convert(text, known[option], f"{name}.{option}")
    task = kind(**values)
    if task.images < 1:
        raise TaskError(f"{name}.images must be at least 1, got {task.images}")
    return task


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

"""Benchmarks, one file each, and how a command makes one: by name, with options as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from process_gen.common.names import check_name
from process_gen.evaluation.options import from_text, from_words
from process_gen.evaluation.tasks.base import Task, TaskError
from process_gen.evaluation.tasks.dpg import Dpg
from process_gen.evaluation.tasks.geneval import Geneval, GenevalHF
from process_gen.evaluation.tasks.prompts import Prompts
from process_gen.evaluation.tasks.scenes import Scenes
from process_gen.evaluation.tasks.t2i_compbench import T2ICompBench
from process_gen.evaluation.tasks.wise import Wise

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Scenes, Geneval, GenevalHF, Wise, Dpg, T2ICompBench, Prompts)
}
"""Name -> task. Add one of your own here before `make_task` is called with its name."""


def make_task(name: str, options: Mapping[str, str] | None = None) -> Task:
    """The task of this name; options are its fields, as text from a command line.

    Raises:
      TaskError: an unknown name or option (the message has the nearest), or a value of a wrong type or range.
    """
    kind = TASKS[check_name(name, TASKS, "task", TaskError)]
    task = from_text(kind, name, options or {})
    if task.images < 1:
        raise TaskError(f"{name}.images must be at least 1, got {task.images}")
    return task


def options_of(words: Sequence[str], tasks: Sequence[str]) -> dict[str, dict[str, str]]:
    """Task -> option -> value, from `task.option=value`.

    Raises:
      TaskError: an unknown task, or an option of a task that is not among `tasks`.
    """
    for task in tasks:
        check_name(task, TASKS, "task", TaskError)
    return from_words(words, tasks, "--task_args", "task among --tasks")

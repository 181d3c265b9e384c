"""Options as text from a command line, by the fields of a dataclass."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from process_gen.common.names import check_name
from process_gen.evaluation.errors import TaskError

Options = TypeVar("Options")

_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def from_text(kind: type[Options], name: str, options: Mapping[str, str]) -> Options:
    """An instance of a dataclass whose fields are options, those of `name` in messages.

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

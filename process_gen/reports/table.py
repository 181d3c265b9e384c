"""A text table for terminals: aligned columns, formatted numbers."""

from __future__ import annotations

import numbers
import unicodedata
from collections.abc import Sequence
from typing import Any

from process_gen.reports.text import one_line


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str], digits: int = 3) -> str:
    """Formats `rows` under `headers` with aligned columns; columns of numbers are right-aligned.

    Cells are of any type: None is shown as `-`, and `digits` are the decimals of every float. Raises
    ValueError where a row has more or fewer cells than there are headers.
    """
    columns = []
    for name, *values in zip(headers, *rows, strict=True):
        texts, right = [one_line(name), *(cell(value, digits) for value in values)], is_numeric(values)
        width = max(map(_width, texts))
        head, *body = (_pad(text, width, right) for text in texts)
        columns.append([head, "-" * width, *body])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def cell(value: Any, digits: int = 3) -> str:
    """One value as text: numbers formatted, None as `-`, control characters shown."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, numbers.Number):
        return one_line(str(value))
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    return f"{float(value):.{digits}f}"


def is_numeric(values: Sequence[Any]) -> bool:
    """Whether a column holds numbers only, None aside; False without any."""
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(v, numbers.Number) and not isinstance(v, bool) for v in known)


def _width(text: str) -> int:
    """Columns that a terminal gives the text."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def _pad(text: str, width: int, right: bool) -> str:
    blanks = " " * (width - _width(text))
    return blanks + text if right else text + blanks

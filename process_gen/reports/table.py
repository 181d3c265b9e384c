"""A text table for terminals: aligned columns, formatted numbers."""

from __future__ import annotations

import numbers
import unicodedata
from collections.abc import Sequence
from typing import Any

from process_gen.reports.text import one_line


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str], digits: int = 3) -> str:
    """Lays out `rows` under `headers`; columns of numbers stand to the right.

    Args:
      rows: cells of any kind; None is shown as `-`, floats with `digits` digits.
      headers: one per column.
      digits: after the point of every float.
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"a row has {len(row)} cells under {len(headers)} headers: {list(row)!r}")
    cells = [[cell(value, digits) for value in row] for row in rows]
    names = [one_line(name) for name in headers]
    right = [is_numeric([row[i] for row in rows]) for i in range(len(headers))]
    widths = [max([_width(name), *(_width(row[i]) for row in cells)]) for i, name in enumerate(names)]

    def line(values: Sequence[str]) -> str:
        padded = (
            _pad(value, width, flush) for value, width, flush in zip(values, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(names), "  ".join("-" * width for width in widths), *map(line, cells)])


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
    """Whether a column holds numbers (and gaps) only."""
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

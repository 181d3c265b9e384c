"""Conditions on values that users type or files hold, with the words for error messages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Range:
    """A condition on a value (`holds`), and its words in an error message (`text`)."""

    text: str
    holds: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Whether it is an int or float (no bool) that is finite as a float; ints of JSON may be too large."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def one_of(*choices: str) -> Range:
    return Range(f"one of {', '.join(choices)}", lambda value: value in choices)


COUNT = Range("a whole number of at least 1", lambda value: is_whole(value) and value >= 1)
COUNT_OR_OFF = Range("a whole number of at least 0 (0 is off)", lambda value: is_whole(value) and value >= 0)
SEED = Range("a whole number in [0, 2^32)", lambda value: is_whole(value) and 0 <= value < 2**32)
SHARE = Range("between 0 and 1", lambda value: is_number(value) and 0 <= value <= 1)
POSITIVE = Range("a number above 0", lambda value: is_number(value) and value > 0)
NOT_NEGATIVE = Range("a number of at least 0", lambda value: is_number(value) and value >= 0)

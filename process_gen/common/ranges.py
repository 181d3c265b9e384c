"""What a value that a user types or a file holds may be, and how to say it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Range:
    """A condition on a value, and how to say it."""

    text: str
    holds: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Whether it is an int or a float, finite as a float: the ints of JSON may be too large."""
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

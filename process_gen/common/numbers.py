"""Numbers that a user types or a file holds."""

from __future__ import annotations

import math
from typing import Any


def is_number(value: Any) -> bool:
    """Whether it is an int or a float, finite as a float: the ints of JSON may be too large."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False

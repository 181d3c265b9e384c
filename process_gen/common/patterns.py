"""Selects names by patterns, as `.gitignore` selects files.

A pattern matches a whole name such as `backbone/layers/gen/q_proj/kernel`: `*` is any text, slashes too,
`?` one character, `[qk]` one of those listed. The last pattern that matches a name decides; if it begins
with `!`, the name is not selected: `("*", "!backbone/*gen*")` is all but the generation expert.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any

OUT = "!"


def chooses(patterns: Sequence[str], name: str) -> bool:
    """Whether the patterns select a name."""
    for pattern in reversed(patterns):
        if fnmatch.fnmatchcase(name, pattern.removeprefix(OUT)):
            return not pattern.startswith(OUT)
    return False


def check(
    patterns: Any, names: Iterable[str], key: str, error: Callable[[str], Exception] = ValueError
) -> None:
    """Raises `error`, which names `key`, for patterns that are no texts or match none of the names."""
    if not isinstance(patterns, (tuple, list)) or not all(isinstance(p, str) and p for p in patterns):
        raise error(f"{key} must be a tuple of patterns, such as ('vit/*',), got {patterns!r}")
    names = sorted(names)
    for pattern in patterns:
        word = pattern.removeprefix(OUT)
        if not fnmatch.filter(names, word):
            near = [name for name in names if word.strip("*/") in name][:3]
            near = near or difflib.get_close_matches(word, names, 3, cutoff=0.0)
            raise error(
                f"{key} has {pattern!r}, which matches no parameter (a pattern is for a whole name, * "
                f"for any text in it): the nearest are {', '.join(near)}"
            )

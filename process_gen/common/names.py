"""Checks names that a user types; errors suggest the nearest known ones."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


def hint(name: object, known: Iterable[str]) -> str:
    """The end of an error message about an unknown `name`: the nearest known ones, or else all of them.

    `name` may be of any type, as values in config files are.
    """
    known = list(known)
    if near := difflib.get_close_matches(str(name), known):
        return f"did you mean {' or '.join(near)}?"
    return f"known are {', '.join(sorted(known))}"


def check_name(
    name: str, known: Iterable[str], what: str, error: Callable[[str], Exception] = ValueError
) -> str:
    """Returns `name`; raises `error` where it is not among the known ones of its kind (`what`)."""
    known = list(known)
    if name not in known:
        raise error(f"unknown {what} {name!r}; {hint(name, known)}")
    return name

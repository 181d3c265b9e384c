"""Helpers of all texts: random choice, plurals, lists, and the count of tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from numpy.random import Generator

from process_gen.scenes.levels import NUMBERS, PLURALS

_TOKEN = re.compile(r"<[^<>\s]*>|\w+|[^\w\s]")


def pick(rng: Generator, options: Sequence[Any]) -> Any:
    """Draws one of the options uniformly."""
    return options[int(rng.random() * len(options))]


def inflect(shape: str, count: int | None) -> str:
    return shape if count in (1, None) else PLURALS[shape]


def noun_phrase(count: int | None, colour: str | None, shape: str) -> str:
    """Such as "two red circles", or "a circle" where `count` is None."""
    number = "a" if count is None else NUMBERS[count]
    return " ".join(filter(None, (number, colour, inflect(shape, count))))


def listed(items: Sequence[str], last: str) -> str:
    """Joins items by commas, and the last one by `last`, such as " and "."""
    return last.join(filter(None, (", ".join(items[:-1]), items[-1])))


def count_tokens(text: str) -> int:
    """Words, punctuation marks and special tokens, each counted as one."""
    return len(_TOKEN.findall(text))

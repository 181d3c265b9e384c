"""What all texts share: a choice of words, numbers of things, and how texts are counted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from process_gen.scenes.levels import NUMBERS, PLURALS

T = TypeVar("T")

_TOKEN = re.compile(r"<[^<>\s]*>|\w+|[^\w\s]")


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, each as likely."""
    return options[int(rng.random() * len(options))]


def inflect(shape: str, count: int) -> str:
    return shape if count == 1 else PLURALS[shape]


def noun_phrase(count: int, colour: str | None, shape: str) -> str:
    """Such as "two red circles" or "one circle"."""
    return " ".join(filter(None, (NUMBERS[count], colour, inflect(shape, count))))


def count_tokens(text: str) -> int:
    """Words, punctuation marks and special tokens, each counted as one."""
    return len(_TOKEN.findall(text))

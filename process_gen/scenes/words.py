"""Two small things that all texts share: how they are drawn and how they are counted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_TOKEN = re.compile(r"<[^<>\s]*>|\w+|[^\w\s]")


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, each as likely."""
    return options[int(rng.random() * len(options))]


def count_tokens(text: str) -> int:
    """Words, punctuation marks and special tokens, each counted as one."""
    return len(_TOKEN.findall(text))

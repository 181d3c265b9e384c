"""Collectives on texts: what the hosts of a run tell one another to come to the same answer."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils


def allgather_text(text: str) -> list[str]:
    """Collective: the texts of all processes, by their index. Every process has to call it."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([data.size]))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[: int(size)]).decode() for row, size in zip(rows, sizes.ravel(), strict=True)]


def first_message(text: str) -> str:
    """Collective: the first text of all processes that is not empty, or "". Every process has to call it."""
    return next(filter(None, allgather_text(text)), "")

"""Reads ahead on threads."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any


class ReadAhead:
    """Calls `read` on a thread pool for the next positions, before they are asked for.

    A call returns what `read` returns for a position, and raises what it raises. Positions may come in any
    order; only ascending ones gain from reading ahead.
    """

    def __init__(
        self, read: Callable[[int], Any], pool: concurrent.futures.Executor, window: int, length: int
    ):
        """`read` must be thread-safe; it is called for `window` positions from the asked one on."""
        self._read, self._pool, self._window, self._length = read, pool, window, length
        self._ahead: dict[int, concurrent.futures.Future] = {}

    def __call__(self, position: int) -> Any:
        wanted = range(position, min(position + self._window, self._length))
        for other in [other for other in self._ahead if other not in wanted]:
            self._ahead.pop(other).cancel()
        for other in wanted:
            if other not in self._ahead:
                self._ahead[other] = self._pool.submit(self._read, other)
        return self._ahead.pop(position).result()

"""Reading ahead on threads."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any


class Ahead:
    """Reads what comes next on threads; it gives what `read` gives, and raises what it raises.

    It is made to be asked in order, and right in any.
    """

    def __init__(
        self, read: Callable[[int], Any], pool: concurrent.futures.Executor, window: int, length: int
    ):
        """`read` is safe to call from several threads; `window` counts the position that is asked for."""
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

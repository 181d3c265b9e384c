"""Threads that ask: whoever leaves in a hurry does not wait for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent import futures

LOOK_SECONDS = 0.2
"""Between two looks whether to stop, while nothing comes back."""


@contextlib.contextmanager
def workers_of(count: int) -> Iterator[futures.ThreadPoolExecutor]:
    """A pool of threads; an exception, as by a second signal to stop, leaves behind those that wait."""
    pool = futures.ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()

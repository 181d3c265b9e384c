"""A pool of threads for requests, which an exception leaves without waiting for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent import futures

LOOK_SECONDS = 0.2
"""Seconds between two checks for a stop while no request ends."""


@contextlib.contextmanager
def workers_of(count: int) -> Iterator[futures.ThreadPoolExecutor]:
    """Yields a pool of threads; on an exception it cancels what is queued and does not wait for the rest."""
    pool = futures.ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()

"""Handles requests to stop: from a scheduler that takes the machine away, or by Ctrl-C.

    with stopping.deferred() as stop:
        for step in ...:
            ...
            if stop.at(step):
                save()
                raise stopping.Stopped("step 120 is saved")

Inside `deferred` the first SIGTERM or Ctrl-C is kept until the loop asks for
it, and a second one ends the process at once. Elsewhere in a command SIGTERM
raises `Stopped` at once, so that `finally` blocks release locks and remove
half-written files. Either way the command ends with `EXIT_CODE`: nothing is
wrong, and the same command goes on from what is saved.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from absl import logging

EXIT_CODE = 75
"""`EX_TEMPFAIL` of sysexits.h: stopped by a signal, everything is saved, start the same command again."""


class Stopped(Exception):
    """The command was told to stop; the message says what is saved.

    Attributes:
      at_once: True after a second signal: the process exits without waiting for its threads.
    """

    def __init__(self, message: str, at_once: bool = False):
        super().__init__(message)
        self.at_once = at_once


class Stop:
    """Whether the command was asked to stop; `name` is that of the signal this process got, None without."""

    def __init__(self):
        self.name: str | None = None

    def at(self, step: int) -> bool:
        """Whether to stop after this step; all hosts have to ask after every step, and get the same answer.

        With `jax.distributed`, JAX catches SIGTERM in any process and picks a step that none has passed.
        """
        if _is_distributed():
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self.name is not None

    @property
    def asked(self) -> bool:
        """Whether this process was asked to stop: for loops in which hosts do not wait for each other.

        With `jax.distributed`, a SIGTERM to any of its processes counts for all.
        """
        return self.name is not None or (_is_distributed() and _noticed())

    def check(self) -> None:
        """Raises `Stopped` if this process was asked to stop: for loops that have nothing to save."""
        if self.asked:
            by_whom = "" if self.name else " by one of the hosts"
            raise Stopped(f"{self.name or 'SIGTERM'} was received{by_whom}")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        name = signal.Signals(number).name
        if self.name is not None:
            raise Stopped(f"{name} was received a second time: what was not saved by then is lost", True)
        self.name = name
        if _is_distributed():
            os.kill(os.getpid(), signal.SIGTERM)  # JAX tells all processes of it
        logging.warning("%s: stopping after this step; once more to leave at once", name)


@contextlib.contextmanager
def deferred() -> Iterator[Stop]:
    """Holds signals back during the block, whose loop asks the yielded `Stop` for them.

    Does nothing outside the main thread. With `jax.distributed`, SIGTERM is left to JAX.
    """
    stop, heard = Stop(), [signal.SIGINT] if _is_distributed() else [signal.SIGINT, signal.SIGTERM]
    if threading.current_thread() is not threading.main_thread():
        heard = []
    before = {number: signal.signal(number, stop._on_signal) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def until_told() -> Iterator[None]:
    """Suppresses the `Stopped` of a first signal, which ends the block; that of a second one passes."""
    try:
        yield
    except Stopped as stop:
        if stop.at_once:
            raise


def _is_distributed() -> bool:
    """Whether `jax.distributed` is initialized; does not import JAX to find out."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _noticed() -> bool:
    """Whether JAX has told all processes that one of them got SIGTERM."""
    import jax
    from jax._src import distributed  # there is no public way to ask without naming a step

    try:
        distributed.global_state.client.key_value_try_get("RECEIVED_PREEMPTION_NOTICE")
    except jax.errors.JaxRuntimeError:  # it is not there
        return False
    return True


def raise_on_sigterm() -> None:
    """From now on SIGTERM raises `Stopped` in the main thread."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Stopped(f"{signal.Signals(number).name} was received")

    signal.signal(signal.SIGTERM, leave)

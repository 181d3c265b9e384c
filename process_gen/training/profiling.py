"""Profiler traces of a few steps: early ones if the config asks, and any time on request.

    touch WORKDIR/PROFILE      # asks for a trace

The lead host looks for that file every few steps, removes it, and traces its own devices into
`WORKDIR/profile`, for TensorBoard's profile plugin or https://ui.perfetto.dev. Where libtpu is installed and
there is no TPU, JAX's profiler crashes unless JAX_PLATFORMS=cpu is set.
"""

from __future__ import annotations

import pathlib

import jax
from absl import logging
from etils import epath

from process_gen.distributed import hosts

REQUEST = "PROFILE"
STEPS = 3
EARLY = 5
"""The first step of the early trace, late enough to leave out compilation and warm-up."""


class Profiler:
    """Starts and stops the traces of one run.

    Args:
      workdir: where requests are looked for.
      folder: where traces are written.
      early: whether steps `EARLY` to `EARLY + STEPS - 1` are traced.
      look_every: steps between looks for a request (slow in a bucket).
    """

    def __init__(self, workdir: str, folder: pathlib.Path, early: bool, look_every: int):
        self._request, self._traces = epath.Path(workdir) / REQUEST, folder / "profile"
        self._early, self._look_every = early, look_every
        self._last: int | None = None

    @property
    def tracing(self) -> bool:
        return self._last is not None

    def before(self, step: int) -> None:
        """Starts or stops a trace; call it before `step` (of this start, from 1) is dispatched."""
        if self.tracing:
            # Metrics are fetched one step late: only now are the devices through with the last step.
            if step > self._last + 1:
                self.stop()
        elif hosts.is_lead() and (self._early and step == EARLY or self._requested(step)):
            jax.profiler.start_trace(str(self._traces))
            self._last = step + STEPS - 1

    def stop(self) -> None:
        """Ends the trace that is going on, if any."""
        if self.tracing:
            self._last = None
            jax.profiler.stop_trace()
            logging.info("profile written to %s", self._request.parent / self._traces.name)

    def _requested(self, step: int) -> bool:
        """Whether there is a request at a step that looks for one; removes it."""
        if step % self._look_every:
            return False
        try:
            if not self._request.exists():
                return False
            self._request.unlink(missing_ok=True)
        except Exception as error:  # of a file system or of gcsfs; the run goes on
            logging.warning("%s cannot be looked for (%s)", self._request, error)
            return False
        return True

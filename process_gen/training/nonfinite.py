"""Steps without a finite gradient: counted, kept for a closer look, and at some point the end of the run.

The train step has left the parameters as they were by then, and counted the batch as seen: the run goes on
behind it. What is kept is the batch, for a look at what is wrong with it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

import flax.traverse_util
import jax
import numpy as np
from absl import logging

FOLDER = "nonfinite"


MOST_FILES = 50
"""Batches that a host keeps, the newest ones: a run that goes on must not fill the disk."""


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is not a number; the last good state is on disk."""


@dataclasses.dataclass
class NonFiniteGuard:
    """Counts the steps in a row that left the parameters as they were.

    Attributes:
      workdir: `workdir/nonfinite` gets the batches.
      limit: how many in a row are too many.
    """

    workdir: pathlib.Path
    limit: int
    count: int = 0

    def record(self, step: int, metrics: Mapping[str, float], batch: Mapping[str, np.ndarray]) -> bool:
        """Takes note of a step, whose metrics every host has and whose batch each has its rows of.

        Returns:
          Whether the run must end.
        """
        if metrics["finite"]:
            self.count = 0
            return False
        self.count += 1
        path = self._save(step, metrics, batch)
        logging.warning(
            "step %d has %s: parameters stay as they were (%d in a row, %d end the run); its batch is in %s",
            step, names_of(metrics), self.count, self.limit, path,
        )  # fmt: skip
        return self.count >= self.limit

    def _save(self, step: int, metrics: Mapping[str, float], batch: Mapping[str, np.ndarray]) -> pathlib.Path:
        """Writes `batch/<field>` and `metrics/<name>`; `Batch(**fields)` is the batch without its `extra`."""
        host = f"_host{jax.process_index():03d}" if jax.process_count() > 1 else ""
        path = self.workdir / FOLDER / f"step_{step:07d}{host}.npz"
        flat = flax.traverse_util.flatten_dict(dict(batch), sep="/")
        arrays = {f"batch/{name}": value for name, value in flat.items()}
        arrays |= {f"metrics/{name}": value for name, value in metrics.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for old in sorted(path.parent.glob(f"step_*{host}.npz"))[: 1 - MOST_FILES]:
                old.unlink()
            np.savez_compressed(path, **arrays)
        except OSError as error:  # a look at the batch is worth no checkpoint
            logging.warning("%s could not be written: %s", path, error)
        return path


def names_of(metrics: Mapping[str, float]) -> str:
    """Which metrics are not finite, for messages."""
    found = sorted(name for name, value in metrics.items() if not np.isfinite(value))
    return f"no finite {', '.join(found) or 'gradient'}"

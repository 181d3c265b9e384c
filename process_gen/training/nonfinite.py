"""Counts steps with a non-finite loss or gradient, saves their batches, and ends the run after too many.

The train step has already left the parameters unchanged and counted the batch as seen, so the run goes on
with the next one. Batches are saved so that somebody can find out what is wrong with them.
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
"""Newest saved batches that a host keeps, so that they do not fill the disk."""


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is not finite; the last good state is on disk."""


@dataclasses.dataclass
class NonFiniteGuard:
    """Counts the non-finite steps in a row, `limit` of which end the run; saves their batches."""

    workdir: pathlib.Path
    limit: int
    count: int = 0

    def record(self, step: int, metrics: Mapping[str, float], batch: Mapping[str, np.ndarray]) -> bool:
        """Records a step. All hosts have the same metrics, and each its own rows of the batch.

        Returns:
          Whether the run must end.
        """
        if metrics["finite"]:
            self.count = 0
            return False
        self.count += 1
        path = self._save(step, metrics, batch)
        logging.warning(
            "step %d has %s: parameters stay as they were (%d in a row, %d end the run); its batch is in "
            "%s of the workdir",
            step,
            names_of(metrics),
            self.count,
            self.limit,
            path.relative_to(self.workdir),
        )
        return self.count >= self.limit

    def _save(self, step: int, metrics: Mapping[str, float], batch: Mapping[str, np.ndarray]) -> pathlib.Path:
        """Saves `batch/<field>` and `metrics/<name>`; user-defined fields are `batch/extra/<name>`."""
        host = f"_host{jax.process_index():03d}" if jax.process_count() > 1 else ""
        path = self.workdir / FOLDER / f"step_{step:07d}{host}.npz"
        flat = flax.traverse_util.flatten_dict(dict(batch), sep="/")
        arrays = {f"batch/{name}": value for name, value in flat.items()}
        arrays |= {f"metrics/{name}": value for name, value in metrics.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            mine = (old for old in path.parent.glob(f"step_*{host}.npz") if host or "_host" not in old.name)
            for old in sorted(mine)[: 1 - MOST_FILES]:
                old.unlink()
            np.savez_compressed(path, **arrays)
        except OSError as error:  # the run goes on without the file
            logging.warning("%s could not be written: %s", path, error)
        return path


def names_of(metrics: Mapping[str, float]) -> str:
    """Which metrics are not finite, for messages."""
    found = sorted(name for name, value in metrics.items() if not np.isfinite(value))
    return f"no finite {', '.join(found) or 'gradient'}"

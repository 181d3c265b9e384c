"""Which steps stay on disk, and whether there is room for another."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from orbax.checkpoint import checkpoint_managers as managers

_SPARE = 1.05  # of the arrays' bytes: the manifest, the metadata, and what a file system takes for itself


@dataclasses.dataclass(frozen=True)
class BestSteps(managers.PreservationPolicy):
    """Keeps the steps with the highest scores.

    Attributes:
      count: how many.
      scores: by step; steps that were not scored are not kept for this.
    """

    count: int
    scores: Mapping[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """One answer per checkpoint."""
        del context
        scored = sorted((info.step for info in checkpoints if info.step in self.scores), key=self.scores.get)
        best = set(scored[-self.count :])
        return [info.step in best for info in checkpoints]


def policy(keep: int, keep_every: int, keep_best: int, scores: Mapping[int, float]) -> Any:
    """The newest `keep` steps, multiples of `keep_every`, and the best `keep_best` (0 is none of them)."""
    rules: list[Any] = [managers.LatestN(keep)]
    if keep_every:
        rules.append(managers.EveryNSteps(keep_every))
    if keep_best:
        rules.append(BestSteps(keep_best, scores))
    return managers.AnyPreservationPolicy(rules)


def free_space(root: epath.Path) -> float:
    """Bytes that are left in a folder; infinitely many where there is no telling."""
    return math.inf if "://" in str(root) else float(shutil.disk_usage(root).free)


def missing_room(root: epath.Path, size: float, step: int, last: int | None) -> str:
    """Compares the free space of `root` with what a save is about to write, `size` bytes of arrays.

    Returns:
      Nothing if it fits, else a message that names sizes and the last good step.
    """
    needed, free = _SPARE * size, free_space(root)
    if free >= needed:
        return ""
    kept = "nothing has been saved yet" if last is None else f"the last good one is step {last}"
    return (
        f"step {step} needs {needed / 1e9:.3g} GB and {root} has {free / 1e9:.3g} GB left; {kept}. "
        "Make room and start the same command again."
    )

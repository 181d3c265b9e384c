"""Which steps stay on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from orbax.checkpoint import checkpoint_managers as managers


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

"""What happened on the way, seen through the judge of images: any task whose states are judged has these.

With v(k) the score of what step k leaves and n the number of steps, over trajectories:

    score_at_step_k     mean of v(k), where there is a step k
    refined_better      of corrections, the share whose image scores higher than the image that they correct
    refined_worse       of corrections, the share whose image scores lower
    never_worse         of steps after the first, the share with v(k) >= v(k - 1)
    stopped_wrong       the model ended it, and v(n) < 1: unfinished, or with an error that nobody mended
    stopped_too_late    v(k) = 1 for a k < n: it was right, and the model went on
    late_and_lost       of those, the share with v(n) < 1
    stopped_by_cap      the budget of turns or Euler steps ended it

The judge reads the whole prompt, so an unfinished image is no error of the model: only comparisons of one
image with the next, and the ends, say something of it. What a plan says no such judge can see; the exact
counts of `process` are for worlds in which a parser reads everything.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Sequence

RIGHT = 1.0
"""The score of a right image."""


@dataclasses.dataclass
class StateCounts:
    """Sums over trajectories; `of` counts one."""

    trajectories: int = 0
    corrections: int = 0
    refined_better: int = 0
    refined_worse: int = 0
    steps_after: int = 0
    never_worse: int = 0
    by_model: int = 0
    wrong: int = 0
    too_late: int = 0
    lost: int = 0
    by_cap: int = 0
    reached: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    scores: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)

    def count(self, states: Sequence[tuple[int, str, float]], stopped: str | None) -> None:
        """Adds a trajectory.

        Args:
          states: step, role and score of every image, in order; all of them.
          stopped: who ended it, `model` or `cap`.
        """
        self.trajectories += 1
        for (step, _, before), (after, _, score) in itertools.pairwise(states):
            if step == after:
                self.corrections += 1
                self.refined_better += score > before
                self.refined_worse += score < before
        left = {step: score for step, _, score in states}
        for step, score in left.items():
            self.reached[step] += 1
            self.scores[step] += score
        values = list(left.values())
        self.steps_after += len(values) - 1
        self.never_worse += sum(b >= a for a, b in itertools.pairwise(values))
        self.by_model += stopped == "model"
        self.by_cap += stopped == "cap"
        self.wrong += stopped == "model" and values[-1] < RIGHT
        late = any(value >= RIGHT for value in values[:-1])
        self.too_late += late
        self.lost += late and values[-1] < RIGHT

    def shares(self) -> dict[str, tuple[float, float]]:
        """Every figure that there is something to say of, as a sum and what of (`statistics.Shares`)."""
        pairs = {
            "refined_better": (self.refined_better, self.corrections),
            "refined_worse": (self.refined_worse, self.corrections),
            "never_worse": (self.never_worse, self.steps_after),
            "stopped_wrong": (self.wrong, self.by_model),
            "stopped_too_late": (self.too_late, self.trajectories),
            "late_and_lost": (self.lost, self.too_late),
            "stopped_by_cap": (self.by_cap, self.trajectories),
        }
        pairs |= {f"score_at_step_{k}": (self.scores[k], n) for k, n in sorted(self.reached.items())}
        return {name: pair for name, pair in pairs.items() if pair[1]}

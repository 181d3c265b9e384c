"""Measures of the steps of trajectories, from a judge's score of every image; they work for any judge.

With v(k) the score of the last image of step k and n the number of steps:

    score_at_step_k     mean of v(k) over the trajectories that have a step k
    refined_better      share of corrections whose image scores higher than the image that they correct
    refined_worse       share of corrections whose image scores lower
    never_worse         share of steps after the first with v(k) >= v(k - 1)
    stopped_wrong       of trajectories that the model ended, the share with v(n) < 1
    stopped_too_late    share of trajectories with v(k) = 1 for a k < n: the model went on from a right image
    late_and_lost       of those, the share with v(n) < 1
    stopped_by_cap      share of trajectories that the limit on turns or Euler steps ended

The judge scores each image by the whole prompt, so a low score of an unfinished image is no error. Only
differences between images that follow each other, and the last scores, tell something of the model. Errors
in plans do not show here: `process` counts them in worlds where a parser reads every image.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from process_gen.evaluation.statistics import Shares

RIGHT = 1.0
"""The score of a right image."""


def shares_of_states(states: Sequence[tuple[int, str, float]], stopped: str | None) -> Shares:
    """The numerator and denominator that one trajectory adds to each measure of the module.

    Args:
      states: step (from 1), role and score from 0 to 1 of every image of the trajectory, in order.
      stopped: who ended it, `model` or `cap`.
    """
    pairs = list(itertools.pairwise(states))
    corrected = [(before, score) for (step, _, before), (after, _, score) in pairs if step == after]
    left = {step: score for step, _, score in states}
    values = list(left.values())
    wrong, late = values[-1] < RIGHT, any(value >= RIGHT for value in values[:-1])
    by_model = stopped == "model"
    return {
        "refined_better": (sum(score > before for before, score in corrected), len(corrected)),
        "refined_worse": (sum(score < before for before, score in corrected), len(corrected)),
        "never_worse": (sum(b >= a for a, b in itertools.pairwise(values)), len(values) - 1),
        "stopped_wrong": (by_model and wrong, by_model),
        "stopped_too_late": (late, 1),
        "late_and_lost": (late and wrong, late),
        "stopped_by_cap": (stopped == "cap", 1),
        **{f"score_at_step_{step}": (score, 1) for step, score in left.items()},
    }

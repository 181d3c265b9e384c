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

import itertools
from collections.abc import Sequence

from process_gen.evaluation.statistics import Shares

RIGHT = 1.0
"""The score of a right image."""


def shares_of_states(states: Sequence[tuple[int, str, float]], stopped: str | None) -> Shares:
    """What one trajectory adds to each measure, and what of.

    Args:
      states: step, role and score of every image, in order; all of them.
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

"""How sure a score is: 95% intervals of shares, of means over groups, of differences.

- A share of n prompts: Wilson's score interval, which stays inside [0, 1] and
  keeps a width at 0 and at 1.
- The unweighted mean over groups: the groups are independent samples, so their
  Wilson limits combine by the square root of summed squares (MOVER: Zou and
  Donner, Statistics in Medicine 27, 2008). Unlike the normal approximation and
  the bootstrap this keeps a width where every group is at 1. Our choice.
- The difference of two arms on the same prompts: a paired bootstrap, stratified
  by group, with a fixed seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

_CONFIDENCE = 0.95
_Z = statistics.NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
_RESAMPLES = 10_000


class Interval(NamedTuple):
    """An estimate and its confidence limits."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def to_json(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in self._asdict().items()}


def wilson(successes: int, n: int) -> Interval:
    """Wilson's score interval of a share of `n`, which is at least 1."""
    share, z = successes / n, _Z
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the limit is the end itself; rounding must not move it past the share.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(share, low, high)


def mean_of_groups(intervals: Sequence[Interval]) -> Interval:
    """The unweighted mean over independent groups."""
    n = len(intervals)
    mean = sum(one.mean for one in intervals) / n
    below = math.hypot(*(one.mean - one.low for one in intervals)) / n
    above = math.hypot(*(one.high - one.mean for one in intervals)) / n
    return Interval(mean, mean - below, mean + above)


def paired_difference(first: Mapping[str, Sequence[bool]], second: Mapping[str, Sequence[bool]]) -> Interval:
    """Mean over groups of `first` less that of `second`, prompt by prompt.

    Where no prompt differs the interval has no width: read it with the
    intervals of the two arms.

    Args:
      first, second: outcomes per group, both of the same prompts in the same order.

    Raises:
      ValueError: a group has more prompts on one side.
    """
    rng = np.random.default_rng(0)
    mean, drawn = 0.0, np.zeros(_RESAMPLES)
    for group in first:
        gaps = np.array([int(a) - int(b) for a, b in zip(first[group], second[group], strict=True)])
        n = len(gaps)
        # Drawing n prompts with replacement = a multinomial over the three possible gaps.
        shares = np.array([(gaps == -1).sum(), (gaps == 0).sum(), (gaps == 1).sum()]) / n
        counts = rng.multinomial(n, shares, size=_RESAMPLES)
        drawn += (counts[:, 2] - counts[:, 0]) / n / len(first)
        mean += gaps.mean() / len(first)
    low, high = np.quantile(drawn, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Interval(float(mean), float(low), float(high))

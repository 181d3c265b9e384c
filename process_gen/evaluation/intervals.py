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

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and its confidence limits."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a share of `n`; (nan, 0, 1) where n is zero."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the limit is the end itself; rounding must not move it past the share.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(share, low, high)


def mean_of_groups(intervals: Sequence[Interval]) -> Interval:
    """The unweighted mean over independent groups; (nan, 0, 1) where there is none."""
    if not intervals:
        return Interval(math.nan, 0.0, 1.0)
    n = len(intervals)
    mean = sum(one.mean for one in intervals) / n
    below = math.hypot(*(one.mean - one.low for one in intervals)) / n
    above = math.hypot(*(one.high - one.mean for one in intervals)) / n
    return Interval(mean, mean - below, mean + above)


def paired_difference(
    first: Mapping[str, Sequence[bool]],
    second: Mapping[str, Sequence[bool]],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Mean over groups of `first` less that of `second`, prompt by prompt.

    Where no prompt differs the interval has no width: read it with the
    intervals of the two arms.

    Args:
      first, second: outcomes per group, both in the order of the same prompts.
      resamples: bootstrap samples, each drawn inside the groups.
      seed: of the bootstrap.
      confidence: between the percentiles that are the limits.
    """
    if list(first) != list(second) or any(len(first[g]) != len(second[g]) for g in first):
        raise ValueError("a paired difference needs the same prompts in the same groups on both sides")
    if not first:
        return Interval(math.nan, -1.0, 1.0)
    rng = np.random.default_rng(seed)
    mean, drawn = 0.0, np.zeros(resamples)
    for group in first:
        gaps = np.asarray(first[group], int) - np.asarray(second[group], int)
        n = len(gaps)
        if n == 0:
            raise ValueError(f"group {group!r} is empty")
        # Drawing n prompts with replacement = a multinomial over the three possible gaps.
        shares = np.array([(gaps == -1).sum(), (gaps == 0).sum(), (gaps == 1).sum()]) / n
        counts = rng.multinomial(n, shares, size=resamples)
        drawn += (counts[:, 2] - counts[:, 0]) / n / len(first)
        mean += gaps.mean() / len(first)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(mean), float(low), float(high))

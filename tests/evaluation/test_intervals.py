"""Intervals against known values and against simulation."""

import math

import numpy as np
import pytest

from process_gen.evaluation.intervals import Interval, mean_of_groups, paired_difference, wilson


@pytest.mark.parametrize(
    "successes, n, low, high",
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (score, no continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_has_the_published_limits(successes, n, low, high):
    interval = wilson(successes, n)
    assert interval.mean == successes / n
    assert interval.low == pytest.approx(low, abs=6e-5)
    assert interval.high == pytest.approx(high, abs=6e-5)


def test_wilson_keeps_a_width_at_the_ends_and_stays_inside():
    none, all_of_them = wilson(0, 40), wilson(40, 40)
    assert (none.low, all_of_them.high) == (0.0, 1.0)
    assert none.high == pytest.approx(1 - all_of_them.low)
    assert 0.08 < none.high < 0.09


def test_mean_of_one_group_is_that_group_and_more_groups_are_surer():
    one = wilson(30, 40)
    alone, four = mean_of_groups([one]), mean_of_groups([one] * 4)
    assert (alone.mean, alone.low, alone.high) == pytest.approx((one.mean, one.low, one.high))
    assert four.mean == pytest.approx(0.75)
    # Four independent groups of equal width: half the width.
    assert four.mean - four.low == pytest.approx((one.mean - one.low) / 2)
    assert four.high - four.mean == pytest.approx((one.high - one.mean) / 2)


def test_mean_of_groups_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth, n, covered, trials = np.array([1.0, 0.95, 0.8, 0.5, 0.9, 1.0, 0.3, 0.99]), 40, 0, 2000
    for drawn in rng.binomial(n, truth, size=(trials, len(truth))):
        interval = mean_of_groups([wilson(int(k), n) for k in drawn])
        covered += interval.low <= truth.mean() <= interval.high
    assert 0.93 <= covered / trials <= 0.99


def test_paired_difference_sees_what_pairs_show():
    rng = np.random.default_rng(1)
    base = {group: list(rng.random(50) < 0.6) for group in "ab"}
    better = {group: [ok or i % 5 == 0 for i, ok in enumerate(oks)] for group, oks in base.items()}
    gap = paired_difference(better, base)
    assert gap == paired_difference(better, base), "the bootstrap has a fixed seed"
    assert gap.low >= 0 and gap.low < gap.mean < gap.high
    assert gap.mean == pytest.approx(np.mean([np.mean(better[g]) - np.mean(base[g]) for g in "ab"]))
    assert paired_difference(base, base) == Interval(0.0, 0.0, 0.0)


def test_paired_difference_agrees_with_the_normal_approximation():
    first, second = {"a": [True] * 60 + [False] * 40}, {"a": [True] * 40 + [False] * 60}
    gap = paired_difference(first, second)
    deviation = math.sqrt((0.2 - 0.2**2) / 100)
    assert gap.low == pytest.approx(0.2 - 1.96 * deviation, abs=0.015)
    assert gap.high == pytest.approx(0.2 + 1.96 * deviation, abs=0.015)


def test_paired_difference_refuses_other_prompts():
    with pytest.raises(ValueError, match="longer"):
        paired_difference({"a": [True]}, {"a": [True, False]})
    with pytest.raises(KeyError, match="a"):
        paired_difference({"a": [True]}, {"b": [True]})

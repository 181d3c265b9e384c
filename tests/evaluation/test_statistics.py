"""Intervals and tests against SciPy, and how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from process_gen.evaluation.statistics import (
    Interval,
    difference,
    holm,
    mean_interval,
    p_value,
    ratio_difference,
    ratio_interval,
    score_interval,
    shares_of,
    wilson,
)


@pytest.mark.parametrize("k, n", [(0, 5), (1, 7), (20, 40), (39, 40), (40, 40)])
def test_wilson_is_that_of_scipy(k, n):
    found, known = wilson(k / n, n), stats.binomtest(k, n).proportion_ci(method="wilson")
    assert found == pytest.approx((k / n, known.low, known.high), abs=1e-12)


def test_a_mean_keeps_a_width_at_its_ends_and_clusters_count_once():
    prompts = [f"p{i}" for i in range(10)]
    assert mean_interval(prompts, [1.0] * 10) == wilson(1, 10)
    assert mean_interval(prompts * 4, [0.0] * 40) == wilson(0, 10)
    alike = [float(i < 5) for i in range(10)]
    one, four = mean_interval(prompts, alike), mean_interval(prompts * 4, alike * 4)
    assert four == pytest.approx(one), "four equal images of a prompt are one draw"
    rng = np.random.default_rng(0)
    apart = mean_interval(prompts * 40, rng.integers(0, 2, 400).astype(float))
    assert apart.high - apart.low < (one.high - one.low) / 3, "unlike images of a prompt are several"


def test_a_share_over_clusters_is_a_ratio_whose_clusters_count_once():
    same = ratio_interval([1, 0, 1, 1, 0], [1] * 5)
    assert same == mean_interval(list("abcde"), [1, 0, 1, 1, 0])
    assert ratio_interval([1, 0, 1, 1, 0, 0], [1] * 5 + [0]) == same, "a cluster of nothing says nothing"
    assert ratio_interval([3, 2], [3, 2]) == wilson(1, 2) and ratio_interval([0] * 9, [4] * 9) == wilson(0, 9)
    alike = ratio_interval([4, 0, 4, 4, 0], [4] * 5)
    assert alike == pytest.approx(same), "four events of a prompt that come out alike are one"
    found = shares_of([{"a": (1, 2), "b": (0, 0)}, {"a": (2, 2)}, {"a": (0, 0), "c": (1, 4)}])
    assert list(found) == ["a", "c"] and found["a"] == ratio_interval([1, 2], [2, 2])


@pytest.mark.parametrize("share, prompts, most", [(0.2, 40, 3), (0.5, 20, 4), (0.8, 100, 5)])
def test_intervals_of_shares_hold_the_truth(share, prompts, most):
    """Prompts have different numbers of events, which are alike by a half."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(1_000):
        hard = rng.beta(share, 1 - share, prompts)
        events = rng.integers(0, most + 1, prompts)
        one = ratio_interval(rng.binomial(events, hard), events)
        held += one.low <= share <= one.high
    assert 0.92 < held / 1_000 < 0.985


def test_a_difference_of_shares_is_paired():
    first, second = [(3, 4), (1, 4), (4, 4), (2, 4)], [(2, 4), (0, 4), (3, 4), (1, 4)]
    found = ratio_difference(first, second)
    assert found == pytest.approx((0.25, 0.25, 0.25)), "every prompt loses the same"
    gaps = np.array([0.5, 0.0, 0.25, -0.25])
    one = ratio_difference([(g + 1, 4) for g in gaps * 4], [(1, 4)] * 4)
    known = stats.ttest_1samp(gaps, 0).confidence_interval()
    assert one == pytest.approx((gaps.mean(), known.low, known.high))


def test_a_score_is_the_weighted_sum_of_means_and_a_group_without_images_counts_nothing():
    groups, clusters = ["a"] * 4 + ["b"] * 2, list("uvwxyz")
    found = score_interval(groups, clusters, [1, 1, 0, 0, 1, 1], {"a": 0.25, "b": 0.75, "c": 1.0})
    assert found.mean == pytest.approx(0.25 * 0.5 + 0.75) and found.low < found.mean < found.high
    alone = mean_interval(list("uvwx"), [1, 1, 0, 0])
    assert score_interval(["a"] * 4, list("uvwx"), [1, 1, 0, 0], {"a": 1.0}) == pytest.approx(alone)
    assert str(Interval(0.5, 0.25, 0.75)) == "0.50 [0.25, 0.75]"


@pytest.mark.parametrize("n", [2, 9, 60])
def test_a_difference_is_that_of_scipy(n):
    gaps = np.random.default_rng(n).normal(0.4, 1, n)
    told = (["a"] * n, [str(i) for i in range(n)], gaps, {"a": 1.0})
    known = stats.ttest_1samp(gaps, 0).confidence_interval()
    assert difference(*told) == pytest.approx((gaps.mean(), known.low, known.high))
    known = stats.permutation_test(
        (gaps,), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=20_000, rng=1
    )
    assert p_value(*told) == pytest.approx(known.pvalue, abs=0.015 if n > 14 else 1e-12)


def test_flips_are_those_of_whole_prompts():
    """Two seeds of a prompt flip together: two prompts have four ways, not sixteen."""
    told = (["a"] * 4, ["u", "u", "v", "v"], [1, 1, 1, 1], {"a": 1.0})
    assert p_value(*told) == 2 / 4
    assert p_value(["a"] * 3, list("uvw"), [0, 0, 0], {"a": 1.0}) == 1


def test_holm_corrects_for_how_many_there_are():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.parametrize(
    "share, alike, prompts, images, groups",
    [
        (0.1, 0.0, 40, 1, 1),
        (0.1, 0.7, 20, 4, 1),
        (0.5, 0.5, 100, 4, 1),
        (0.8, 0.3, 40, 4, 6),
        (0.95, 0.0, 40, 1, 6),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(share, alike, prompts, images, groups):
    from benchmarks.coverage import coverage

    held, paired = coverage(share, alike, prompts, images, groups, rounds=1_000, seed=1)
    noise = 3 * (0.95 * 0.05 / 1_000) ** 0.5
    assert 0.93 - noise < held < 0.97 + noise and 0.93 - noise < paired < 0.97 + noise

"""Statistics. Oracle: scipy, closed forms, and coverage of a known mean for the bootstrap."""

import numpy as np
import pytest
from scipy import stats

from jflat.report import bootstrap_interval, mean_and_stderr, ranks, spearman, spearman_within

RNG = np.random.default_rng(3)
CASES = [
    (RNG.normal(size=30), RNG.normal(size=30)),
    (np.arange(12.0), np.arange(12.0) ** 3),
    (RNG.integers(0, 4, 40), RNG.integers(0, 3, 40)),  # many ties
    (np.array([1.0, 2.0]), np.array([5.0, -5.0])),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_spearman_is_that_of_scipy(case):
    x, y = CASES[case]
    np.testing.assert_allclose(spearman(x, y), stats.spearmanr(x, y).statistic, atol=1e-14)
    np.testing.assert_array_equal(ranks(x), stats.rankdata(x))


def test_spearman_sees_order_only():
    x, y = CASES[0]
    assert spearman(np.exp(x), y**3) == pytest.approx(spearman(x, y), abs=1e-14)
    assert spearman(x, x) == 1.0
    assert spearman(x, -x) == -1.0
    differences = ranks(x) - ranks(y)
    assert spearman(x, y) == pytest.approx(1 - 6 * np.sum(differences**2) / (30 * (30**2 - 1)), abs=1e-14)


def test_a_constant_has_no_order():
    assert np.isnan(spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
    assert np.isnan(spearman_within([1.0, 2.0], [1.0, 2.0], ["a", "b"]))


def test_within_groups_is_the_weighted_average_of_the_groups():
    groups = np.repeat([0, 1, 2], [5, 9, 14])
    x, y = RNG.normal(size=28), RNG.normal(size=28)
    weights = np.array([n * (n**2 - 1) for n in (5, 9, 14)])
    each = [stats.spearmanr(x[groups == g], y[groups == g]).statistic for g in range(3)]
    np.testing.assert_allclose(spearman_within(x, y, groups), np.average(each, weights=weights), atol=1e-14)
    np.testing.assert_allclose(spearman_within(x, y, np.zeros(28)), spearman(x, y), atol=1e-14)


def test_within_groups_ignores_what_differs_between_them():
    groups = np.repeat(["SGD", "SAM", "Entropy-SGD"], 10)
    shift = np.repeat([0.0, 10.0, 20.0], 10)
    x, y = RNG.normal(size=30), RNG.normal(size=30)
    np.testing.assert_allclose(spearman_within(x + shift, y + shift, groups), spearman_within(x, y, groups), atol=1e-14)
    assert spearman(x + shift, y + shift) > 0.85  # all from the methods
    assert spearman_within(x + shift, shift - x, groups) == -1.0


def test_mean_and_stderr_are_those_of_scipy():
    values = RNG.normal(size=(7, 3, 2))
    for axis in range(3):
        mean, stderr = mean_and_stderr(values, axis)
        np.testing.assert_allclose(mean, values.mean(axis))
        np.testing.assert_allclose(stderr, stats.sem(values, axis))
    mean, stderr = mean_and_stderr([[4.0, 5.0]])
    np.testing.assert_array_equal(mean, [4.0, 5.0])
    assert np.all(np.isnan(stderr))
    mean, stderr = mean_and_stderr(np.array([16777216.0, 16777217.0], np.float32))
    assert mean.dtype == np.float64


def test_the_bootstrap_of_a_mean_has_the_normal_width():
    values = RNG.normal(2.0, 3.0, 400)
    interval = bootstrap_interval(np.mean, [values], 0, level=0.9)
    half = 1.645 * values.std() / np.sqrt(400)
    assert interval.estimate == values.mean()
    np.testing.assert_allclose([interval.low, interval.high], values.mean() + np.array([-half, half]), atol=0.12 * half)
    assert bootstrap_interval(np.mean, [values], 0, level=0.9) == interval
    assert bootstrap_interval(np.mean, [values], 1, level=0.9) != interval


def test_the_bootstrap_covers_as_often_as_it_says():
    covered = 0
    for trial in range(200):
        sample = np.random.default_rng(trial).exponential(size=40)
        interval = bootstrap_interval(np.mean, [sample], trial, num_resamples=200, level=0.8)
        covered += interval.low <= 1.0 <= interval.high
    assert abs(covered / 200 - 0.8) < 4 * np.sqrt(0.16 / 200)


def test_the_bootstrap_keeps_pairs_together():
    x = RNG.normal(size=50)
    interval = bootstrap_interval(spearman, [x, np.exp(x)], 0, num_resamples=50)
    assert (interval.low, interval.high) == (1.0, 1.0)


def test_the_bootstrap_counts_undefined_resamples():
    interval = bootstrap_interval(spearman, [np.array([1.0, 2.0]), np.array([1.0, 2.0])], 0, num_resamples=400)
    assert interval[:3] == (1.0, 1.0, 1.0)
    assert abs(interval.num_undefined - 200) < 4 * 10  # both draws the same: probability 1/2
    nothing = bootstrap_interval(lambda x: np.nan, [np.ones(3)], 0, num_resamples=10)
    assert nothing.num_undefined == 10
    assert np.isnan(nothing.low)


def test_refusals():
    refused = [
        (lambda: spearman([1.0], [1.0]), "one length, 2 or more"),
        (lambda: spearman([1.0, 2.0], [1.0, 2.0, 3.0]), r"\(2,\) and \(3,\)"),
        (lambda: spearman([1.0, np.nan], [1.0, 2.0]), "must be finite"),
        (lambda: spearman_within([1.0, 2.0], [1.0, 2.0], ["a"]), "groups must be 2 labels"),
        (lambda: mean_and_stderr([]), "at least one sample"),
        (lambda: bootstrap_interval(np.mean, [np.ones(3), np.ones(4)], 0), r"one length, 1 or more; got \[3, 4\]"),
        (lambda: bootstrap_interval(np.mean, [np.ones(3)], 0, level=1.0), r"level must be finite and lie in \(0, 1\)"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()

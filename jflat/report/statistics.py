"""Small statistics for tables and figures: means with errors, rank correlations, bootstrap intervals. NumPy, float64.

Where a statistic is undefined (one sample has no standard error, a constant has no correlation) the value is NaN, as
the docstrings say; tables show it as a dash and the store writes it as null.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jflat.core import check

__all__ = ["BootstrapInterval", "bootstrap_interval", "mean_and_stderr", "ranks", "spearman", "spearman_within"]


def mean_and_stderr(values: ArrayLike, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean over independent samples and its standard error, s / sqrt(n) with s^2 = sum (x - mean)^2 / (n - 1).

    Args:
      values: (n, ...) samples along `axis`, n >= 1.
      axis: the axis of the samples (seeds).

    Returns:
      (mean, stderr), `values` without that axis. With n = 1 the error is NaN: one sample does not tell its spread.

    >>> mean, stderr = mean_and_stderr([1.0, 2.0, 3.0])
    >>> float(mean), round(float(stderr), 4)  # 1 / sqrt(3)
    (2.0, 0.5774)
    """
    samples = np.asarray(values, np.float64)
    size = samples.shape[axis] if samples.ndim else 0
    check.require(size > 0, "mean_and_stderr", "values", "must have at least one sample", f"shape {samples.shape}")
    mean = samples.mean(axis=axis)
    if size == 1:
        return mean, np.full_like(mean, np.nan)
    return mean, samples.std(axis=axis, ddof=1) / np.sqrt(size)


def ranks(values: ArrayLike) -> np.ndarray:
    """Ranks 1..n, ties sharing the mean of their places.

    >>> ranks([10.0, 20.0, 10.0]).tolist()
    [1.5, 3.0, 1.5]
    """
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _pair(where: str, x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    same = a.ndim == 1 and a.shape == b.shape and a.size >= 2
    check.require(same, where, "x and y", "must be vectors of one length, 2 or more", f"{a.shape} and {b.shape}")
    is_finite = bool(np.all(np.isfinite(a)) and np.all(np.isfinite(b)))
    check.require(is_finite, where, "x and y", "must be finite (drop failed runs first, and say so)", "NaN or infinity")
    return a, b


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """<a, b> / (|a| |b|), NaN where one of them is zero."""
    norm = np.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / norm, -1.0, 1.0)) if norm > 0 else float("nan")


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation: the Pearson correlation of the ranks, in [-1, 1]; ties share their mean rank.

    Without ties it is 1 - 6 sum d^2 / (n (n^2 - 1)), d the differences of the ranks.

    Args:
      x, y: (n,) finite, n >= 2.

    Returns:
      The correlation; NaN if x or y is constant (it has no order).

    Raises:
      ValueError: for other shapes, or values that are not finite.

    >>> spearman([1.0, 2.0, 3.0], [1.0, 8.0, 27.0])
    1.0
    """
    a, b = _pair("spearman", x, y)
    return _cosine(ranks(a) - (a.size + 1) / 2, ranks(b) - (b.size + 1) / 2)


def spearman_within(x: ArrayLike, y: ArrayLike, groups: ArrayLike) -> float:
    """Rank correlation within groups: does x order y among the runs of ONE method, differences of methods removed?

        sum_g <r_g(x), r_g(y)> / sqrt(sum_g |r_g(x)|^2  sum_g |r_g(y)|^2),

    r_g the ranks within group g less their mean (n_g + 1)/2. Without ties it is the average of the groups' Spearman
    correlations with weights n_g (n_g^2 - 1), so groups of one size count equally. Unlike the correlation of pooled
    values it cannot come from a difference between methods alone (Simpson's paradox).

    Args:
      x, y: (n,) finite.
      groups: (n,) labels of the methods; a group of one run has no order and adds nothing.

    Returns:
      The correlation in [-1, 1]; NaN if no group has two different values of x and of y.

    >>> x, y = [1.0, 2.0, 11.0, 12.0], [2.0, 1.0, 12.0, 11.0]
    >>> spearman(x, y), spearman_within(x, y, ["a", "a", "b", "b"])  # between the methods up, within them down
    (0.6, -1.0)
    """
    a, b = _pair("spearman_within", x, y)
    labels = np.asarray(groups)
    rule = f"must be {a.size} labels"
    check.require(labels.shape == a.shape, "spearman_within", "groups", rule, f"shape {labels.shape}")
    centred = np.zeros((2, a.size))
    for label in np.unique(labels):
        inside = labels == label
        middle = (np.sum(inside) + 1) / 2
        centred[0, inside], centred[1, inside] = ranks(a[inside]) - middle, ranks(b[inside]) - middle
    return _cosine(centred[0], centred[1])


class BootstrapInterval(NamedTuple):
    """A statistic with its bootstrap confidence interval."""

    estimate: float
    """The statistic of the samples themselves."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    num_undefined: int
    """Resamples whose statistic was NaN and is left out (all resampled points equal, say)."""


def bootstrap_interval(
    statistic: Callable[..., float],
    arrays: Sequence[ArrayLike],
    seed: int,
    *,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> BootstrapInterval:
    """Percentile bootstrap: quantiles (1 -+ level)/2 of the statistic over resamples drawn with replacement.

    Args:
      statistic: (a, b, ...) -> float, on arrays of n samples each.
      arrays: one or more arrays (n, ...); a resample takes the same places from all, so pairs stay pairs.
      seed: of `numpy.random.default_rng`.
      num_resamples: 2000 puts the ends of a 95 % interval to about 0.1 of a standard error.
      level: confidence, in (0, 1).

    Returns:
      A `BootstrapInterval`; its ends are NaN if every resample is undefined.

    Raises:
      ValueError: for arrays of different lengths, or a level outside (0, 1).

    The interval is too short for a handful of samples (by about sqrt((n - 1)/n) for a mean). Reference: Efron &
    Tibshirani 1993, chapter 13.

    >>> bootstrap_interval(np.mean, [np.full(5, 2.0)], 0)
    BootstrapInterval(estimate=2.0, low=2.0, high=2.0, num_undefined=0)
    """
    check.require_integer("bootstrap_interval", "num_resamples", num_resamples, 1)
    check.require_number("bootstrap_interval", "level", level, 0.0, 1.0, exclusive=True)
    data = [np.asarray(array) for array in arrays]
    lengths = sorted({len(array) for array in data if array.ndim})
    same = len(lengths) == 1 and lengths[0] > 0 and all(array.ndim for array in data)
    check.require(same, "bootstrap_interval", "arrays", "must be arrays of one length, 1 or more", lengths)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, lengths[0], (num_resamples, lengths[0]))
    values = np.array([float(statistic(*(array[draw] for array in data))) for draw in draws])
    defined = values[~np.isnan(values)]
    ends = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]) if defined.size else np.full(2, np.nan)
    return BootstrapInterval(float(statistic(*data)), float(ends[0]), float(ends[1]), int(num_resamples - defined.size))

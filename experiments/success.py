"""Fractions of solved instances: their error bars, and the load up to which an algorithm succeeds."""

from collections.abc import Sequence

import numpy as np

from jflat.report import Measured

__all__ = ["shift", "threshold", "wilson"]


def wilson(solved: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The interval of one standard error around solved / number (Wilson's score), of length zero nowhere.

    >>> low, high = wilson(np.array([0.0, 10.0]), 20)
    >>> low.round(3).tolist(), high.round(3).tolist()
    ([0.0, 0.391], [0.048, 0.609])
    """
    p = solved / number
    centre = (p + 1 / (2 * number)) / (1 + 1 / number)
    half = np.sqrt(p * (1 - p) / number + 1 / (4 * number**2)) / (1 + 1 / number)
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


def _widths(alphas: np.ndarray) -> np.ndarray:
    """The weight of each load in the trapezoids."""
    gaps = np.diff(alphas)
    return (np.append(gaps, 0.0) + np.append(0.0, gaps)) / 2


def threshold(alphas: Sequence[float], solved: np.ndarray) -> tuple[Measured, str]:
    """Spearman and Karber's threshold of solved (A, n), and "" or what keeps it from being one.

    Its variance is the sum of the binomials', with (k + 1/2) / (n + 1) for p, so that an error is never zero.

    >>> threshold([0.0, 1.0, 2.0], np.array([[1, 1], [1, 0], [0, 0]], bool))[0].value
    1.0
    """
    loads, number = np.asarray(alphas, float), solved.shape[1]
    p = solved.mean(axis=1)
    widths = _widths(loads)
    smooth = (solved.sum(axis=1) + 0.5) / (number + 1)
    variance = np.sum(widths**2 * smooth * (1 - smooth) / number)
    value = Measured(float(loads[0] + np.sum(widths * p)), float(np.sqrt(variance)))
    if p[0] < 1:
        return value, "at most" if p[-1] == 0 else "uncertain"
    return value, "" if p[-1] == 0 else "at least"


def shift(alphas: Sequence[float], better: np.ndarray, worse: np.ndarray) -> Measured:
    """The difference of two thresholds on the same instances, paired, with its standard error.

    Half an instance that tells them apart is added at each load, so that the error is never zero.
    """
    difference = better.astype(float) - worse.astype(float)
    widths, number = _widths(np.asarray(alphas, float)), difference.shape[1]
    mean = difference.mean(axis=1)
    square = (np.sum(difference**2, axis=1) + 0.5) / (number + 1)
    variance = np.sum(widths**2 * np.maximum(square - mean**2, 0.5 / (number + 1) ** 2) / number)
    return Measured(float(np.sum(widths * mean)), float(np.sqrt(variance)))

"""What the replica theory says of solutions of large margin: their surroundings, their geometry, and critical loads.

Functions return arrays by name, nats per weight and Hamming distances per weight, and say with `tell(share, what)` how
far they are. References are margins k~; fractions are those of the largest margin kappa_max at the load.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import brentq

from jflat.core import succeeded
from jflat.replica import (
    FranzParisiResult,
    Model,
    binary_perceptron,
    capacity,
    entropy,
    franz_parisi,
    large_deviation,
    margin_distribution,
    max_margin,
    wide_minima_threshold,
)

__all__ = ["SMALL", "around", "break_up", "densest", "nested", "stability_law", "thresholds", "volumes"]

Arrays = dict[str, np.ndarray]
Tell = Callable[[float, str], None]

SMALL = np.geomspace(0.002, 0.04, 22)
"""Distances among which the least slope is sought: beyond, slopes fall towards zero at the typical solutions."""
PERCEPTRON = binary_perceptron()


@functools.lru_cache(maxsize=8)  # the same references are asked for twice
def _curve(alpha: float, reference: float, distances: tuple[float, ...]) -> FranzParisiResult:
    return franz_parisi(PERCEPTRON, alpha, np.asarray(distances), reference=reference)


def around(alpha: float, references: Sequence[float], distances: np.ndarray, tell: Tell) -> Arrays:
    """Local entropy (R, n) at margin 0 around typical solutions at each margin k~."""
    curves = []
    for number, reference in enumerate(references):
        tell(number / len(references), f"local entropy around solutions at margin {reference:.3f}")
        curves.append(_curve(alpha, float(reference), tuple(distances.tolist())))
    return {
        "references": np.asarray(references, np.float64),
        "distances": distances,
        "value": np.stack([curve.value for curve in curves]),
        "slope": np.stack([curve.slope for curve in curves]),
        "error": np.stack([curve.certificate.error for curve in curves]),
        "status": np.stack([curve.status for curve in curves]),
    }


def nested(alpha: float, margins: Sequence[float], distances: np.ndarray, tell: Tell) -> Arrays:
    """Local entropy (G, n) of the solutions at each margin k, around a typical one at kappa_max."""
    curves = []
    for number, margin in enumerate(margins):
        tell(number / len(margins), f"solutions at margin {margin:.3f} around the largest margin")
        curves.append(franz_parisi(PERCEPTRON, alpha, distances, reference="max-margin", margin=float(margin)))
    return {
        "margins": np.asarray(margins, np.float64),
        "distances": distances,
        "value": np.stack([curve.value for curve in curves]),
        "slope": np.stack([curve.slope for curve in curves]),
        "status": np.stack([curve.status for curve in curves]),
    }


def densest(alpha: float, num_points: int) -> Arrays:
    """The densest regions, y -> infinity: local entropy against the distance of a solution from the region's centre."""
    overlaps = 1 - np.geomspace(0.4, 0.01, num_points)
    found = large_deviation(PERCEPTRON, alpha, overlaps)
    return {"overlaps": overlaps, "distances": found.distance, "value": found.value, "status": found.status}


def volumes(alpha: float, margins: Sequence[float]) -> Arrays:
    """Entropy and mutual distance (1 - q) / 2 of the solutions at each margin (G,), and kappa_max."""
    found = [entropy(PERCEPTRON, alpha, margin=float(margin)) for margin in margins]
    largest = max_margin(PERCEPTRON, alpha)
    return {
        "margins": np.append(margins, largest.value),
        "entropy": np.append([float(volume.value) for volume in found], 0.0),
        "distance": (1 - np.append([float(volume.order.q) for volume in found], largest.order.q)) / 2,
        "status": np.append([int(volume.status) for volume in found], largest.status),
    }


def stability_law(alpha: float, margins: Sequence[float], stabilities: np.ndarray) -> Arrays:
    """The density (G, n) of the stabilities of a typical solution at each margin."""
    found = [margin_distribution(PERCEPTRON, alpha, stabilities, margin=float(margin)) for margin in margins]
    return {"stabilities": stabilities, "density": np.stack([law.value for law in found])}


def break_up(model: Model, fraction: float, loads: Sequence[float], tolerance: float, tell: Tell) -> Arrays:
    """The load where the local entropy around solutions at `fraction` of kappa_max first falls with distance.

    Args:
      model: a perceptron or wide committee with binary weights.
      fraction: of kappa_max, in [0, 1].
      loads: ascending, at which the least slope over the distances `SMALL` is computed; the zero is sought between the
        two where it changes its sign.
      tolerance: of the load.
      tell: progress.

    Returns:
      `loads` (A,), all that were visited, ascending, `slopes` and `places`: the least slope, nats per weight and unit
      of distance, and where it is; `threshold`, NaN where the sign does not change, and `status` (A,).
    """
    visited: dict[float, tuple[float, float, int]] = {}

    def least(alpha: float) -> float:
        if alpha not in visited:
            tell(min(0.95, len(visited) / (len(loads) + 5)), f"slopes at alpha = {alpha:.4f}")
            curve = franz_parisi(model, alpha, SMALL, reference=fraction * float(max_margin(model, alpha).value))
            slopes = np.where(succeeded(curve.status), curve.slope, np.inf)
            place = int(np.argmin(slopes))
            visited[alpha] = float(slopes[place]), float(SMALL[place]), int(np.max(curve.status))
        return visited[alpha][0]

    signs = np.sign([least(float(alpha)) for alpha in loads])
    changes = np.flatnonzero((signs[:-1] > 0) & (signs[1:] < 0))
    threshold = np.nan
    if changes.size:
        low, high = (float(loads[changes[0] + side]) for side in (0, 1))
        threshold = float(brentq(least, low, high, xtol=tolerance))
    order = sorted(visited)
    slopes, places, status = (np.asarray([visited[alpha][i] for alpha in order]) for i in range(3))
    return {
        "loads": np.asarray(order),
        "slopes": slopes,
        "places": places,
        "status": status,
        "threshold": np.asarray(threshold),
    }


def thresholds(model: Model) -> Arrays:
    """The capacity, and the load where the densest regions (y -> infinity) break up."""
    limit, dense = capacity(model), wide_minima_threshold(model)
    return {
        "capacity": limit.value,
        "wide_minima": dense.value,
        "status": np.asarray([limit.status, dense.status], np.int32),
    }

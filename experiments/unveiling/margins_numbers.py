"""What the arrays of `unveiling-margins` say: peaks, zeros, the theory at measured distances, and the claims.

Arrays are named `part/name`: `around/*` and `targets/*` (references, distances), `nested/*` (margins, distances),
`volumes/*`, `law/*`, `densest/*`, `critical/device/*`, `break_up/device/fraction/*`, `found/margin/*` (instances, ...)
and `search/alpha/*` (instances,).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.interpolate import CubicHermiteSpline

from experiments.claims import Claim, agrees, failures, holds, judge, measured
from experiments.success import threshold
from jflat.core import Status
from jflat.report import Measured, format_measured

__all__ = [
    "LABELS",
    "PAIRED",
    "TABLE",
    "TABLE_DISTANCES",
    "at_distances",
    "best_margin",
    "farthest_margin",
    "first_zero",
    "free_entropy",
    "peak",
    "summarise",
    "surplus",
    "typical_distances",
]

Arrays = Mapping[str, np.ndarray]

TABLE_DISTANCES = np.array([0.002, 0.005, 0.01, 0.02, 0.03, 0.045, 0.1, 0.2, 0.3])
TABLE = {
    0.0: (-0.0082, -0.0038, 0.0062, 0.0276, 0.0484, 0.0774, 0.1647, 0.2659, 0.3106),
    0.5: (0.0142, 0.0285, 0.0449, 0.0699, 0.0909, 0.1185, 0.1972, 0.2833, 0.3141),
    1.0: (0.0144, 0.0314, 0.0546, 0.0887, 0.1143, 0.1448, 0.2218, 0.2960, 0.3138),
}
"""Local entropy at `TABLE_DISTANCES` by fraction of the largest margin; alpha = .5, by others with another code."""
TABLE_BAND = 5e-4
LARGEST_MARGIN, ENTROPY, PAIRS, ISOLATED = 0.418062, 0.314390, (0.339, 0.186), 0.007
CRITICAL = {"perceptron": (0.833079, 0.755), "sign": (0.946952, 0.7151), "relu": (0.903986, 0.7915)}
"""Capacity and break-up of the densest regions."""
BREAK_UP = 0.729
LABELS = {"perceptron": "perceptron", "sign": "sign committee", "relu": "ReLU committee"}
PAIRED = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Distances at which measured curves are compared."""
NEAR = 0.2
"""Stabilities less than this above the margin are near it."""


def free_entropy(d: np.ndarray) -> np.ndarray:
    """h2(d) = -d log d - (1 - d) log(1 - d), of all configurations at distance d.

    >>> free_entropy(np.array([0.5])).round(4).tolist()
    [0.6931]
    """
    return -d * np.log(d) - (1 - d) * np.log1p(-d)


def first_zero(x: np.ndarray, y: np.ndarray) -> float:
    """The first place where y changes its sign, by linear interpolation; NaN if it does not.

    >>> first_zero(np.array([0.0, 1.0, 2.0]), np.array([-1.0, 1.0, 5.0]))
    0.5
    """
    changes = np.flatnonzero(np.sign(y[:-1]) * np.sign(y[1:]) < 0)
    if not changes.size:
        return float("nan")
    i = changes[0]
    return float(x[i] + (x[i + 1] - x[i]) * y[i] / (y[i] - y[i + 1]))


def peak(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Place and value of the maximum: of the parabola through the largest y and its neighbours, or an end.

    >>> tuple(round(v, 6) for v in peak(np.array([0.0, 1.0, 3.0]), -((np.array([0.0, 1.0, 3.0]) - 1.5) ** 2)))
    (1.5, 0.0)
    """
    i = int(np.argmax(y))
    if i in (0, len(x) - 1):
        return float(x[i]), float(y[i])
    near = slice(i - 1, i + 2)
    a, b, c = np.polyfit(x[near] - x[i], y[near], 2)
    return float(x[i] - b / (2 * a)), float(c - b**2 / (4 * a))


def best_margin(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """For each distance, the reference margin whose local entropy is largest, and that entropy."""
    margins, value = arrays["around/references"], arrays["around/value"]
    found = [peak(margins, column) for column in value.T]
    return np.array([place for place, _ in found]), np.array([top for _, top in found])


def farthest_margin(arrays: Arrays) -> np.ndarray:
    """For each distance from a solution of largest margin, the largest margin of the solutions there (NaN: unknown)."""
    margins = np.append(0.0, arrays["nested/margins"])
    value = np.vstack([arrays["around/value"][-1:], arrays["nested/value"]])
    return np.array([first_zero(margins, column) for column in value.T])


def typical_distances(arrays: Arrays) -> np.ndarray:
    """For each reference, the distance of typical solutions: where its local entropy is largest."""
    return np.array([first_zero(arrays["around/distances"], slope) for slope in arrays["around/slope"]])


def at_distances(d: np.ndarray, value: np.ndarray, slope: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """A local entropy with its slopes, interpolated by cubics; NaN outside of the known distances.

    >>> d = np.array([0.1, 0.2])
    >>> at_distances(d, d**3, 3 * d**2, np.array([0.15, 0.3])).round(6).tolist()
    [0.003375, nan]
    """
    known = np.isfinite(value) & np.isfinite(slope)
    if known.sum() < 2:
        return np.full(np.shape(wanted), np.nan)
    order = np.argsort(d[known])
    curve = CubicHermiteSpline(d[known][order], value[known][order], slope[known][order], extrapolate=False)
    return np.asarray(curve(wanted))


def _by_instance(config: Mapping[str, Any], arrays: Arrays, target: float, wanted: np.ndarray) -> np.ndarray:
    """(I, n): each measured curve at the wanted distances; its slope is twice the field."""
    slope = 2 * np.arctanh(1 - 2 * np.asarray(config["free_distances"]))
    rows = zip(arrays[f"found/{target:g}/distances"], arrays[f"found/{target:g}/entropies"], strict=True)
    return np.stack([at_distances(d, value, np.where(np.isfinite(d), slope, np.nan), wanted) for d, value in rows])


def surplus(config: Mapping[str, Any], arrays: Arrays, target: float, part: str, row: int) -> np.ndarray:
    """(I, n): measured local entropy less the theory's `part`, curve `row`, at the distances `PAIRED`."""
    theory = at_distances(
        arrays[f"{part}/distances"], arrays[f"{part}/value"][row], arrays[f"{part}/slope"][row], np.asarray(PAIRED)
    )
    return _by_instance(config, arrays, target, np.asarray(PAIRED)) - theory


def _near_share(config: Mapping[str, Any], arrays: Arrays, number: int, target: float) -> tuple[np.ndarray, float]:
    """The share of stabilities in [kappa, kappa + `NEAR`): (I,) measured, and of a typical solution."""
    stabilities = arrays[f"found/{target:g}/sums"] / np.sqrt(config["size"])
    solved = arrays[f"found/{target:g}/search_status"] == Status.SOLVED
    share = np.mean((stabilities >= target) & (stabilities < target + NEAR), axis=1)
    grid = np.linspace(target, target + NEAR, 201)
    places, density = arrays["law/stabilities"], arrays["law/density"][number]
    inside = places >= target
    law = np.interp(grid, places[inside], density[inside])
    return np.where(solved, share, np.nan), float(np.mean((law[1:] + law[:-1]) / 2) * NEAR)


def _found(config: Mapping[str, Any], arrays: Arrays) -> list[dict[str, Any]]:
    """For each margin searched at: solved, distances, near stabilities, differences to theory and to the first."""
    rows = []
    targets: Sequence[float] = config["targets"]
    first = f"found/{targets[0]:g}"
    for number, target in enumerate(targets):
        name = f"found/{target:g}"
        share, law = _near_share(config, arrays, number, target)
        both = (arrays[f"{name}/search_status"] == Status.SOLVED) & (arrays[f"{first}/search_status"] == Status.SOLVED)
        product = arrays[f"{name}/weights"].astype(float) * arrays[f"{first}/weights"]
        paired = _by_instance(config, arrays, target, np.asarray(PAIRED))
        gain = paired - _by_instance(config, arrays, targets[0], np.asarray(PAIRED))
        over = {
            "typical": surplus(config, arrays, target, "targets", number),
            "largest": surplus(config, arrays, target, "around", -1),
        }
        rows.append(
            {
                "target": target,
                "solved": int(np.sum(arrays[f"{name}/search_status"] == Status.SOLVED)),
                "number": len(both),
                "entropy": measured(arrays[f"{name}/entropies"][:, -1])._asdict(),
                "from_typical": measured(arrays[f"{name}/distances"][:, -1])._asdict(),
                "from_first": measured(np.where(both, (1 - product.mean(axis=1)) / 2, np.nan))._asdict(),
                "near": measured(share)._asdict(),
                "near_typical": law,
                "gain": [measured(column)._asdict() for column in gain.T],
            }
            | {f"over_{key}": [measured(column)._asdict() for column in value.T] for key, value in over.items()}
        )
    return rows


def _theory_claims(config: Mapping[str, Any], arrays: Arrays, numbers: Mapping[str, Any]) -> list[Claim]:
    claims: list[Claim] = []
    distances, fractions = arrays["around/distances"], np.asarray(config["fractions"])
    value = arrays["around/value"]
    if config["alpha"] == 0.5:
        gaps = [
            np.abs(value[np.flatnonzero(fractions == f)[0]][np.searchsorted(distances, TABLE_DISTANCES - 1e-9)] - row)
            for f, row in TABLE.items()
            if f in fractions
        ]
        worst = float(np.max(gaps))
        text = f"largest difference {worst:.1e}"
        claims.append(
            Claim(f"{np.size(gaps)} local entropies", text, f"printed, ± {TABLE_BAND:g}", holds(worst < TABLE_BAND))
        )
        k, s = arrays["volumes/margins"][-1], arrays["volumes/entropy"][0]
        near = abs(k - LARGEST_MARGIN) < 1e-4 and abs(s - ENTROPY) < 1e-4
        theirs = f"{LARGEST_MARGIN:.5f}, {ENTROPY:.5f}"
        claims.append(Claim("largest margin; entropy of all solutions", f"{k:.5f}, {s:.5f}", theirs, holds(near)))
        pair = arrays["volumes/distance"][0], arrays["volumes/distance"][-1]
        near = bool(np.all(np.abs(np.subtract(pair, PAIRS)) < 1e-3))
        theirs = " → ".join(map(str, PAIRS))
        ours = " → ".join(f"{x:.4f}" for x in pair)
        claims.append(Claim("distance of two solutions, margin 0 → largest", ours, theirs, holds(near)))
        edge = numbers["isolated_below"]
        near = abs(edge - ISOLATED) < 1e-3
        claims.append(
            Claim("typical solutions are isolated: none at d below", f"{edge:.4f}", f"about {ISOLATED}", holds(near))
        )
    at_peaks = [v for v in numbers["peak_entropies"] if np.isfinite(v)]
    gap = float(np.max(np.abs(np.subtract(at_peaks, arrays["volumes/entropy"][0])), initial=0.0))
    text = f"differs by at most {gap:.1e}"
    claims.append(Claim("maximum over d is the entropy of all solutions", text, "identity", holds(gap < 1e-3)))
    lowest = float(np.min(value[-1]))
    claims.append(
        Claim("solutions of largest margin are not isolated", f"least φ = {lowest:.4f}", "φ > 0", holds(lowest > 0))
    )
    inside = np.flatnonzero(numbers["best_margin"] < 0.99 * arrays["volumes/margins"][-1])
    reach = (
        float(distances[inside[0] - 1]) if inside.size and inside[0] > 0 else float(distances[-1]) * (not inside.size)
    )
    text = f"for all d ≤ {reach:.3g}"
    claims.append(Claim("surroundings densest around κ_max", text, "at small d (.05 or more)", holds(reach >= 0.05)))
    claims.append(_nested_claim(distances, numbers["farthest_margin"]))
    return claims


def _nested_claim(distances: np.ndarray, farthest: np.ndarray) -> Claim:
    """The nearer part of the curve: farther out come other solutions of large margin."""
    near = np.isfinite(farthest) & (distances <= 0.1)
    label = "smaller and smaller margins around κ_max"
    if near.sum() < 2:
        return Claim(label, "not resolved", "yes", "undecided")
    d, margin = distances[near], farthest[near]
    i = int(np.argmin(margin))
    text = f"largest margin: {margin[0]:.3f} at d = {d[0]:g}, least {margin[i]:.3f} at {d[i]:g}"
    return Claim(label, text, "yes", holds(i > 0 and bool(np.all(np.diff(margin[: i + 1]) < 0))))


def _critical_claims(config: Mapping[str, Any], arrays: Arrays, numbers: Mapping[str, Any]) -> list[Claim]:
    claims: list[Claim] = []
    for name in config["models"]:
        limit, dense = (float(arrays[f"critical/{name}/{which}"]) for which in ("capacity", "wide_minima"))
        high = numbers["break_up"][f"{name}/1"]
        for which, value, printed, band in (
            ("capacity", limit, CRITICAL[name][0], 1e-4),
            ("densest regions break up", dense, CRITICAL[name][1], 3e-3),
        ):
            label = f"{LABELS[name]}: {which}"
            claims.append(Claim(label, f"{value:.4f}", f"{printed:g}", holds(abs(value - printed) < band)))
        if name == "perceptron":
            text = f"{high:.4f}"
            claims.append(
                Claim(
                    "perceptron: break-up around κ_max", text, f"{BREAK_UP} ± .003", holds(abs(high - BREAK_UP) < 3e-3)
                )
            )
        text = f"{high:.4f} < {dense:.4f} < {limit:.4f}"
        claims.append(Claim(f"{LABELS[name]}: in this order", text, "yes", holds(high < dense < limit)))
    if "perceptron" in config["models"]:
        lower = {f: numbers["break_up"][f"perceptron/{f:g}"] for f in config["break_up_fractions"] if f < 1}
        high = numbers["break_up"]["perceptron/1"]
        if lower:
            text = ", ".join(f"{value:.4f} at {f:g} κ_max" for f, value in lower.items())
            earlier = all(value < high for value in lower.values())
            claims.append(
                Claim("smaller margins break up earlier", text, "yes, slightly at .85 to .93", holds(earlier))
            )
    return claims


def _measured_claims(config: Mapping[str, Any], arrays: Arrays, numbers: Mapping[str, Any]) -> list[Claim]:
    claims: list[Claim] = []
    first, last = numbers["found"][0], numbers["found"][-1]
    total = Measured(float(arrays["volumes/entropy"][0]), 0.0)
    ours = Measured(**first["entropy"])
    text = f"{total.value:.4f} (theory)"
    claims.append(Claim("entropy of all solutions, by messages", format_measured(*ours), text, agrees(ours, total)))
    near, middle = PAIRED.index(0.01), PAIRED.index(0.05)
    for row in numbers["found"]:
        value = Measured(**row["over_typical"][middle])
        label = f"found at margin {row['target']:g}: denser than typical ones, d = .05"
        claims.append(Claim.bounded(label, value, "yes (φ − theory > 0)", 0.0, np.inf))
    share = Measured(first["near"]["value"] - first["near_typical"], first["near"]["stderr"])
    label = f"found without margin: fewer stabilities below {NEAR:g} than typical"
    claims.append(Claim.bounded(label, share, "yes (share − theory < 0)", -np.inf, 0.0))
    if last["target"] > first["target"]:
        value = Measured(**last["gain"][near])
        label = f"searched at margin {last['target']:g}: denser at d = .01 than without"
        claims.append(Claim.bounded(label, value, "yes (> 0)", 0.0, np.inf))
    search = numbers["search"]
    if len(search["alphas"]) > 1:
        bound, value = search["bound"], Measured(**search["threshold"])
        text = f"{bound} {format_measured(*value)}".strip()
        status = "undecided" if bound else judge(value, 0.70, 0.755)
        theirs = "near the break-up, .729 (.70 to .755)"
        claims.append(Claim(f"focusing, N = {config['search_size']}, stops at", text, theirs, status))
    return claims


def summarise(config: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Every number of the run: theory, measured rows, claims, failures."""
    distances, value, slope = (arrays[f"around/{name}"] for name in ("distances", "value", "slope"))
    typical = typical_distances(arrays)
    peaks = [
        float(at_distances(distances, v, s, np.array([d]))[0]) for v, s, d in zip(value, slope, typical, strict=True)
    ]
    alphas = sorted(config["search_alphas"])
    solved = np.stack([arrays[f"search/{alpha:g}/search_status"] == Status.SOLVED for alpha in alphas])
    stop, bound = threshold(alphas, solved)
    numbers: dict[str, Any] = {
        "isolated_below": first_zero(distances, value[0]),
        "typical_distance": typical,
        "peak_entropies": peaks,
        "best_margin": best_margin(arrays)[0],
        "farthest_margin": farthest_margin(arrays),
        "break_up": {
            name.removeprefix("break_up/").removesuffix("/threshold"): float(x)
            for name, x in arrays.items()
            if name.startswith("break_up/") and name.endswith("/threshold")
        },
        "search": {
            "alphas": alphas,
            "solved": solved.sum(axis=1).tolist(),
            "number": solved.shape[1],
            "threshold": stop._asdict(),
            "bound": bound,
        },
        "found": _found(config, arrays),
    }
    claims = [
        *_theory_claims(config, arrays, numbers),
        *_critical_claims(config, arrays, numbers),
        *_measured_claims(config, arrays, numbers),
    ]
    failed = [
        row for row in failures(arrays) if not (row["part"].startswith("search") and row["outcome"] == "not solved")
    ]
    return {"experiment": "unveiling-margins", **numbers, "claims": [c.__dict__ for c in claims], "failures": failed}

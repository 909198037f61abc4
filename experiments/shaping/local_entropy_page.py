"""What the experiment on local entropy says: paired differences, theory beside simulation, claims, figures, page.

Everything here works on stored arrays: `theory/...`, `search/name/quantity` (n, ...), `norm/direction/epochs/quantity`
(n, evaluations) and `small/N/device/quantity` (n, R). Instances that a search did not solve are left out of its
numbers; all searches share their instances, so differences are paired.

The deficit of a solution is the local entropy that its constraints cost, h2(d) - Sigma(d) with h2 the entropy of all
configurations at distance d. It is smooth in d, and is interpolated linearly between the points of a curve.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import Claim, agrees, cell, failures, judge, measured, page, picture
from experiments.registry import Summary
from experiments.shaping.searches import LABELS
from jflat.core import Status
from jflat.report import (
    Panel,
    Picture,
    Series,
    Table,
    draw_panels,
    figures,
    format_measured,
    load_run,
    mean_and_stderr,
)

__all__ = ["FLIPS", "deficits", "draw", "effect_size", "entropy_of_sphere", "summarise"]

Arrays = Mapping[str, np.ndarray]

FLIPS = 0.05
"""p at which the local energy is compared."""
DISTANCE = 0.05
"""d at which the local entropy is compared."""
RADIUS = 3
"""Distance at which small devices are compared."""
GRID = np.array([0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.14, 0.2])

SPECIFICATION = {
    "focusing": (0.0250, 0.0284, 0.0323),
    "slow": (0.0366, 0.0252, 0.0355),
    "fast": (0.0490, 0.0493, 0.0502),
    "clipped": (0.0465, 0.0430, 0.0420),
}
"""Local energy at p = .05, N = 1001, alpha = .3, of three instances by another code."""

DEVICE_LABELS = {"perceptron": "perceptron", "committee": "committee, 3 units", "parity": "parity machine, 3 units"}
THEORY_LABELS = {
    "typical": "theory: typical solutions",
    "max_margin": "theory: largest margin",
    "cross_entropy": "theory: cross-entropy",
}


def entropy_of_sphere(d: Any) -> np.ndarray:
    """h2(d) = -d log d - (1 - d) log(1 - d), in nats per weight.

    >>> entropy_of_sphere(0.5).round(4)
    np.float64(0.6931)
    """
    d = np.asarray(d, np.float64)
    return -d * np.log(d) - (1 - d) * np.log1p(-d)


def effect_size(differences: np.ndarray) -> float:
    """Cohen's d of paired differences: their mean over their standard deviation; NaN where that is zero or unknown."""
    good = differences[np.isfinite(differences)]
    spread = good.std(ddof=1) if good.size > 1 else 0.0
    return float(good.mean() / spread) if spread > 0 else math.nan


def deficits(arrays: Arrays, name: str, grid: np.ndarray) -> np.ndarray:
    """h2(d) - Sigma(d) of each solution of a search on a grid of distances, (n, D); NaN outside of its curve."""
    prefix = f"search/{name}"
    distances, entropies = (np.asarray(arrays[f"{prefix}/{q}"], np.float64) for q in ("distances", "entropies"))
    fine = (arrays[f"{prefix}/entropy_status"] == Status.CONVERGED) & _solved(arrays, name)[:, None]
    rows = np.full((len(distances), len(grid)), np.nan)
    for row, d, sigma, good in zip(rows, distances, entropies, fine, strict=True):
        if good.any():
            order = np.argsort(d[good])
            x, y = d[good][order], (entropy_of_sphere(d[good]) - sigma[good])[order]
            row[:] = np.interp(grid, x, y, left=np.nan, right=np.nan)
    return rows


def _solved(arrays: Arrays, name: str) -> np.ndarray:
    return arrays[f"search/{name}/status"] == Status.SOLVED


def _energy(config: Mapping[str, Any], arrays: Arrays, name: str) -> np.ndarray:
    """(n,) local energy at p = FLIPS; NaN where not solved."""
    place = int(np.argmin(np.abs(np.asarray(config["flips"]) - FLIPS)))
    return np.where(_solved(arrays, name), arrays[f"search/{name}/energy"][:, place].astype(float), np.nan)


def _quantities(config: Mapping[str, Any], arrays: Arrays, name: str) -> dict[str, np.ndarray]:
    """Numbers of one search, each (n,), NaN where not solved."""
    solved = _solved(arrays, name)
    stabilities = np.asarray(arrays[f"search/{name}/stabilities"], np.float64)
    eigenvalues = arrays[f"search/{name}/eigenvalues"]
    values = {
        "energy": _energy(config, arrays, name),
        "deficit": deficits(arrays, name, np.array([DISTANCE]))[:, 0],
        "smallest": stabilities.min(axis=1),
        "mean stability": stabilities.mean(axis=1),
        "trace": eigenvalues.sum(axis=1),
        "largest eigenvalue": eigenvalues[:, 0],
        "work": arrays[f"search/{name}/work"].astype(float),
    }
    if f"search/{name}/gamma" in arrays:
        values["gamma"] = arrays[f"search/{name}/gamma"].astype(float)
    return {key: np.where(solved, value, np.nan) for key, value in values.items()}


def _theory_at(arrays: Arrays, name: str, distance: float) -> float:
    """The local entropy of a theory curve at a distance, by interpolation of its deficit; NaN outside of the curve."""
    d = arrays["theory/bound/distances" if name == "bound" else "theory/distances"]
    good = arrays[f"theory/{name}/status"] == Status.CONVERGED
    if not good.any():
        return math.nan
    order = np.argsort(d[good])
    lost = (entropy_of_sphere(d[good]) - arrays[f"theory/{name}/entropies"][good])[order]
    return float(entropy_of_sphere(distance) - np.interp(distance, d[good][order], lost, left=np.nan, right=np.nan))


def _flattest(config: Mapping[str, Any], arrays: Arrays, direction: str, epochs: int) -> dict[str, np.ndarray]:
    """Of each run: the sharpness of its flattest solution, and what it ends with, (n,)."""
    prefix = f"norm/{direction}/{epochs}"
    error, sharp = (np.asarray(arrays[f"{prefix}/{q}"], np.float64) for q in ("error", "sharpness"))
    alive = arrays[f"{prefix}/failed_step"] < 0
    best = np.where(error == 0, sharp, np.inf).min(axis=1)
    best = np.where(alive & np.isfinite(best), best, np.nan)
    last, end = (np.where(alive, x[:, -1], np.nan) for x in (error, sharp))
    return {"flattest": best, "last_error": last, "last_sharpness": end, "last_rise": end - last}


def _paired_claims(numbers: Mapping[str, Mapping[str, np.ndarray]]) -> list[Claim]:
    claims = []
    wanted = {
        "energy": "rise of the error at p = .05",
        "deficit": "entropy lost at d = .05",
        "trace": "trace of the Hessian",
        "largest eigenvalue": "largest eigenvalue",
    }
    for quantity, words in wanted.items():
        for flat in ("focusing", "slow"):
            for sharp in ("fast", "clipped"):
                if flat in numbers and sharp in numbers:
                    difference = numbers[flat][quantity] - numbers[sharp][quantity]
                    text = f"{words}: {LABELS[flat]} − {LABELS[sharp]}"
                    claims.append(Claim.bounded(text, measured(difference), "flatter (< 0)", -np.inf, 0.0))
    return claims


def _norm_claims(
    config: Mapping[str, Any], arrays: Arrays, numbers: Mapping[str, Mapping[str, np.ndarray]]
) -> list[Claim]:
    """Growth against reduction: at the first solution, along runs of equal length, and at their end."""
    claims = []

    def add(text: str, grown: np.ndarray, shrunk: np.ndarray, word: str = "flatter") -> None:
        """The abstract says reduction leads into flat minima, so that growth minus reduction is positive."""
        difference = grown - shrunk
        value, size = measured(difference), effect_size(difference)
        better = "reduction" if value.value > 0 else "growth"
        known = judge(value, 0.0, np.inf)
        ours = f"{format_measured(*value)}: {better} {word}, d = {size:+.1f}".replace("-", "−")
        claims.append(Claim(text, ours, f"abstract: reduction {word} (> 0); other accounts: growth", known))

    if "slow" in numbers and "shrinking" in numbers:
        for quantity, words in (("energy", "rise of the error at p = .05"), ("deficit", "entropy lost at d = .05")):
            text = f"first solution, {words}: slow growth − slow reduction"
            add(text, numbers["slow"][quantity], numbers["shrinking"][quantity])
    for epochs in config["norm_epochs"]:
        grown, shrunk = (_flattest(config, arrays, way, epochs) for way in ("growing", "shrinking"))
        add(f"{epochs} epochs, flattest solution on the way: growth − reduction", grown["flattest"], shrunk["flattest"])
        add(
            f"{epochs} epochs, error at the end: growth − reduction", grown["last_error"], shrunk["last_error"], "lower"
        )
    if len(config["norm_epochs"]) > 1:
        fast, slow = min(config["norm_epochs"]), max(config["norm_epochs"])
        difference = np.subtract(*(_flattest(config, arrays, "growing", epochs)["flattest"] for epochs in (slow, fast)))
        text = f"growth in {slow} epochs − in {fast}: flattest solution"
        claims.append(Claim.bounded(text, measured(difference), "slow is flatter (< 0)", -np.inf, 0.0))
    return claims


def _near(arrays: Arrays, size: int, device: str, quantity: str) -> np.ndarray:
    """(n, R) log(count) / N for counts, else the fraction itself."""
    values = arrays[f"small/{size}/{device}/{quantity}"]
    return np.log(values) / size if quantity in ("densest", "mean_near") else values


def _parity_claims(config: Mapping[str, Any], arrays: Arrays) -> list[Claim]:
    claims = []
    for size in config["small_sizes"]:
        radii = list(arrays[f"small/{size}/radii"])
        if RADIUS not in radii:
            continue
        at = radii.index(RADIUS)
        for other in ("perceptron", "committee"):
            for quantity, words, low, high, theirs in (
                ("densest", f"entropy within {RADIUS} flips of the densest solution", -np.inf, 0.0, "less (< 0)"),
                ("flattest", f"error {RADIUS} flips from the flattest solution", 0.0, np.inf, "more (> 0)"),
            ):
                ours, base = (_near(arrays, size, device, quantity)[:, at] for device in ("parity", other))
                text = f"N = {size}, {words}: parity − {other}"
                claims.append(Claim.bounded(text, measured(ours - base), theirs, low, high))
    return claims


def summarise(config: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Every number of the run with its standard error over instances: searches, norms, devices, claims, failures."""
    numbers = {name: _quantities(config, arrays, name) for name in config["searches"]}
    claims = _paired_claims(numbers)
    is_theirs = config["size"] == 1001 and config["alpha"] == 0.3
    for name, values in SPECIFICATION.items():
        if name in numbers and is_theirs:
            ours, other = measured(numbers[name]["energy"]), measured(np.array(values))
            text = f"rise of the error at p = .05, {LABELS[name]}"
            claims.append(Claim(text, format_measured(*ours), format_measured(*other), agrees(ours, other)))
    if "theory/distances" in arrays:
        sphere = entropy_of_sphere(DISTANCE)
        typical, bound = (_theory_at(arrays, name, DISTANCE) for name in ("typical", "bound"))
        for name in numbers:
            found = measured(sphere - numbers[name]["deficit"])
            text = f"local entropy at d = .05, {LABELS[name]}"
            claims.append(
                Claim.bounded(f"{text}: above typical solutions", found, f"> {typical:.4f} (theory)", typical, np.inf)
            )
            if name in ("focusing", "slow"):
                theirs = f"< {bound:.4f} (theory)" if np.isfinite(bound) else "theory did not converge"
                status = judge(found, -np.inf, bound) if np.isfinite(bound) else "undecided"
                claims.append(Claim(f"{text}: below the bound", format_measured(*found), theirs, status))
    claims += _norm_claims(config, arrays, numbers) + _parity_claims(config, arrays)
    searches = {
        name: {"solved": int(_solved(arrays, name).sum())} | {q: measured(v)._asdict() for q, v in values.items()}
        for name, values in numbers.items()
    }
    norms = {
        f"{way}/{epochs}": {q: measured(v)._asdict() for q, v in _flattest(config, arrays, way, epochs).items()}
        for epochs in config["norm_epochs"]
        for way in ("growing", "shrinking")
    }
    return {
        "experiment": "shaping-local-entropy",
        "searches": searches,
        "norms": norms,
        "claims": [claim.__dict__ for claim in claims],
        "failures": failures(arrays),
    }


def _points(x: np.ndarray, values: np.ndarray) -> Series:
    """Mean and standard error over instances (n, D), where at least two are known."""
    known = np.isfinite(values).sum(axis=0) > 1
    cells = [measured(column) for column in values.T[known]]
    mean, error = (np.array([cell[i] for cell in cells], float) for i in (0, 1))
    return Series((x[known], mean), (x[known], mean, error))


def _entropy_panels(config: Mapping[str, Any], arrays: Arrays) -> list[Panel]:
    lost: dict[str, Series] = {}
    kept: dict[str, Series] = {}
    if "theory/distances" in arrays:
        for name, label in (*THEORY_LABELS.items(), ("bound", "theory: densest regions")):
            d = arrays["theory/bound/distances" if name == "bound" else "theory/distances"]
            good = arrays[f"theory/{name}/status"] == Status.CONVERGED
            if not good.any():
                continue
            d, sigma = d[good], arrays[f"theory/{name}/entropies"][good]
            kept[label], lost[label] = Series((d, sigma)), Series((d, entropy_of_sphere(d) - sigma))
    for name in config["searches"]:
        values = deficits(arrays, name, GRID)
        series = _points(GRID, values)
        lost[LABELS[name]] = series._replace(line=None)
        kept[LABELS[name]] = _points(GRID, entropy_of_sphere(GRID) - values)._replace(line=None)
    title = rf"N = {config['size']}, $\alpha$ = {config['alpha']:g}"
    return [
        Panel(title, r"local entropy $\Sigma$ (nats)", kept),
        Panel("below all configurations", r"$h_2(d) - \Sigma$ (nats)", lost, log_y=True, lowest=1e-3),
    ]


def _norm_panels(config: Mapping[str, Any], arrays: Arrays) -> list[Panel]:
    panels = []
    for quantity, title, ylabel in (
        ("error", "training error", "error (%)"),
        ("sharpness", f"error with flips, $p$ = {FLIPS:g}", "error (%)"),
    ):
        series = {}
        for epochs in config["norm_epochs"]:
            for way in ("growing", "shrinking"):
                prefix = f"norm/{way}/{epochs}"
                mean, error = mean_and_stderr(100 * arrays[f"{prefix}/{quantity}"])
                gamma = arrays[f"{prefix}/gamma"]
                some = slice(None, None, max(1, len(gamma) // 10))
                series[f"{way}, {epochs} epochs"] = Series((gamma, mean), (gamma[some], mean[some], error[some]))
        panels.append(Panel(title, ylabel, series))
    return panels


def _spectra(config: Mapping[str, Any], arrays: Arrays) -> list[Panel]:
    series = {}
    top = max(float(arrays[f"search/{name}/eigenvalues"].max()) for name in config["searches"])
    edges = np.linspace(0, 1.02 * top, 41)
    middle = (edges[1:] + edges[:-1]) / 2
    for name in config["searches"]:
        values = arrays[f"search/{name}/eigenvalues"][_solved(arrays, name)]
        rows = [np.histogram(row, edges)[0] / (len(row) * np.diff(edges)) for row in values]
        if rows:
            series[LABELS[name]] = Series(line=(middle, np.mean(rows, axis=0)))
    title = rf"Hessian of the cross-entropy, $\gamma$ = {config['hessian_gamma']:g}, on normalised weights"
    return [Panel(title, r"density (nats$^{-1}$)", series)]


def _stability_panels(config: Mapping[str, Any], arrays: Arrays) -> list[Panel]:
    series: dict[str, Series] = {}
    if "theory/distances" in arrays:
        for name in ("typical", "max_margin"):
            series[THEORY_LABELS[name]] = Series((arrays["theory/stabilities"], arrays[f"theory/{name}/density"]))
    edges = np.linspace(0, 4, 21)
    middle = (edges[1:] + edges[:-1]) / 2
    for name in config["searches"]:
        values = arrays[f"search/{name}/stabilities"][_solved(arrays, name)]
        rows = np.array([np.histogram(row, edges)[0] / (len(row) * np.diff(edges)) for row in values])
        if len(rows):
            series[LABELS[name]] = _points(middle, rows)._replace(line=None)
    return [Panel("stabilities of the patterns", r"density of $\Delta$", series)]


def _small_panels(config: Mapping[str, Any], arrays: Arrays) -> list[Panel]:
    panels = []
    size = config["small_sizes"][-1]
    radii = arrays[f"small/{size}/radii"]
    for quantity, title, ylabel in (
        ("densest", f"densest solution, N = {size}", "local entropy (nats)"),
        ("flattest", f"flattest solution, N = {size}", "error at distance r (%)"),
    ):
        series = {}
        for device, label in DEVICE_LABELS.items():
            values = _near(arrays, size, device, quantity)
            series[label] = _points(radii, 100 * values if quantity == "flattest" else values)
        if quantity == "densest":
            ball = np.cumsum([math.comb(size, r) for r in range(int(radii[-1]) + 1)])[radii]
            series["all configurations"] = Series((radii, np.log(ball) / size))
        panels.append(Panel(title, ylabel, series))
    return panels


def _pictures(directory: pathlib.Path, config: Mapping[str, Any], arrays: Arrays) -> list[Picture]:
    n = config["num_instances"]
    marks = f"Marks: mean ± one standard error over {n} instances."
    energies = {
        LABELS[name]: 100 * arrays[f"search/{name}/energy"][_solved(arrays, name)]
        for name in config["searches"]
        if _solved(arrays, name).any()
    }
    drawn = [
        (
            "local_entropy",
            draw_panels(_entropy_panels(config, arrays), xlabel="distance $d$ (fraction of weights)", height=3.2),
            "Local entropy around solutions that algorithms find, against distance, by belief propagation; below, what "
            f"it lacks of the entropy of all configurations at that distance. {marks} Lines: replica theory at "
            "infinite N, around typical solutions, solutions of the largest margin and minimisers of the cross-entropy "
            f"(γ = {config['reference_gamma']:g}, β = {config['reference_beta']:g}), and of the densest regions, whose "
            "distance is that from the sign of their barycentre. Lower in the second panel is flatter.",
        ),
        (
            "local_energy",
            figures.local_energy(
                config["flips"],
                energies,
                ylabel="rise of the error (points)",
                xlabel="probability $p$ that a weight flips",
            ),
            f"Local energy: rise of the training error when weights flip with probability p. {config['num_draws']} "
            f"draws; band of one standard error over {n} instances. Lower is flatter.",
        ),
        (
            "stabilities",
            draw_panels(_stability_panels(config, arrays), xlabel=r"stability $\Delta$", log_x=False, height=3.4),
            f"Density of the stabilities of the patterns. {marks} Lines: theory of typical solutions, and of those of "
            "the largest margin. Flat solutions have few patterns at small stabilities.",
        ),
        (
            "hessian",
            draw_panels(_spectra(config, arrays), xlabel="eigenvalue (nats)", log_x=False, height=3.4),
            "Density of the nonzero eigenvalues of the Hessian of the summed cross-entropy, at the solutions as real "
            "weights of norm √N; mean over instances.",
        ),
        (
            "norm",
            draw_panels(_norm_panels(config, arrays), xlabel=r"$\gamma$, the norm of the weights"),
            "Clipped SGD on the cross-entropy while γ grows (left to right) or shrinks (right to left) between the "
            f"same ends: training error, and error when each weight flips with probability {FLIPS:g}. {marks}",
        ),
    ]
    if config["small_sizes"]:
        drawn.append(
            (
                "parity",
                draw_panels(_small_panels(config, arrays), xlabel="distance $r$ (weights flipped)", log_x=False),
                "All solutions of small devices by enumeration: log of the number of solutions within distance r of "
                "the solution that has most, per weight; and the error at distance r from the solution where it is "
                f"smallest. Mean ± standard error over {config['small_instances']} instances at α = "
                f"{config['small_alpha']:g}.",
            )
        )
    return [picture(directory, *one) for one in drawn]


def _tables(config: Mapping[str, Any], metrics: Mapping[str, Any], arrays: Arrays) -> list[Table]:
    n = config["num_instances"]
    columns = {
        "rise of error, %": ("energy", 100.0),
        "entropy lost": ("deficit", 1.0),
        "smallest Δ": ("smallest", 1.0),
        "trace": ("trace", 1.0),
        "largest eigenvalue": ("largest eigenvalue", 1.0),
        "work": ("work", 1.0),
        "γ at the end": ("gamma", 1.0),
    }
    rows: list[list[Any]] = [
        [LABELS[name], f"{own['solved']}/{n}", *(cell(own.get(q), scale) for q, scale in columns.values())]
        for name, own in metrics["searches"].items()
    ]
    caption = (
        f"Mean ± standard error over solved instances. Rise of the error when weights flip with p = {FLIPS:g}; entropy "
        f"lost, h2(d) − Σ(d) at d = {DISTANCE:g}; Hessian of the summed cross-entropy; work in steps or epochs."
    )
    tables = [Table(["search", "solved", *columns], rows, caption)]
    header = ["schedule", "epochs", "flattest solution, %", "error at the end, %", "rise at the end, %"]
    rows = []
    for name, own in metrics["norms"].items():
        way, _, epochs = name.partition("/")
        rows.append([way, int(epochs), *(cell(own[q], 100.0) for q in ("flattest", "last_error", "last_rise"))])
    caption = (
        f"γ between {config['norm_ends'][0]:g} and {config['norm_ends'][1]:g}: error with flips of the flattest "
        "solution met on the way, error of the last weights, and its rise with flips."
    )
    tables.append(Table(header, rows, caption))
    header = ["N", "device", "solutions", "densest, r = 3", "mean, r = 3", "flattest, r = 3, %", "mean, r = 3, %"]
    rows = []
    for size in config["small_sizes"]:
        at = list(arrays[f"small/{size}/radii"]).index(RADIUS)
        for device, label in DEVICE_LABELS.items():
            cells: list[Any] = [measured(arrays[f"small/{size}/{device}/num_solutions"])]
            for quantity in ("densest", "mean_near", "flattest", "mean_error"):
                scale = 100 if "_error" in quantity or quantity == "flattest" else 1
                cells.append(measured(scale * _near(arrays, size, device, quantity)[:, at]))
            rows.append([size, label, *cells])
    caption = (
        "All solutions of small devices: log of the number of solutions within three flips per weight, around the "
        "densest solution and on average; errors at three flips from the flattest and on average."
    )
    tables.append(Table(header, rows, caption))
    return tables


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Figures, tables and the page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, metrics, arrays = stored.config, stored.metrics, stored.arrays
    what = (
        f"{config['num_instances']} instances of the binary perceptron, N = {config['size']}, "
        f"M = {round(config['alpha'] * config['size'])} random patterns; every search runs on all of them and stops at "
        "its first solution. Ours: mean over instances ± one standard error, of paired differences where two searches "
        "are compared; d is Cohen's effect size of the pairs. Flips of weights and flips of inputs have the same mean "
        "effect on the error, so the local energy is the robustness to input noise as well."
    )
    pictures = _pictures(directory, config, arrays)
    title = "How flat are the solutions that algorithms find?"
    return page(directory, stored, title, what, claim, pictures, _tables(config, metrics, arrays))

"""Figures, tables and the page of `critical-nonlinear`, from stored arrays and numbers."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import page, picture
from experiments.critical_points import drawing
from experiments.critical_points.measuring import TAUS
from experiments.registry import Summary
from jflat.report import Measured, Panel, Series, Table, draw_panels, load_run

__all__ = ["draw"]

TITLES = {"autoencoder": "autoencoder", "memorisation": "memorising network"}


def _flatness(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
    panels = []
    for net, title in TITLES.items():
        series = {}
        for rtol in config["rtols"]:
            values = arrays[f"{net}/{rtol:g}/last/flatness"]
            low, middle, high = np.nanquantile(values, [0.25, 0.5, 0.75], axis=0)
            series[f"F(τ), rtol {rtol:g}"] = Series(
                (TAUS, middle), (TAUS, middle, np.stack([middle - low, high - middle]))
            )
        levels = {"flat, by definition": 0.9}
        panels.append(Panel(f"{title}: where the runs end", r"$F(\tau)$", series, levels, lowest=0.0))
    return draw_panels(panels, xlabel=r"$\tau$, share of $|H|$ that counts as zero", height=2.9)


def _residuals(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
    groups = {}
    for net, title in TITLES.items():
        for rtol in config["rtols"]:
            where = f"{net}/{rtol:g}"
            groups[f"{title}, rtol {rtol:g}"] = arrays[f"{where}/last/flatness"][:, 1], arrays[f"{where}/last_residual"]
    return drawing.plain_scatter(
        groups, xlabel=r"$F(10^{-6})$ at the end", ylabel="r of the last step", lines=(0.9, 0.9)
    )


def _spectrum(arrays: Mapping[str, np.ndarray]) -> Any:
    values, r = arrays["guard/values"], float(arrays["guard/r"])
    place = (np.arange(len(values)) + 0.5) / len(values)
    series = {"saddle beside the origin": Series(points=(place, values / r, np.full(len(values), np.nan)))}
    levels = {"−r": -1.0, "2 r": 2.0}
    panel = Panel('the "bad local minimum"', r"eigenvalue / $r$,  $r = 2\lambda/P$", series, levels)
    return draw_panels([panel], xlabel="share of eigenvalues, ascending", log_x=False, height=3.4)


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Figures, tables and the page."""
    stored = load_run(directory)
    config, arrays, metrics = stored.config, stored.arrays, stored.metrics
    loose = config["rtols"][0]
    gradients = {
        f"{title}, rtol {rtol:g}": arrays[f"{net}/{rtol:g}/squared_gradient_norm"]
        for net, title in TITLES.items()
        for rtol in config["rtols"]
    }
    guard = metrics["guard"]
    pictures = [
        picture(
            directory,
            "flatness",
            _flatness(config, arrays),
            f"Median and quartiles over runs. A solver at rtol {loose:g} cannot tell τ = 5e-4 from zero. "
            "The tight runs are shorter: their F is no fair comparison.",
        ),
        picture(
            directory,
            "r_and_f",
            _residuals(config, arrays),
            "Each run at its end. r > 0.9 (dotted) says as much of the solver as of the point.",
        ),
        picture(
            directory,
            "gradients",
            drawing.sorted_runs(gradients, {}, ylabel=r"smallest $|g|^2$ of the run"),
            "How small the gradients become.",
        ),
        picture(
            directory,
            "saddle",
            _spectrum(arrays),
            f"All eigenvalues at |θ| = {guard['length']:.3g}, loss − ln 2 = {guard['excess']:.2g}, "
            f"|g|² = {guard['square']:.1g}, r = {guard['r']:.4g}: an absolute cutoff of 1e-3 counts none as negative.",
        ),
    ]
    header = [
        "network",
        "rtol",
        "runs",
        "critical",
        "both tests",
        "end r > 0.9",
        "pass r > 0.9",
        "|g|², median",
        *[f"F({t:g})" for t in TAUS],
        "index by cutoff",
    ]
    rows = [
        [
            TITLES[r["net"]],
            f"{r['rtol']:g}",
            r["runs"],
            Measured(*r["critical"]),
            r["both_tests"],
            Measured(*r["final"]),
            Measured(*r["passed"]),
            f"{r['square']:.1e}",
            *r["fractions"],
            f"× {r['index_ratio']:.2g}",
        ]
        for r in metrics["runs"]
    ]
    table = Table(
        header,
        rows,
        "Critical: |g|² below the published level at the best point; both tests: relative to |H| |θ| as well. "
        "r > 0.9: where the solver stopped for least squares, at the last step or at any. F: medians at the "
        "last point. Index by cutoff: median ratio of the counts at 1e-7 |H| and 1e-3 |H|.",
    )
    what = f"Newton-MR on networks with the activation x sigmoid(x); data: {config['data']}."
    return page(directory, stored, "Critical points: nonlinear networks", what, claim, pictures, [table])

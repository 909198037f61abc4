"""What the convergence experiment says: slopes, claims, figure, page, from stored arrays.

Squared errors (W, S), by width and network: `linear/t0`, `linear/t5`, `linear/t10`, `maml/first_order`,
`maml/second_order`, `cbow/gram`, `shallow/outputs`, `deep/outputs`, `deep/without/outputs`.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.claims import Claim, cell, failures, holds, page, picture
from experiments.registry import Summary
from jflat.report import Measured, Panel, Picture, Series, Table, draw_panels, load_run, mean_and_stderr

__all__ = ["PowerLaw", "draw", "power_law", "summarise"]

Arrays = Mapping[str, np.ndarray]
BAND = 0.06
"""What a slope may differ from -1/2, which it only reaches as n grows."""
PROBLEMS = {  # label and the slope of the specification's own networks
    "linear/t0": ("linear, at the start", -0.505),
    "linear/t5": ("linear, 5 steps", -0.498),
    "linear/t10": ("linear, 10 steps", -0.503),
    "maml/first_order": ("MAML, first order", -0.531),
    "maml/second_order": ("MAML, second order", -0.528),
    "cbow/gram": ("CBOW, Gram matrix", -0.520),
    "shallow/outputs": ("one hidden layer, tanh", -0.52),
    "deep/outputs": ("two hidden layers, tanh", -0.513),
}
DRAWN = {
    "linear/t5": "linear",
    "maml/first_order": "MAML",
    "cbow/gram": "CBOW",
    "shallow/outputs": "one layer",
    "deep/outputs": "two layers",
}
WITHOUT = "deep/without/outputs"


class PowerLaw(NamedTuple):
    """A fit rms ~ n^slope."""

    slope: Measured
    """With its standard error over networks."""
    rms: np.ndarray
    """(W,) over outputs and networks."""
    rms_error: np.ndarray
    """(W,), its standard error."""


def power_law(widths: Any, squares: np.ndarray) -> PowerLaw:
    """The least-squares line through log rms against log n.

    Args:
      widths: (W,).
      squares: (W, S) mean squared errors of independent networks.

    With e_n the relative standard error of the mean square, log rms has e_n / 2, and the slope, a linear function of
    the independent log rms, the root of the sum of their squares times its coefficients'.

    >>> power_law([1, 4], np.array([[1.0, 1.0], [0.25, 0.25]])).slope
    Measured(value=-0.5, stderr=0.0)
    """
    mean, stderr = mean_and_stderr(np.asarray(squares, np.float64), axis=1)
    centred = np.log(widths) - np.mean(np.log(widths))
    coefficients = centred / np.sum(centred**2)
    rms, relative = np.sqrt(mean), stderr / mean / 2
    slope, error = coefficients @ np.log(rms), np.sqrt(np.sum((coefficients * relative) ** 2))
    return PowerLaw(Measured(float(slope), float(error)), rms, rms * relative)


def _widths(config: Mapping[str, Any], name: str) -> np.ndarray:
    return np.asarray(config["deep_widths" if name.startswith("deep") else "widths"], float)


def _claims(config: Mapping[str, Any], arrays: Arrays) -> list[Claim]:
    claims = []
    for name, (label, _) in PROBLEMS.items():
        slope = power_law(_widths(config, name), arrays[name]).slope
        bounds = (-0.5 - BAND, -0.5 + BAND)
        claims.append(Claim.bounded(f"power of the width, {label}", slope, f"−1/2 [± {BAND:g}]", *bounds))
    for name, label in (("scalar", "scalar"), ("two_by_two", "2 × 2")):
        worst = float(arrays[f"targets/{name}"])
        text = f"linear limit, {label} case: largest difference from the closed form"
        claims.append(Claim(text, f"{worst:.1e}", "0 [± 2e-9]", holds(worst < 2e-9)))
    gap = np.abs(arrays["deep/limit"] - arrays["deep/without/limit"])
    error = np.hypot(arrays["deep/limit_error"], arrays["deep/without/limit_error"])
    most = int(np.argmax(gap))
    value = Measured(float(gap[most]), float(error[most]))
    text = "two hidden layers: largest change of an output without the correction"
    claims.append(Claim.bounded(text, value, "about 0.1 [above 0.05]", 0.05, np.inf))
    roots = np.sqrt(arrays[WITHOUT][-1]) - np.sqrt(arrays["deep/outputs"][-1])
    mean, stderr = mean_and_stderr(roots)
    text = f"two hidden layers, n = {config['deep_widths'][-1]:,}: error without the correction − with it"
    claims.append(Claim.bounded(text, Measured(float(mean), float(stderr)), "> 0", 0.0, np.inf))
    return claims


def summarise(config: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Every number of the run: power laws, claims, failures."""
    laws = {}
    for name in (*PROBLEMS, WITHOUT):
        law = power_law(_widths(config, name), arrays[name])
        laws[name] = {"slope": law.slope._asdict(), "rms": law.rms.tolist(), "rms_error": law.rms_error.tolist()}
    return {
        "experiment": "width-convergence",
        "laws": laws,
        "claims": [claim.__dict__ for claim in _claims(config, arrays)],
        "failures": failures(arrays),
    }


def _figure(config: Mapping[str, Any], laws: Mapping[str, Any]) -> Any:
    errors, scaled = {}, {}
    for name in (*DRAWN, WITHOUT):
        widths, law = _widths(config, name), laws[name]
        rms, error = np.asarray(law["rms"]), np.asarray(law["rms_error"])
        if name == WITHOUT:
            label = "limit without correction"
        else:
            label = f"{DRAWN[name]}: {cell(law['slope']).value:.3f} ± {cell(law['slope']).stderr:.3f}"
            label = label.replace("-", "−")
            level = np.exp(np.mean(np.log(rms * widths**0.5))) / widths**0.5
            scaled[label] = Series((widths, rms / level), (widths, rms / level, error / level))
        errors[label] = Series((widths, rms), (widths, rms, error))
    panels = [
        Panel("distance of networks from the limit (legend: its power of n)", "rms error", errors, log_y=True),
        Panel("times the root of the width", r"rms error $\cdot\,\sqrt{n}$ / mean", scaled, levels={"power −1/2": 1.0}),
    ]
    caption = (
        "Distance of finite networks from their exact limit, with one standard error over networks; the legend has the "
        "fitted powers (linear: after 5 steps; MAML: first order). Without the correction the Tensor-Program limit is "
        "another function, and the distance from it stops falling."
    )
    return draw_panels(panels, xlabel="width n", height=3.4), caption


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """The figure, tables and the page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, laws = stored.config, stored.metrics["laws"]
    pictures: list[Picture] = [picture(directory, "width", *_figure(config, laws))]
    slopes = [[label, cell(laws[name]["slope"]), theirs, -0.5] for name, (label, theirs) in PROBLEMS.items()]
    tables = [
        Table(["problem", "fitted power", "specification", "theory"], slopes, "Power of the width of the rms error.")
    ]
    for key, names in (
        ("widths", [n for n in PROBLEMS if not n.startswith("deep")]),
        ("deep_widths", ["deep/outputs", WITHOUT]),
    ):
        header = ["rms error at width", *(f"{n:,}" for n in config[key])]
        rows = [
            [
                PROBLEMS[name][0] if name in PROBLEMS else "two hidden layers, limit without correction",
                *map(Measured, laws[name]["rms"], laws[name]["rms_error"]),
            ]
            for name in names
        ]
        tables.append(Table(header, rows, "Distance from the limit, over outputs and networks."))
    what = (
        f"Finite muP networks, {config['num_seeds']} of each width ({config['deep_seeds']} with two hidden layers), "
        "are trained exactly as the limit is, on the same data. Outputs are compared after the last step. Problems are "
        "as in the specification, data and random numbers are our own."
    )
    return page(directory, stored, "Convergence to the infinite-width limit", what, claim, pictures, tables)

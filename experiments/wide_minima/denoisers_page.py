"""What the experiment on ReLU denoisers says: claims, figures, page, from stored arrays `depth/step/quantity` (S, ...).

Only a minimum must have lambda_max <= 2 / eta: a run that has not converged may hover at the edge of stability,
somewhat above. There the sharpness wanders, so the numbers of a run are medians over its last tenth
of looks. Runs that diverged are counted and left out.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import Claim, cell, failures, holds, measured, page, picture
from experiments.registry import Summary
from jflat.core import Status
from jflat.report import Panel, Picture, Series, Table, draw_panels, load_run

__all__ = ["decoupling", "draw", "last", "summarise", "unevenness"]

Arrays = Mapping[str, np.ndarray]


def last(arrays: Arrays, name: str, quantity: str) -> np.ndarray:
    """(S,): median of a quantity over the last tenth of the looks; NaN where the run diverged."""
    values = np.asarray(arrays[f"{name}/{quantity}"], np.float64)
    tail = values[:, -max(1, values.shape[1] // 10) :]
    return np.where(arrays[f"{name}/diverged"], np.nan, np.median(tail, axis=1))


def unevenness(arrays: Arrays, name: str) -> np.ndarray:
    """(S,): standard deviation of log g_k over the layers, mean over samples; NaN where the run diverged."""
    gains = np.asarray(arrays[f"{name}/path_gains"], np.float64)
    good = (arrays[f"{name}/path_outcome"] == Status.COMPLETED) & (gains > 0).all(-1)
    spread = np.where(good, np.std(np.log(np.where(good[..., None], gains, 1.0)), axis=-1), np.nan)
    return _over_samples(arrays, name, spread)


def decoupling(arrays: Arrays, name: str) -> np.ndarray:
    """(S,): the largest coupling residual of a layer, mean over samples; NaN where the run diverged."""
    largest = np.max(np.asarray(arrays[f"{name}/coupling_residuals"], np.float64), axis=-1)
    return _over_samples(arrays, name, largest)


def _over_samples(arrays: Arrays, name: str, values: np.ndarray) -> np.ndarray:
    found = np.array([np.mean(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in values])
    return np.where(arrays[f"{name}/diverged"], np.nan, found)


def _names(config: Mapping[str, Any], depth: int) -> list[str]:
    return [f"{depth}/{step:g}" for step in config["step_sizes"]]


def _claims(config: Mapping[str, Any], arrays: Arrays) -> list[Claim]:
    claims, steps = [], np.asarray(config["step_sizes"])
    for depth in config["depths"]:
        names = _names(config, depth)
        sharpness = np.stack([last(arrays, name, "sharpness") for name in names])
        known = np.flatnonzero(np.isfinite(sharpness).all(1))
        capped = (sharpness * steps[:, None] / 2)[np.isfinite(sharpness)]
        if capped.size:
            text = f"{depth} layers: λ_max η / 2, every run"
            claims.append(
                Claim(
                    text,
                    f"largest {capped.max():.3f}",
                    "≤ 1 at a minimum [1.05]",
                    holds(capped.max() <= 1.05),
                )
            )
        if len(known) > 1:
            first, final = known[[0, -1]]
            fall = measured(sharpness[first] - sharpness[final])
            text = f"{depth} layers: λ_max at η = {steps[first]:g} − at {steps[final]:g}, same start"
            claims.append(Claim.bounded(text, fall, "falls (> 0)", 0.0, np.inf))
            for function, words, theirs in (
                (unevenness, "spread of log gains", "evener (> 0)"),
                (decoupling, "coupling residual", "coupled (> 0)"),
                (
                    lambda arrays, name: last(arrays, name, "test_loss"),
                    "loss on unseen images",
                    "not stated (> 0: better)",
                ),
            ):
                change = measured(function(arrays, names[first]) - function(arrays, names[final]))
                text = f"{depth} layers: {words}, η = {steps[first]:g} − {steps[final]:g}"
                claims.append(Claim.bounded(text, change, theirs, 0.0, np.inf))
    return claims


def summarise(config: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Every number of the run with its standard error over seeds: runs, claims, failures."""
    runs = []
    for depth in config["depths"]:
        for step, name in zip(config["step_sizes"], _names(config, depth), strict=True):
            numbers = {q: measured(last(arrays, name, q))._asdict() for q in ("sharpness", "loss", "test_loss")}
            numbers["unevenness"] = measured(unevenness(arrays, name))._asdict()
            numbers["decoupling"] = measured(decoupling(arrays, name))._asdict()
            runs.append({"depth": depth, "step": step, "diverged": int(arrays[f"{name}/diverged"].sum())} | numbers)
    return {
        "experiment": "wide-minima-denoisers",
        "runs": runs,
        "claims": [claim.__dict__ for claim in _claims(config, arrays)],
        "failures": failures(arrays),
    }


def _bars(values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    found = [measured(v) for v in values]
    return np.array([f.value for f in found]), np.array([np.nan if f.stderr is None else f.stderr for f in found])


def _sharpness_figure(config: Mapping[str, Any], arrays: Arrays) -> Any:
    steps = np.asarray(config["step_sizes"])
    panels = []
    for quantity, title, ylabel in (
        ("sharpness", "sharpness at the end", r"$\lambda_{\max}$"),
        ("loss", "training loss at the end", "mean squared error"),
        ("test_loss", "loss on unseen images", "mean squared error"),
    ):
        series = {}
        for depth in config["depths"]:
            mean, error = _bars([last(arrays, name, quantity) for name in _names(config, depth)])
            series[f"{depth} layers"] = Series((steps, mean), (steps, mean, error))
        if quantity == "sharpness":
            series[r"stability cap $2/\eta$"] = Series(line=(steps, 2 / steps))
        panels.append(Panel(title, ylabel, series, log_y=quantity == "sharpness"))
    caption = (
        f"ReLU denoisers after the same time, η times steps = {config['time']:g}: mean and standard error over "
        f"{config['num_seeds']} seeds, each median over the last tenth of the run."
    )
    figure = draw_panels(panels, xlabel=r"step size $\eta$", log_x=False, height=2.6)
    places = (2 / steps).tolist()
    while places[-1] / 2 > figure.axes[0].get_ylim()[0]:  # networks of few layers may be far below the cap
        places.append(places[-1] / 2)
    figure.axes[0].set_yticks(places, [f"{place:.3g}" for place in places])
    figure.axes[0].minorticks_off()
    return figure, caption


def _course_figure(config: Mapping[str, Any], arrays: Arrays) -> Any:
    steps = config["step_sizes"]
    chosen = dict.fromkeys((0, len(steps) // 2, len(steps) - 1))
    times = config["time"] * np.arange(1, config["num_looks"] + 1) / config["num_looks"]
    panels = []
    for depth in config["depths"]:
        series = {}
        for number in chosen:
            name = f"{depth}/{steps[number]:g}"
            values = np.where(arrays[f"{name}/diverged"][:, None], np.nan, arrays[f"{name}/sharpness"])
            ratio = np.median(values, axis=0) * steps[number] / 2
            series[rf"$\eta = {steps[number]:g}$"] = Series(line=(times, ratio))
        panels.append(
            Panel(f"{depth} layers", r"$\lambda_{\max}\, \eta / 2$", series, levels={"stable below": 1.0}, lowest=0.0)
        )
    caption = "Sharpness over its cap 2/η during training: median over seeds."
    return draw_panels(panels, xlabel=r"time, $\eta$ times steps", log_x=False, height=2.2), caption


def _gain_figure(config: Mapping[str, Any], arrays: Arrays) -> Any:
    steps = config["step_sizes"]
    layers = np.arange(1, max(config["depths"]) + 1)
    panels = []
    for depth in config["depths"]:
        series = {}
        finite = [i for i, name in enumerate(_names(config, depth)) if not arrays[f"{name}/diverged"].all()]
        for place, number in enumerate(dict.fromkeys((finite[0], finite[-1])) if finite else ()):
            name = f"{depth}/{steps[number]:g}"
            gains = np.asarray(arrays[f"{name}/path_gains"], np.float64)[~arrays[f"{name}/diverged"]]
            mean, error = _bars(list(np.nanmean(gains, axis=1).T))
            here = layers[:depth] + 0.06 * (place - 0.5)
            label = "smallest step" if place == 0 else "largest step"
            series[label] = Series((here, mean), (here, mean, error))
        panels.append(Panel(f"{depth} layers", "$g_k / s^{1/m}$", series, levels={"even": 1.0}))
    caption = (
        "Gain of each layer along the path of the top right singular vector of the input-output Jacobian: mean over "
        "samples, and over seeds with standard error."
    )
    figure = draw_panels(panels, xlabel="layer k", log_x=False, height=2.2)
    figure.axes[-1].set_xticks(layers)
    return figure, caption


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Figures, tables and the page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, metrics, arrays = stored.config, stored.metrics, stored.arrays
    drawn = {
        "sharpness": _sharpness_figure(config, arrays),
        "course": _course_figure(config, arrays),
        "gains": _gain_figure(config, arrays),
    }
    pictures: list[Picture] = [picture(directory, name, *figure) for name, figure in drawn.items()]
    header = [
        "layers",
        "η",
        "diverged",
        "λ_max",
        "2/η",
        "loss",
        "test loss",
        "spread of log gains",
        "coupling residual",
    ]
    rows = [
        [row["depth"], f"{row['step']:g}", row["diverged"], cell(row["sharpness"]), 2 / row["step"]]
        + [cell(row[q]) for q in ("loss", "test_loss", "unevenness", "decoupling")]
        for row in metrics["runs"]
    ]
    tables = [Table(header, rows, f"Mean ± standard error over {config['num_seeds']} seeds (images, noise and start).")]
    what = (
        f"Fully connected ReLU networks of width {config['width']} remove Gaussian noise of standard deviation "
        f"{config['noise']:g} from {config['num_train']} images of {config['data'].replace('_', '-')} (pixels in "
        "[0, 1]) by full-batch gradient descent; loss: mean over pixels, c = 1 / pixels."
    )
    title = "ReLU denoisers: are networks trained with larger steps flatter?"
    return page(directory, stored, title, what, claim, pictures, tables)

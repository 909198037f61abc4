"""What the sharpness of networks of all widths says: claims, figures, page, from stored arrays.

`parametrisation/width/quantity` is (S, looks + 1) along training for `loss`, `largest` and `smallest` eigenvalue, and
(S, 2) at its start and end for `trace`, `gauss_newton_trace` and the eigenvalues without multipliers, `fold.*`.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import Claim, cell, failures, measured, page, picture
from experiments.registry import Summary
from jflat.report import Measured, Panel, Series, Table, draw_panels, load_run

__all__ = ["LABELS", "at_loss", "draw", "summarise"]

Arrays = Mapping[str, np.ndarray]
LABELS = {"mup": "muP", "ntp": "NTP", "sp": "SP, rate 1/n"}
ZERO_LOSS = 0.5
"""Squared error of an output of zero on one-hot targets."""

# By name: what it is, and its power of the width in muP and in the kernel regime, lowest and highest.
QUANTITIES: dict[str, tuple[str, tuple[float, float], tuple[float, float]]] = {
    "largest_start": ("λ_max at the start", (0, 0), (0, 0)),
    "largest_end": ("λ_max after training", (0, 0), (0, 0)),
    "largest_equal": ("λ_max at equal loss", (0, 0), (0, 0)),
    "trace_start": ("trace of the Gauss-Newton matrix at the start", (0, 0), (0, 0)),
    "trace_end": ("trace of the Gauss-Newton matrix after training", (0, 0), (0, 0)),
    "smallest_start": ("|λ_min| at the start", (0, 0), (-0.5, -0.5)),
    "smallest_equal": ("|λ_min| at equal loss", (0, 0), (-0.5, -0.5)),
    "change": ("relative change of λ_max, start to equal loss", (0, 0), (-1, -0.5)),
    "fold_start": ("λ_max in weights without multipliers, start", (1, 1), (1, 1)),
    "fold_end": ("λ_max in weights without multipliers, end", (1, 1), (1, 1)),
}
TOLERANCE = 0.2
SYMBOLS = {
    "λ_max": r"$\lambda_{\max}$",
    "|λ_min|": r"$|\lambda_{\min}|$",
    "relative": r"$|\Delta\lambda_{\max}| / \lambda_{\max}$",
}


def at_loss(losses: np.ndarray, values: np.ndarray, target: float) -> np.ndarray:
    """(S,) of values (S, T) > 0 when the loss first is `target`: linear in the logarithms between two looks, else NaN.

    >>> at_loss(np.array([[4.0, 1.0]]), np.array([[1.0, 9.0]]), 2.0)
    array([3.])
    """
    found = np.full(len(losses), np.nan)
    for seed, (loss, value) in enumerate(zip(losses, values, strict=True)):
        below = np.flatnonzero(loss <= target)
        if below.size and below[0] > 0 and (value[below[0] - 1 : below[0] + 1] > 0).all():
            pair = slice(below[0] - 1, below[0] + 1)
            (x0, x1), (y0, y1) = np.log(loss[pair]), np.log(value[pair])
            found[seed] = np.exp(y0 + (y1 - y0) * (np.log(target) - x0) / (x1 - x0))
    return found


def _quantities(config: Mapping[str, Any], arrays: Arrays, name: str) -> dict[str, np.ndarray]:
    """(W, S) of everything that has a power of the width."""
    target = config["target_loss"] * ZERO_LOSS
    rows = []
    for width in config["widths"]:
        get = {
            key.split("/")[-1]: np.asarray(value, np.float64)
            for key, value in arrays.items()
            if key.startswith(f"{name}/{width}/")
        }
        equal = at_loss(get["loss"], get["largest"], target)
        start = get["largest"][:, 0]
        rows.append(
            {
                "largest_start": start,
                "largest_end": get["largest"][:, -1],
                "largest_equal": equal,
                "trace_start": get["gauss_newton_trace"][:, 0],
                "trace_end": get["gauss_newton_trace"][:, 1],
                "smallest_start": -get["smallest"][:, 0],
                "smallest_equal": at_loss(get["loss"], -get["smallest"], target),
                "change": np.abs(equal - start) / start,
                "fold_start": get["fold.largest"][:, 0],
                "fold_end": get["fold.largest"][:, 1],
            }
        )
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _power(config: Mapping[str, Any], values: np.ndarray) -> Measured:
    """Of values (W, S) > 0: least squares of logarithms for each seed, over the widths from `fit_from` on."""
    fitted = np.asarray(config["widths"]) >= config["fit_from"]
    logs, values = np.log2(np.asarray(config["widths"], np.float64)[fitted]), values[fitted]
    centred = logs - logs.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        return measured(np.log2(values).T @ centred / np.sum(centred**2))


def _edge(config: Mapping[str, Any], arrays: Arrays, name: str, width: int) -> Measured:
    """Mean of lambda_max eta over the last quarter of the looks."""
    values = np.asarray(arrays[f"{name}/{width}/largest"], np.float64) * config["rate"]
    return measured(values[:, -max(1, values.shape[1] // 4) :].mean(axis=1))


def summarise(config: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Powers of the width, distance from the edge of stability, claims, failures."""
    powers: list[dict[str, Any]] = []
    edges: list[dict[str, Any]] = []
    claims = []
    for name, label in LABELS.items():
        values = _quantities(config, arrays, name)
        for key, (what, of_mup, of_kernel) in QUANTITIES.items():
            low, high = of_mup if name == "mup" else of_kernel
            power = _power(config, values[key])
            powers.append({"case": name, "quantity": key, "power": power._asdict(), "low": low, "high": high})
            theirs = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            theirs = f"{theirs} [± {TOLERANCE:g}]".replace("-", "−")
            text = f"{label}: power of n of {what}"
            claims.append(Claim.bounded(text, power, theirs, low - TOLERANCE, high + TOLERANCE))
        found = [_edge(config, arrays, name, width) for width in config["widths"]]
        edges += [{"case": name, "n": n, "edge": e._asdict()} for n, e in zip(config["widths"], found, strict=True)]
        if name == "mup":
            wide = [e for e, width in zip(found, config["widths"], strict=True) if width >= config["fit_from"]]
            worst = wide[int(np.argmax([abs(e.value - 2) for e in wide]))]
            text = f"muP, n ≥ {config['fit_from']}: λ_max η late in training, the width farthest from 2"
            claims.append(Claim.bounded(text, worst, "2 at all widths [± 0.15] (lead)", 1.85, 2.15))
        else:
            text = f"{label}, n = {config['widths'][-1]}: λ_max η late in training"
            claims.append(Claim.bounded(text, found[-1], "below the edge [< 1.85] (lead)", -np.inf, 1.85))
    return {
        "experiment": "width-sharpness",
        "powers": powers,
        "edges": edges,
        "claims": [claim.__dict__ for claim in claims],
        "failures": failures(arrays),
    }


def _course_figure(config: Mapping[str, Any], arrays: Arrays) -> Any:
    steps = np.arange(config["num_looks"] + 1) * config["steps_a_look"]
    panels = []
    for name, label in LABELS.items():
        series = {}
        for width in config["widths"]:
            found = [measured(c) for c in np.asarray(arrays[f"{name}/{width}/largest"]).T * config["rate"]]
            mean = np.array([m.value for m in found])
            error = np.array([np.nan if m.stderr is None else m.stderr for m in found])
            series[f"n = {width}"] = Series((steps, mean), (steps, mean, error))
        panels.append(Panel(label, r"$\lambda_{\max}\,\eta$", series, levels={"edge of stability": 2.0}))
    caption = (
        "Sharpness times learning rate along full-batch descent, in the canonical form with one rate for all layers "
        "and widths; means and standard errors over seeds."
    )
    return draw_panels(panels, xlabel="step", log_x=False), caption


def _powers_figure(config: Mapping[str, Any], arrays: Arrays, keys: tuple[str, ...], caption: str) -> Any:
    widths = np.asarray(config["widths"], np.float64)
    values = {name: _quantities(config, arrays, name) for name in LABELS}
    panels = []
    for key in keys:
        what, of_mup, of_kernel = QUANTITIES[key]
        series = {}
        for name, label in LABELS.items():
            found = [measured(row) for row in values[name][key]]
            mean = np.array([m.value for m in found])
            error = np.array([np.nan if m.stderr is None else m.stderr for m in found])
            power = np.mean(of_mup if name == "mup" else of_kernel)
            logs, fitted = np.log(widths), widths >= config["fit_from"]
            with np.errstate(invalid="ignore"):
                line = np.exp(np.mean((np.log(mean) - power * logs)[fitted]) + power * logs)
            series[label] = Series((widths, line), (widths, mean, error))
        panels.append(Panel(what, SYMBOLS[what.split()[0]], series, log_y=True))
    return draw_panels(panels, xlabel="width n", height=2.7, xticks=widths), caption


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Figures, tables and the page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, metrics, arrays = stored.config, stored.metrics, stored.arrays
    theory = "Means and standard errors over seeds; lines have the power that theory says"
    drawn = {
        "course": _course_figure(config, arrays),
        "canonical": _powers_figure(
            config,
            arrays,
            ("largest_equal", "smallest_start", "change"),
            f"In the canonical form. {theory}, in the middle of its range for the change in the kernel regime.",
        ),
        "forms": _powers_figure(
            config,
            arrays,
            ("largest_start", "fold_start"),
            "The same networks in two forms: one rate for all layers (above), and no multipliers (below), where the "
            f"number says nothing about descent. {theory}.",
        ),
    }
    pictures = [picture(directory, name, *figure) for name, figure in drawn.items()]
    rows = [
        [
            LABELS[row["case"]],
            QUANTITIES[row["quantity"]][0],
            cell(row["power"]),
            row["low"] if row["low"] == row["high"] else f"{row['low']:g} to {row['high']:g}".replace("-", "−"),
        ]
        for row in metrics["powers"]
    ]
    edges = [[LABELS[row["case"]], row["n"], cell(row["edge"])] for row in metrics["edges"]]
    tables = [
        Table(
            ["parametrisation", "quantity", "power of n", "theory"],
            rows,
            f"Powers of the width, from {config['fit_from']} on.",
        ),
        Table(["parametrisation", "n", "λ_max η"], edges, "Last quarter of training; the edge of stability is 2."),
    ]
    what = (
        f"MLPs with n tanh units in both hidden layers on {config['num_train']} images of {config['data']}, squared "
        f"error, {config['num_looks'] * config['steps_a_look']} steps of full-batch descent at {config['rate']:g}, "
        f"{config['num_seeds']} seeds. At width {config['base_width']} all parametrisations are one network. Theirs: "
        "derived in the experiment's module; no numbers are published."
    )
    title = "How does sharpness scale with the width?"
    return page(directory, stored, title, what, claim, pictures, tables)

"""Numbers, figures and the page of `landscape-surfaces`, from stored arrays."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import Claim, failures, holds, measured, page, picture
from experiments.entropic.methods import LABELS
from experiments.registry import Summary
from jflat.report import Measured, Panel, Series, Table, draw_panels, load_run, mean_and_stderr
from jflat.report.landscape_figures import Surface, contours

__all__ = ["draw", "rises", "summarise"]

Arrays = Mapping[str, np.ndarray]
KINDS = {"layers": "layers rescaled", "units": "units rescaled"}
NORMALISATIONS = {"filter": "by filter", "layer": "by layer", "none": "raw"}


def rises(arrays: Arrays, method: str) -> np.ndarray:
    """(S, n): rise of the loss over its value at the solution, mean over the directions."""
    curves = arrays[f"{method}/curves"]
    return (curves - curves[..., curves.shape[-1] // 2, None]).mean(axis=1)


def _rise_at(arrays: Arrays, method: str, radius: float) -> np.ndarray:
    """(S,): the rise at this radius, mean over directions and both signs."""
    places, curves = arrays[f"{method}/places"], rises(arrays, method)
    both = [[np.interp(side, places, curve) for side in (-radius, radius)] for curve in curves]
    return np.mean(both, axis=1)


def summarise(config: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Every number of the run: rises, trajectories, changes under rescaling, claims, failures."""
    methods, radius = config["methods"], config["reference_radius"]
    rows = {}
    for method in methods:
        rows[method] = {
            "loss": measured(arrays[f"{method}/curves"][:, 0, arrays[f"{method}/places"].size // 2]),
            "rise": measured(_rise_at(arrays, method, radius)),
            "explained": measured(arrays[f"{method}/explained"].sum(axis=1)),
            "test_error": measured(arrays[f"{method}/test_error"]),
        }
    changes = {
        name: {kind: float(arrays[f"{methods[0]}/change/{name}/{kind}"]) for kind in KINDS} for name in NORMALISATIONS
    }
    metrics: dict[str, Any] = {
        "experiment": "landscape-surfaces",
        "methods": {method: {key: value._asdict() for key, value in row.items()} for method, row in rows.items()},
        "changes": changes,
        "claims": [dataclasses.asdict(claim) for claim in _claims(config, arrays, changes)],
        "failures": failures(arrays),
    }
    for method in methods:
        failed = arrays[f"{method}/failed_step"] >= 0
        if failed.any():
            row = {"part": f"training, {method}", "outcome": "non finite", "times": int(failed.sum())}
            metrics["failures"].append(row | {"of": int(failed.size)})
    return metrics


def _claims(config: Mapping[str, Any], arrays: Arrays, changes: Mapping[str, Mapping[str, float]]) -> list[Claim]:
    first, *others = config["methods"]
    inf, radius = np.inf, config["reference_radius"]
    claims = []
    for method in others:
        ratio = measured(_rise_at(arrays, method, radius) / _rise_at(arrays, first, radius))
        text = f"rise of the loss at {radius:g}: {LABELS[method]} / {LABELS[first]}"
        claims.append(Claim.bounded(text, ratio, "flatter (1611.01838, 2006.07897) [< 1]", -inf, 1.0))
    for method in config["methods"]:
        share = measured(arrays[f"{method}/explained"].sum(axis=1))
        text = f"{LABELS[method]}: variance of a trajectory in two directions"
        claims.append(Claim.bounded(text, share, "0.4 to 0.9 (1712.09913)", 0.4, 0.9))
    for name in NORMALISATIONS:
        for kind, label in KINDS.items():
            change = changes[name][kind]
            is_invariant = kind == "layers" and name != "none"
            good = change < 1e-3 if is_invariant else change > 0.01
            text = f"curves normalised {NORMALISATIONS[name]}, {label}: largest relative change"
            theirs = "none [< 0.001]" if is_invariant else "some [> 0.01]"
            claims.append(Claim(text.replace("normalised raw", "raw"), f"{change:.2g}", theirs, holds(good)))
    return claims


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Write the figures and `index.html` of a finished run."""
    stored = load_run(directory)
    config, arrays, metrics = stored.config, stored.arrays, stored.metrics
    methods = config["methods"]
    surfaces = {
        LABELS[method]: Surface(
            arrays[f"{method}/side"], arrays[f"{method}/side"], arrays[f"{method}/surface"], {"solution": (0.0, 0.0)}
        )
        for method in methods
    }
    series = {}
    for method in methods:
        rows = rises(arrays, method)
        mean, errors = mean_and_stderr(rows)
        every = slice(None, None, max(1, rows.shape[1] // 10))
        places = arrays[f"{method}/places"]
        series[LABELS[method]] = Series((places, mean), (places[every], mean[every], errors[every]))
    curves = draw_panels(
        [Panel("around a solution", "rise of the loss (nats)", series)],
        xlabel="distance along a direction (norms of each filter)",
        log_x=False,
        height=3.2,
    )
    pictures = [
        picture(
            directory,
            "surfaces",
            contours(surfaces, xlabel="first direction", ylabel="second direction"),
            "Training loss (nats) around one solution of each method, along two random directions with the norms of "
            "the solution's filters (the same draws for all), in units of them.",
        ),
        picture(
            directory,
            "curves",
            curves,
            f"Rise of the training loss, mean over {config['num_directions']} filter-normalised directions and "
            f"{config['num_seeds']} solutions; bars are standard errors over solutions.",
        ),
    ]
    for method in methods:
        own = Surface(
            arrays[f"{method}/plane_x"],
            arrays[f"{method}/plane_y"],
            arrays[f"{method}/plane"],
            {"solution": (0.0, 0.0)},
            arrays[f"{method}/coordinates"][0],
        )
        share = 100 * arrays[f"{method}/explained"][0]
        title = f"{LABELS[method]}: the plane of its trajectory"
        labels = [f"direction {k + 1} ({share[k]:.0f} % of the variance)" for k in (0, 1)]
        figure = contours({title: own}, xlabel=labels[0], ylabel=labels[1], width=4.4)
        text = (
            "Training loss (nats) on the plane of the two principal directions of the training trajectory: dots are "
            "evenly spaced in steps, the open circle is the start."
        )
        pictures.append(picture(directory, f"trajectory_{method}", figure, text))
    pair = lambda row: Measured(row["value"] if row["value"] is not None else float("nan"), row["stderr"])  # noqa: E731
    keys = {
        "loss": "training loss",
        "rise": f"rise at {config['reference_radius']:g}",
        "test_error": "test error",
        "explained": "variance in two directions",
    }
    table = Table(
        ["method", *keys.values()],
        [[LABELS[method], *(pair(row[key]) for key in keys)] for method, row in metrics["methods"].items()],
        "Mean and standard error over solutions.",
    )
    changes = Table(
        ["curves", *KINDS.values()],
        [[NORMALISATIONS[name], *(f"{row[kind]:.2g}" for kind in KINDS)] for name, row in metrics["changes"].items()],
        "Largest relative change of the loss curves around one solution when the network is rescaled and computes the "
        "same; the draws stay.",
    )
    what = (
        "Training loss around the solutions of two optimisers, at equal budget, along random directions that have the "
        "norms of the solution's filters; and in the plane in which each training trajectory lies best."
    )
    return page(directory, stored, "Loss surfaces", what, claim, pictures, [table, changes])

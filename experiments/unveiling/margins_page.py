"""Figures, tables and the page of `unveiling-margins`, from stored arrays and numbers (`margins_numbers`)."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import cell, measured, page, picture
from experiments.registry import Summary
from experiments.success import wilson
from experiments.unveiling.margins_numbers import (
    LABELS,
    PAIRED,
    best_margin,
    farthest_margin,
    free_entropy,
    typical_distances,
)
from jflat.core import Status
from jflat.report import Panel, Picture, Series, Table, draw_panels, load_run

__all__ = ["draw"]

Arrays = Mapping[str, np.ndarray]

DISTANCE = r"Hamming distance per weight $d$"
ENTROPY = r"local entropy $\phi$ (nats / weight)"
BIN = 0.16
"""Width of a bin of stabilities, rounded to what the lattice of sums allows."""


def _reference_label(fraction: float) -> str:
    if fraction == 0:
        return "typical solution"
    return r"largest margin $\kappa_{max}$" if fraction == 1 else rf"margin {fraction:g} $\kappa_{{max}}$"


def _target_label(target: float) -> str:
    return "no margin" if target == 0 else f"margin {target:g}"


def _curves(config: Mapping[str, Any], arrays: Arrays) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Some of the theory's curves by label: typical, about half, largest margin, densest regions, bound."""
    fractions, d = np.asarray(config["fractions"]), arrays["around/distances"]
    some = dict.fromkeys([0, int(np.argmin(np.abs(fractions - 0.5))), len(fractions) - 1])
    curves = {_reference_label(float(fractions[i])): (d, arrays["around/value"][i]) for i in some}
    if "densest/value" in arrays:
        curves["densest regions, from the centre"] = arrays["densest/distances"], arrays["densest/value"]
    fine = np.linspace(1e-4, d[-1], 400)
    return curves | {"all configurations (bound)": (fine, free_entropy(fine))}


def _entropy_figures(config: Mapping[str, Any], arrays: Arrays) -> dict[str, tuple[Any, str]]:
    curves = _curves(config, arrays)
    edge = 0.03
    near = {label: Series(line=(x[x <= edge], y[x <= edge])) for label, (x, y) in curves.items() if np.any(x <= edge)}
    caption = (
        f"Theory, alpha = {config['alpha']:g}: entropy of the solutions at distance d from a reference of the named "
        "margin. "
    )
    return {
        "local_entropy": (
            draw_panels(
                [Panel("solutions around a reference", ENTROPY, {k: Series(line=xy) for k, xy in curves.items()})],
                xlabel=DISTANCE,
                log_x=False,
                height=3.6,
            ),
            f"{caption}The densest regions (y to infinity) are an optimum over places, with d from the centre.",
        ),
        "local_entropy_near": (
            draw_panels(
                [Panel("the same, near the reference", ENTROPY, near, {"no solutions below": 0.0})],
                xlabel=DISTANCE,
                log_x=False,
                height=3.6,
            ),
            f"{caption}Below zero there are none: typical solutions are isolated.",
        ),
    }


def _margin_figures(config: Mapping[str, Any], arrays: Arrays) -> dict[str, tuple[Any, str]]:
    d, margins = arrays["around/distances"], arrays["around/references"]
    places, tops = best_margin(arrays)
    chosen = [int(np.argmin(np.abs(d - wanted))) for wanted in (0.005, 0.02, 0.05, 0.1, 0.2, 0.3)]
    series = {}
    for i in dict.fromkeys(chosen):
        bound = free_entropy(d[i])
        series[f"d = {d[i]:.3g}"] = Series(
            (margins, arrays["around/value"][:, i] / bound), ([places[i]], [tops[i] / bound], [np.nan])
        )
    first = draw_panels(
        [Panel("which margin has the densest surroundings?", r"$\phi$ / bound $h_2(d)$", series)],
        xlabel=r"margin $\tilde\kappa$ of the reference (standard deviations of a field)",
        log_x=False,
        height=3.8,
    )
    largest = float(margins[-1])
    level = {r"$\kappa_{max}$": largest}
    best = Panel(
        "densest surroundings at d", r"best margin $\tilde\kappa$", {"best reference": Series(line=(d, places))}, level
    )
    farthest = farthest_margin(arrays)
    nested = Panel(
        r"largest margin at d from a $\kappa_{max}$ solution",
        r"largest margin $\kappa$",
        {"largest margin there": Series(line=(d, farthest))},
        level,
    )
    return {
        "best_margin": (
            first,
            "Theory: local entropy, relative to that of all configurations, against the margin of the reference. "
            "Marks: the maximum. Near the reference it is at the largest margin, farther away inside.",
        ),
        "margins_by_distance": (
            draw_panels([best, nested], xlabel=DISTANCE, height=2.5),
            "Theory. Above: the margin of the reference whose local entropy is largest at d. Below: the largest margin "
            "that solutions at distance d from a solution of largest margin have; where the line is broken, more than "
            f"{config['nested_fractions'][-1]:g} of it; at the distance of two such solutions, all of it.",
        ),
    }


def _geometry_figure(config: Mapping[str, Any], arrays: Arrays) -> tuple[Any, str]:
    margins = arrays["volumes/margins"]
    targets = np.asarray(config["targets"])
    solutions = [arrays[f"found/{t:g}/search_status"] == Status.SOLVED for t in targets]
    to_typical = [measured(arrays[f"found/{t:g}/distances"][:, -1]) for t in targets]
    first = arrays[f"found/{targets[0]:g}/weights"].astype(float)
    mutual = [
        measured(np.where(good & solutions[0], (1 - (first * arrays[f"found/{t:g}/weights"]).mean(axis=1)) / 2, np.nan))
        for t, good in zip(targets[1:], solutions[1:], strict=True)
    ]
    pairs = {
        r"two at margin $\kappa$": Series(line=(margins, arrays["volumes/distance"])),
        r"one at margin $\kappa$, one typical": Series(
            (arrays["around/references"], typical_distances(arrays)),
            (targets, [m.value for m in to_typical], [m.stderr or math.nan for m in to_typical]),
        ),
    }
    if mutual:
        values = [m.value for m in mutual], [m.stderr or math.nan for m in mutual]
        pairs[r"found at $\kappa$, found without"] = Series(points=(targets[1:], *values))
    volume = {"number of solutions": Series(line=(margins, arrays["volumes/entropy"]))}
    figure = draw_panels(
        [
            Panel("distance between two solutions", "distance per weight", pairs, lowest=0.0),
            Panel("how many there are", "entropy (nats / weight)", volume, lowest=0.0),
        ],
        xlabel=r"margin $\kappa$ (standard deviations of a field)",
        log_x=False,
        height=2.6,
    )
    caption = (
        f"alpha = {config['alpha']:g}. Lines: theory. Marks: solutions found by focusing at margin kappa, N = "
        f"{config['size']}, mean over {config['num_instances']} instances ± one standard error: their distance to "
        "typical solutions (by belief propagation), and to the solution of the same instance found without a margin."
    )
    return figure, caption


def _load_figure(config: Mapping[str, Any], metrics: Mapping[str, Any], arrays: Arrays) -> tuple[Any, str]:
    panels = []
    places = {}
    if "perceptron" in config["models"]:
        slopes = {
            _reference_label(f): Series(
                line=(arrays[f"break_up/perceptron/{f:g}/loads"], arrays[f"break_up/perceptron/{f:g}/slopes"])
            )
            for f in config["break_up_fractions"]
        }
        panels.append(
            Panel(
                "least slope of the local entropy",
                r"$\min_d\, d\phi/dd$ (nats / flipped weight)",
                slopes,
                {"zero": 0.0},
            )
        )
        places = {
            r"break-up around $\kappa_{max}$": metrics["break_up"]["perceptron/1"],
            "densest regions break up": float(arrays["critical/perceptron/wide_minima"]),
            "capacity": float(arrays["critical/perceptron/capacity"]),
        }
        places = {name: value for name, value in places.items() if value is not None}
    search = metrics["search"]
    solved, number = np.asarray(search["solved"], float), search["number"]
    p = solved / number
    low, high = wilson(solved, number)
    bars = np.stack([np.maximum(p - low, 0), np.maximum(high - p, 0)])
    label = f"focusing, N = {config['search_size']}"
    series = {label: Series((search["alphas"], p), (search["alphas"], p, bars))}
    panels.append(Panel("fraction of instances solved", "fraction", series, places=places, lowest=-0.03))
    caption = (
        "Above: theory, the least slope over d from .002 to .04 of the local entropy around solutions of the named "
        "margin; where it crosses zero the region breaks up. Below: instances solved by focusing belief propagation "
        f"at rate {config['search_rate']:g}, {number} at each load, bars of one standard error (Wilson), joined to "
        "guide the eye. Dotted: critical loads of the theory."
    )
    return draw_panels(panels, xlabel=r"load $\alpha = M / N$", log_x=False, height=2.9), caption


def _simulation_figure(config: Mapping[str, Any], arrays: Arrays) -> tuple[Any, str]:
    d = arrays["targets/distances"]
    entropies: dict[str, Series] = {}
    deficits: dict[str, Series] = {}
    for number, target in enumerate(config["targets"]):
        curve = arrays["targets/value"][number]
        x, y = (arrays[f"found/{target:g}/{name}"][:, :-1] for name in ("distances", "entropies"))
        good = np.isfinite(x).sum(axis=0) > 0
        gap = free_entropy(np.where(np.isfinite(x), x, 0.5)) - y
        where, value, lost = (
            [measured(column) for column in rows.T[good]] for rows in (x, y, np.where(np.isfinite(x), gap, np.nan))
        )
        places, x_error = [m.value for m in where], [m.stderr or math.nan for m in where]
        label = _target_label(target)
        for series, theory, found in ((entropies, curve, value), (deficits, free_entropy(d) - curve, lost)):
            points = places, [m.value for m in found], [m.stderr or math.nan for m in found]
            series[label] = Series((d, theory), points, x_error)
    extra = r"theory: $\kappa_{max}$"
    entropies[extra] = Series(line=(d, arrays["around/value"][-1]))
    deficits[extra] = Series(line=(d, free_entropy(d) - arrays["around/value"][-1]))
    figure = draw_panels(
        [
            Panel("around solutions with ...", ENTROPY, entropies),
            Panel("missing to the bound", r"$h_2(d) - \phi$ (nats / weight)", deficits, lowest=1e-4, log_y=True),
        ],
        xlabel=DISTANCE,
        height=3.0,
    )
    caption = (
        f"alpha = {config['alpha']:g}. Lines: theory, around typical solutions of the named margin. Marks: around "
        f"solutions that focusing found at that margin, by belief propagation, N = {config['size']}, mean over "
        f"{config['num_instances']} instances ± one standard error. Below, lower is flatter."
    )
    return figure, caption


def _stability_figure(config: Mapping[str, Any], arrays: Arrays) -> tuple[Any, str]:
    root = math.sqrt(config["size"])
    step = 2 * max(1, round(BIN * root / 2))  # sums are odd integers
    panels = []
    for number, target in enumerate(config["targets"]):
        name = f"found/{target:g}"
        solved = arrays[f"{name}/search_status"] == Status.SOLVED
        first = 2 * math.floor((math.floor(target * root) + 1) / 2)
        edges = first + step * np.arange(int(3 * root / step) + 1)
        rows = [np.histogram(sums, edges)[0] * root / (step * sums.size) for sums in arrays[f"{name}/sums"][solved]]
        places, density = arrays["law/stabilities"], arrays["law/density"][number]
        inside = (places >= target) & (places <= 3.2)
        line = np.append(target, places[inside]), np.append(density[inside][0], density[inside])
        points = None
        if rows:
            found = [measured(column) for column in np.stack(rows).T]
            middle = (edges[1:] + edges[:-1]) / 2 / root
            points = middle, [m.value for m in found], [m.stderr or math.nan for m in found]
        panels.append(
            Panel(
                _target_label(target),
                r"density per unit $\Delta$",
                {_target_label(target): Series(line, points)},
                lowest=0.0,
            )
        )
    figure = draw_panels(panels, xlabel=r"stability $\Delta$ (standard deviations of a field)", log_x=False, height=2.2)
    caption = (
        f"Stabilities of the patterns, alpha = {config['alpha']:g}. Lines: theory, a typical solution of that margin. "
        f"Marks: solutions found by focusing at that margin, N = {config['size']}, mean over instances ± one standard "
        "error."
    )
    return figure, caption


def _tables(config: Mapping[str, Any], metrics: Mapping[str, Any], arrays: Arrays) -> list[Table]:
    shown = [i for i, d in enumerate(arrays["around/distances"]) if np.any(np.isclose(d, (0.005, *PAIRED, 0.3)))]
    header = [
        "reference",
        "margin",
        "distance of typical ones",
        *(f"d = {arrays['around/distances'][i]:g}" for i in shown),
    ]
    rows: list[list[Any]] = [
        [f"{f:g} kappa_max", margin, typical, *(float(curve[i]) for i in shown)]
        for f, margin, typical, curve in zip(
            config["fractions"],
            arrays["around/references"],
            metrics["typical_distance"],
            arrays["around/value"],
            strict=True,
        )
    ]
    bounds = [float(free_entropy(arrays["around/distances"][i])) for i in shown]
    rows.append(["bound", None, None, *bounds])
    tables = [
        Table(header, rows, f"Theory, alpha = {config['alpha']:g}: local entropy around references, nats/weight.")
    ]
    rows = [
        [m, s, d]
        for m, s, d in zip(*(arrays[f"volumes/{name}"] for name in ("margins", "entropy", "distance")), strict=True)
    ]
    caption = "Theory: number of solutions at each margin (nats per weight) and the distance between two of them."
    tables.append(Table(["margin", "entropy", "distance of two"], rows, caption))
    if config["models"]:
        rows = [
            [
                LABELS[name],
                metrics["break_up"][f"{name}/1"],
                float(arrays[f"critical/{name}/wide_minima"]),
                float(arrays[f"critical/{name}/capacity"]),
            ]
            for name in config["models"]
        ]
        caption = "Critical loads of the theory: break-up around the largest margin, of the densest regions; capacity."
        tables.append(Table(["device", "around kappa_max", "densest regions", "capacity"], rows, caption))
    header = ["found at margin", "solved", "entropy of all", "distance to typical", "distance to first", "near margin"]
    rows = [
        [
            f"{row['target']:g}",
            f"{row['solved']} of {row['number']}",
            *(cell(row[name]) for name in ("entropy", "from_typical", "from_first", "near")),
            row["near_typical"],
        ]
        for row in metrics["found"]
    ]
    caption = (
        f"Solutions found by focusing, N = {config['size']}: mean ± standard error over instances. Entropy of all "
        "solutions in nats per weight, distances per weight, the share of stabilities less than 0.2 above the margin, "
        "and that share in typical solutions of the margin (theory)."
    )
    tables.append(Table([*header, "near, typical"], rows, caption))
    kinds = {
        "over_typical": "measured − theory of typical solutions at its margin",
        "over_largest": "measured − theory of the largest margin",
        "gain": "measured − measured around the first, same instance",
    }
    rows = [
        [f"{row['target']:g}", text, *map(cell, row[kind])] for row in metrics["found"] for kind, text in kinds.items()
    ]
    caption = (
        "Differences of local entropies at fixed distances, nats per weight: mean ± standard error over instances."
    )
    tables.append(Table(["found at margin", "difference", *(f"d = {d:g}" for d in PAIRED)], rows, caption))
    search = metrics["search"]
    rows = [
        [f"{alpha:g}", f"{k} of {search['number']}"]
        for alpha, k in zip(search["alphas"], search["solved"], strict=True)
    ]
    caption = f"Focusing, N = {config['search_size']}, rate {config['search_rate']:g}: instances solved."
    return [*tables, Table(["load", "solved"], rows, caption)]


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Figures, tables and the page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, metrics, arrays = stored.config, stored.metrics, stored.arrays
    drawn = _entropy_figures(config, arrays) | _margin_figures(config, arrays)
    drawn["geometry"] = _geometry_figure(config, arrays)
    drawn["loads"] = _load_figure(config, metrics, arrays)
    drawn["found"] = _simulation_figure(config, arrays)
    drawn["stabilities"] = _stability_figure(config, arrays)
    pictures: list[Picture] = [picture(directory, name, *figure) for name, figure in drawn.items()]
    what = (
        f"Random patterns, weights ±1, alpha = {config['alpha']:g} patterns per weight. Theory: Franz-Parisi local "
        "entropy of replica symmetric references. Theirs: what the paper says, or numbers of its formulas computed "
        "with another code. Measured: mean ± one standard error over instances."
    )
    title = "Wide flat minima: do solutions coalesce around those of large margin?"
    return page(directory, stored, title, what, claim, pictures, _tables(config, metrics, arrays))

"""Numbers, figures and the page of `landscape-connectivity`, from stored arrays."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import Claim, failures, measured, page, picture
from experiments.registry import Summary
from jflat.report import Measured, Panel, Series, Table, draw_panels, load_run

__all__ = ["LABELS", "draw", "path_names", "summarise"]

Arrays = Mapping[str, np.ndarray]

LABELS = {
    "line": "straight line",
    "weights": "line, weights matched",
    "activations": "line, activations matched",
    "bezier": "Bezier curve, one bend",
    "polychain": "chain, one bend",
    "band": "elastic band",
}


def path_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Where the arrays of each kind of path are, at the width of the curves."""
    own = f"width/{config['curve_width']}"
    parts = dict.fromkeys(("line", "weights", "activations"), own) | {"bezier": "curves", "polychain": "curves"}
    return {name: f"{part}/{name}" for name, part in (parts | {"band": "bands"}).items()}


def summarise(config: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Every number of the run: barriers by path and by width, claims, failures."""
    names = path_names(config)
    barriers = {name: arrays[f"{place}/barrier"] for name, place in names.items()}
    paths = {
        name: {
            "barrier": measured(barriers[name]),
            "barrier_above_line": measured(arrays[f"{place}/barrier_above_line"]),
            "error_barrier": measured(arrays[f"{place}/error_barrier"]),
        }
        for name, place in names.items()
    }
    widths = {
        str(width): {name: measured(arrays[f"width/{width}/{name}/barrier"]) for name in ("line", *MATCHED)}
        for width in config["widths"]
    }
    metrics: dict[str, Any] = {
        "experiment": "landscape-connectivity",
        "paths": {name: {key: value._asdict() for key, value in row.items()} for name, row in paths.items()},
        "widths": {width: {key: value._asdict() for key, value in row.items()} for width, row in widths.items()},
        "claims": [dataclasses.asdict(claim) for claim in _claims(config, arrays, barriers)],
        "failures": failures(arrays),
    }
    for width in config["widths"]:
        failed = arrays[f"width/{width}/failed_step"] >= 0
        if failed.any():
            row = {"part": f"training, width {width}", "outcome": "non finite", "times": int(failed.sum())}
            metrics["failures"].append(row | {"of": int(failed.size)})
    return metrics


MATCHED = ("weights", "activations")


def _claims(config: Mapping[str, Any], arrays: Arrays, barriers: Mapping[str, np.ndarray]) -> list[Claim]:
    inf, line = np.inf, barriers["line"]
    claims = [Claim.bounded("straight line: barrier (nats)", measured(line), "high [> 0.1]", 0.1, inf)]
    for name, theirs in (("bezier", "1802.10026"), ("polychain", "1802.10026"), ("band", "1803.00885")):
        ratio = measured(barriers[name] / line)
        text = f"{LABELS[name]}: barrier / the line's"
        claims.append(Claim.bounded(text, ratio, f"almost none ({theirs}) [< 0.1]", -inf, 0.1))
    for name in MATCHED:
        text, theirs = f"{LABELS[name]}: barrier / the line's", "lower (2209.04836) [< 1]"
        claims.append(Claim.bounded(text, measured(barriers[name] / line), theirs, -inf, 1.0))
    narrow, wide = config["widths"][0], config["widths"][-1]
    for name in MATCHED:
        shares = [
            arrays[f"width/{width}/{name}/barrier"] / arrays[f"width/{width}/line/barrier"] for width in (narrow, wide)
        ]
        text = f"{name} matched: that ratio at width {wide} less at {narrow}"
        difference = _difference(measured(shares[1]), measured(shares[0]))
        claims.append(Claim.bounded(text, difference, "falls with the width (2209.04836) [< 0]", -inf, 0.0))
    place = path_names(config)["bezier"]
    error = measured(arrays[f"{place}/error_barrier"])
    claims.append(Claim.bounded("Bezier curve: rise of the test error", error, "about none [< 0.02]", -inf, 0.02))
    return claims


def _difference(a: Measured, b: Measured) -> Measured:
    first, second = (np.nan if x.stderr is None else x.stderr for x in (a, b))
    return Measured(a.value - b.value, float(np.hypot(first, second)))


def _profiles(config: Mapping[str, Any], arrays: Arrays) -> Any:
    panels = []
    for key, title, ylabel, log in (
        ("loss", "training loss", "mean over pairs (nats)", True),
        ("error", "test error", "mean over pairs", False),
    ):
        series = {}
        for name, place in path_names(config).items():
            times = arrays[f"{place}/times"][0]
            series[LABELS[name]] = Series(line=(times, arrays[f"{place}/{key}"].mean(axis=0)))
        panels.append(Panel(title, ylabel, series, log_y=log))
    return draw_panels(panels, xlabel="time $t$ along the path", log_x=False, height=3.0)


def _by_width(config: Mapping[str, Any], arrays: Arrays) -> Any:
    widths = np.asarray(config["widths"], float)
    series = {}
    for shift, name in enumerate(("line", *MATCHED)):
        rows = [measured(arrays[f"width/{width}/{name}/barrier"]) for width in config["widths"]]
        means = np.array([row.value for row in rows])
        errors = np.array([np.nan if row.stderr is None else row.stderr for row in rows])
        places = widths * 1.04 ** (shift - 1)
        series[LABELS[name]] = Series((places, means), (places, means, errors))
    panel = Panel("barrier of the training loss on the straight line", "mean over pairs (nats)", series, lowest=0.0)
    figure = draw_panels([panel], xlabel="units of each hidden layer", height=3.2)
    figure.axes[0].minorticks_off()
    figure.axes[0].set_xticks(widths, [f"{width:g}" for width in widths])
    return figure


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Write the figures and `index.html` of a finished run."""
    stored = load_run(directory)
    config, arrays, metrics = stored.config, stored.arrays, stored.metrics
    pairs = config["num_pairs"]
    pictures = [
        picture(
            directory,
            "profiles",
            _profiles(config, arrays),
            f"Loss and error on paths between two {config['method']} solutions of width {config['curve_width']}; mean "
            f"over {pairs} pairs. The band's segments take the same time each, whatever their length.",
        ),
        picture(
            directory,
            "widths",
            _by_width(config, arrays),
            f"Barriers on the straight line, and after the second network's units were renamed; {pairs} pairs each, "
            "bars are standard errors.",
        ),
    ]
    pair = lambda row: Measured(row["value"] if row["value"] is not None else float("nan"), row["stderr"])  # noqa: E731
    keys = ("barrier", "barrier_above_line", "error_barrier")
    paths = Table(
        ["path", "barrier", "above the line", "of the test error"],
        [[LABELS[name], *(pair(row[key]) for key in keys)] for name, row in metrics["paths"].items()],
        "Training loss in nats: max - max of the ends; max above the line between the ends; mean and standard error.",
    )
    widths = Table(
        ["units", *(LABELS[name] for name in ("line", *MATCHED))],
        [[width, *(pair(row[name]) for name in ("line", *MATCHED))] for width, row in metrics["widths"].items()],
        "Barrier of the training loss on the straight line, by width.",
    )
    what = (
        "Independent runs end at solutions that a straight line joins only over a barrier. Three kinds of curves, "
        "trained to have a low loss, join them too; and the units of one network are renamed to match the other's."
    )
    return page(directory, stored, "Mode connectivity", what, claim, pictures, [paths, widths])

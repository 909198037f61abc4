"""How many runs end at critical or at "gradient-flat" points depends on the tolerance of the inner solver.

Claims (linear autoencoder, k = 16, p = 4, where no bad stationary point is expected; our numbers, no publication's):

1. Newton-MR succeeds (|g|^2 < 1e-10) on 85 % of starts and never shows r > 0.9 at rtol 1e-10; at the published 5e-4 it
   succeeds on 52 %, and 51 % of runs pass a point with r > 0.9.
2. Success falls to 25 % with at most 25 inner steps.
3. The points with r > 0.9 are not gradient-flat: F(1e-6), which no solver enters, is small.

r counts where the solver stopped for least squares (flag 2), here and in `critical-nonlinear`.

    python -m experiments run critical-tolerance                      minutes on two cores
    python -m experiments run critical-tolerance --preset smoke       seconds; the tests run it
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np

from experiments.claims import Claim, agrees, failures, page, picture
from experiments.critical_points import measuring
from experiments.critical_points.problems import autoencoder_problem
from experiments.parts import run_parts
from experiments.registry import Progress, Summary
from jflat.critical import autoencoder_loss, newton_mr
from jflat.report import Measured, Panel, Series, Table, draw_panels, format_measured, load_run

__all__ = ["CLAIM", "PRESETS", "Config", "report", "run", "summarise"]

CLAIM = "Success and r > 0.9 depend on the inner solver: 85 and 0 % at rtol 1e-10, 52 and 51 % at 5e-4 (specification)."


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    size: int = 16
    width: int = 4
    num_samples: int = 10_000
    num_starts: int = 100
    num_steps: int = 500
    rtols: tuple[float, ...] = (1e-10, 1e-7, 1e-5, 5e-4, 5e-3)
    max_inner: tuple[int, ...] = (128, 64, 25, 12)
    """Caps of the inner steps; the first goes with all tolerances, the first tolerance with all caps."""
    success: float = 1e-10
    seed: int = 0


PRESETS = {
    "smoke": Config(
        size=5, width=2, num_samples=300, num_starts=8, num_steps=40, rtols=(1e-10, 5e-4), max_inner=(20, 6)
    ),
    "default": Config(),
    "paper": Config(rtols=(1e-12, 1e-10, 1e-8, 1e-6, 1e-5, 1e-4, 5e-4, 5e-3), max_inner=(128, 96, 64, 48, 25, 12)),
}

THEIRS = {(1e-10, 128): (0.85, 0.0), (5e-4, 128): (0.52, 0.51), (1e-10, 25): (0.25, None)}
"""Success and share of runs with r > 0.9, 100 runs each."""


def settings_of(config: dict[str, Any]) -> list[tuple[float, int]]:
    """(rtol, cap) of the runs."""
    rtols, caps = config["rtols"], config["max_inner"]
    return [(rtol, caps[0]) for rtol in rtols] + [(rtols[0], cap) for cap in caps[1:]]


def _name(rtol: float, cap: int) -> str:
    return f"{rtol:g}/{cap}"


def _find(config: Config, rtol: float, cap: int, tell: Any) -> dict[str, Any]:
    tell(0.0, f"rtol {rtol:g}, at most {cap} inner steps")
    with jax.enable_x64(True):
        batch, starts = autoencoder_problem(
            config.size, config.width, config.num_samples, config.num_starts, config.seed
        )
        method = newton_mr(rtol=rtol, max_inner=cap)
        return measuring.find(autoencoder_loss, starts, batch, method, num_steps=config.num_steps)


def _error(p: float) -> Measured:
    return Measured(p, max(np.sqrt(p * (1 - p) / 100), 0.005))


def summarise(config: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Shares of runs by tolerance and cap, and claims."""
    rows: list[dict[str, Any]] = []
    claims = []
    is_ours = (config["size"], config["width"]) == (16, 4)
    for rtol, cap in settings_of(config):
        where = f"{_name(rtol, cap)}/"
        get = {name.removeprefix(where): value for name, value in arrays.items() if name.startswith(where)}
        success = measuring.share(get["squared_gradient_norm"] < config["success"])
        flagged = measuring.passes_flat(get)
        flat = measuring.share(flagged)
        # Points of a gradient at rounding level are critical; the flatness of what is left is not looked at.
        fraction = get["flattest/flatness"][flagged]
        row = {
            "rtol": rtol,
            "cap": cap,
            "success": list(success),
            "flagged": list(flat),
            "fractions": np.median(fraction, axis=0).tolist() if flagged.any() else [float("nan")] * 3,
            "really_flat": int(np.sum(fraction[:, 1] > 0.9)),
            "num_flagged": int(flagged.sum()),
            "inner": float(np.median(get["inner_steps"] / np.maximum(get["num_steps"], 1))),
        }
        rows.append(row)
        theirs = THEIRS.get((rtol, cap), (None, None))
        label = f"rtol {rtol:g}, {cap} inner steps"
        for what, ours, other in (("success", success, theirs[0]), ("runs with r > 0.9", flat, theirs[1])):
            if other is not None and is_ours:
                claims.append(
                    Claim(
                        f"{what}, {label}",
                        format_measured(*ours),
                        format_measured(*_error(other)),
                        agrees(ours, _error(other)),
                    )
                )
    loose = [row for row in rows if row["num_flagged"]]
    if loose:
        total, real = sum(r["num_flagged"] for r in loose), sum(r["really_flat"] for r in loose)
        flags = measuring.share(np.arange(total) < real)
        claims.append(
            Claim.bounded("points with r > 0.9 that have F(1e-6) > 0.9, all runs", flags, "[< 0.5]", -np.inf, 0.5)
        )
    return {
        "experiment": "critical-tolerance",
        "claims": [dataclasses.asdict(c) for c in claims],
        "failures": failures(arrays),
        "runs": rows,
    }


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Setting by setting; what is finished on disk is not done again."""
    values = dataclasses.asdict(config)
    parts = {_name(rtol, cap): functools.partial(_find, config, rtol, cap) for rtol, cap in settings_of(values)}
    run_parts(config, directory, progress, parts, functools.partial(summarise, values), {})


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    stored = load_run(directory)
    rows = stored.metrics["runs"]
    first_cap, first_rtol = stored.config["max_inner"][0], stored.config["rtols"][0]
    pictures = []
    for key, fixed, xlabel, name in (
        ("rtol", [r for r in rows if r["cap"] == first_cap], "rtol of MINRES-QLP", "by_tolerance"),
        ("cap", [r for r in rows if r["rtol"] == first_rtol], "inner steps, at most", "by_cap"),
    ):
        series = {}
        for label, column in ((r"success, $|g|^2 < 10^{-10}$", "success"), (r"a point with $r > 0.9$", "flagged")):
            x = np.array([r[key] for r in fixed], float)
            order = np.argsort(x)
            y, error = np.array([r[column] for r in fixed], float)[order].T
            series[label] = Series((x[order], y), (x[order], y, error))
        figure = draw_panels(
            [Panel("", "share of runs", series, lowest=0.0)], xlabel=xlabel, log_x=key == "rtol", height=3.2
        )
        other = f"at most {first_cap} inner steps" if key == "rtol" else f"rtol {first_rtol:g}"
        pictures.append(picture(directory, name, figure, f"Newton-MR on the linear autoencoder, {other}."))
    table = Table(
        ["rtol", "inner steps, at most", "success", "r > 0.9", "F(5e-4)", "F(1e-6)", "F(1e-8)", "inner steps, median"],
        [
            [f"{r['rtol']:g}", r["cap"], Measured(*r["success"]), Measured(*r["flagged"]), *r["fractions"], r["inner"]]
            for r in rows
        ],
        "r > 0.9: runs that pass such a point where the solver stopped for least squares. F(τ): medians at their "
        "points of largest r.",
    )
    what = "The same starts, by the tolerance of the inner solver and the cap of its steps. r of the solver's own norm."
    return page(directory, stored, "Critical points: the inner solver", what, CLAIM, pictures, [table])

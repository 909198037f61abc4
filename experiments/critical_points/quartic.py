"""The quartic toy: of a hundred starts, Newton-MR takes 56 to the critical point and 44 to a point that is none.

Claims (Frye et al. 2003.10397, figure 1):

1. From a 10 x 10 grid on [-4, 4]^2, 56 starts end at the critical point (-3, 0), among them all with x < -sqrt 2.
2. The others end at the gradient-flat point (sqrt 2, 0), where r -> 1.

    python -m experiments run critical-quartic                      seconds
    python -m experiments run critical-quartic --preset smoke
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from experiments.claims import Claim, failures, judge, page, picture
from experiments.critical_points import drawing, measuring
from experiments.parts import run_parts
from experiments.registry import Progress, Summary
from jflat.critical import QUARTIC_CRITICAL, QUARTIC_FLAT, newton_mr, quartic, quartic_grid
from jflat.critical.method import LineSearch
from jflat.report import Measured, Panel, Series, Table, draw_panels, load_run

__all__ = ["CLAIM", "PRESETS", "Config", "report", "run", "summarise"]

CLAIM = "Newton-MR ends at gradient-flat points as readily as at critical ones: 44 and 56 of 100 starts (2003.10397)."


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    grid: int = 10
    """Starts along each axis."""
    half_width: float = 4.0
    num_steps: int = 200
    max_inner: int = 2
    rtol: float = 1e-10


TAUS = (5e-2, 5e-3, 5e-4, 1e-6)
"""Of F(tau): where the runs stand still, f_xx is up to 0.04 |H|."""

PRESETS = {"smoke": Config(grid=4, num_steps=60), "default": Config(), "paper": Config()}


def _runs(config: Config) -> dict[str, Any]:
    with jax.enable_x64(True):
        starts = quartic_grid(config.grid, config.half_width)
        search = LineSearch(step_size=1.0, shrink=0.9, sufficient_decrease=0.1, pure_decrease=0.1, max_trials=300)
        method = newton_mr(
            rtol=config.rtol, max_inner=config.max_inner, max_norm=1e2, max_condition=1e15, line_search=search
        )
        arrays = measuring.find(
            quartic,
            starts,
            None,
            method,
            num_steps=config.num_steps,
            points=("last",),
            keep="last",
            taus=TAUS,
            keep_trace=True,
        )
        return arrays | {"starts": np.asarray(starts), "ends": arrays["params"]}


def summarise(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Where the starts go, and claims."""
    get = {name.removeprefix("runs/"): value for name, value in arrays.items()}
    number = len(get["starts"])
    critical = np.linalg.norm(get["ends"] - QUARTIC_CRITICAL, axis=1) < 1e-3
    flat = np.linalg.norm(get["ends"] - QUARTIC_FLAT, axis=1) < 0.1
    left = get["starts"][:, 0] < -np.sqrt(2)
    scale = number / 100
    residual, square = get["last_residual"][flat], get["last/gradient"][flat]
    to_critical, to_flat = int(critical.sum()), int(flat.sum())
    worst = float(np.min(residual)) if flat.any() else float("nan")
    median = float(np.median(square)) if flat.any() else float("nan")
    claims = [
        Claim.bounded(
            "starts that end at the critical point",
            Measured(to_critical, 0.0),
            f"{56 * scale:.0f} ± {6 * scale:.0f}",
            50 * scale,
            62 * scale,
        ),
        Claim.bounded(
            "starts that end at the gradient-flat point",
            Measured(to_flat, 0.0),
            f"{44 * scale:.0f} ± {6 * scale:.0f}",
            38 * scale,
            50 * scale,
        ),
        Claim.bounded("starts that end anywhere else", Measured(number - to_critical - to_flat, 0.0), "0", 0, 0),
        Claim(
            "starts with x < −√2 that end at the critical point",
            f"{int((critical & left).sum())} of {int(left.sum())}",
            "all",
            judge(Measured(float((left & ~critical).sum()), 0.0), 0, 0),
        ),
        Claim.bounded("smallest r at the gradient-flat point", Measured(worst, 0.0), "→ 1 [> 0.85]", 0.85, 1.0),
        Claim.bounded("median |g|² there", Measured(median, 0.0), "11.1766 [± 1 %]", 11.06, 11.29),
    ]
    fractions = np.median(get["last/flatness"][flat], axis=0).tolist() if flat.any() else [float("nan")] * len(TAUS)
    return {
        "experiment": "critical-quartic",
        "claims": [dataclasses.asdict(claim) for claim in claims],
        "failures": failures(arrays),
        "flatness": [{"tau": t, "median": f} for t, f in zip(TAUS, fractions, strict=True)],
    }


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """All starts in one program."""
    run_parts(config, directory, progress, {"runs": lambda tell: _runs(config)}, summarise, {})


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    stored = load_run(directory)
    get = {name.removeprefix("runs/"): value for name, value in stored.arrays.items()}
    critical = np.linalg.norm(get["ends"] - QUARTIC_CRITICAL, axis=1) < 1e-3
    half_width = stored.config["half_width"]
    marks = {"to the critical point": get["starts"][critical], "to the gradient-flat point": get["starts"][~critical]}
    special = {"critical point": QUARTIC_CRITICAL, "gradient-flat point": QUARTIC_FLAT}
    steps = np.arange(get["trace_residual"].shape[1])
    series = {}
    for label, chosen in (("to the critical point", critical), ("to the gradient-flat point", ~critical)):
        if not chosen.any():
            continue
        squares = get["trace_squared_gradient_norm"][chosen]
        ended = steps[None, :] >= get["num_steps"][chosen][:, None]
        squares = np.where(ended, get["last/gradient"][chosen][:, None], squares)
        series[label] = Series(line=(steps[:41], np.median(np.maximum(squares, 1e-32), axis=0)[:41]))
    pictures = [
        picture(
            directory,
            "starts",
            drawing.plane(_loss, half_width, marks, special),
            "Where Newton-MR takes each start. Shades: the loss.",
        ),
        picture(
            directory,
            "course",
            draw_panels(
                [Panel("the gradient along the runs", r"$|g|^2$, median over runs", series, log_y=True)],
                xlabel="step of Newton-MR",
                log_x=False,
                height=3.2,
            ),
            "Runs that end at the critical point converge in few steps; the others stand still at |g|² = 11.18. "
            "(Below 1e-32 not drawn.)",
        ),
    ]
    rows = [[f"{row['tau']:g}", row["median"]] for row in stored.metrics["flatness"]]
    table = Table(["τ", "median F(τ)"], rows, "Where the trapped runs stop: the part of the gradient in |λ| ≤ τ |H|.")
    what = "f = x⁴/4 − 3x² + 9x + 0.9y⁴ + 5y² + 40, Newton-MR with two Lanczos steps from a grid of starts."
    return page(directory, stored, "Critical points: the quartic toy", what, CLAIM, pictures, [table])


def _loss(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x**4 / 4 - 3 * x**2 + 9 * x + 0.9 * y**4 + 5 * y**2 + 40

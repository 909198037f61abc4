"""What the experiment on constructions says: claims, figures and page, from stored arrays."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.claims import Claim, agrees, failures, holds, measured, page, picture
from experiments.registry import Summary
from experiments.success import wilson
from jflat.core import Status
from jflat.report import Measured, Panel, Series, Table, draw_panels, format_measured, load_run

__all__ = ["draw", "summarise"]

Arrays = Mapping[str, np.ndarray]
PUBLISHED = {5: 0.0, 6: 0.0, 8: 0.137, 10: 0.327, 15: 0.73, 20: 0.80}
"""Fractions of spurious minima by another code, 8000 steps at rate 0.1."""


def _minima(arrays: Arrays) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    names = dict.fromkeys(tuple(key.split("/")[1:3]) for key in arrays if key.startswith("minimum/"))
    return {
        (name, int(units)): {
            key.rsplit("/", 1)[1]: value for key, value in arrays.items() if key.startswith(f"minimum/{name}/{units}/")
        }
        for name, units in names
    }


def _students(arrays: Arrays) -> dict[tuple[int, int], dict[str, Any]]:
    """Rows of (teachers, students): shares, error bars, losses."""
    found = {}
    for key in arrays:
        if not key.startswith("students/") or not key.endswith("/loss"):
            continue
        folder = key.removesuffix("/loss")
        m, k = map(int, folder.split("/")[1:])
        spurious, settled = arrays[f"{folder}/is_spurious"], arrays[f"{folder}/outcome"] == Status.CONVERGED
        number = spurious.size
        low, high = wilson(np.array([spurious.sum()]), number)
        found[m, k] = {
            "share": spurious.mean(),
            "low": float(low[0]),
            "high": float(high[0]),
            "number": number,
            "unconverged": 1 - settled.mean(),
            "open": np.mean(~settled & (arrays[key] > 1e-3)),
            "losses": arrays[key][spurious],
            "least": arrays[f"{folder}/min_eigenvalue"],
        }
    return dict(sorted(found.items()))


def _minimum_claims(arrays: Arrays) -> list[Claim]:
    minima = _minima(arrays)
    certified = [row["status"] == Status.CONVERGED for row in minima.values()]
    kernels = [int(row["nullity"]) == 2 * units - 1 for (_, units), row in minima.items()]
    rises = [float(row["smallest_increase"]) for row in minima.values()]
    reached = [float(row["fitted"].min()) for (_, units), row in minima.items() if units >= 10] or [
        float(row["fitted"].min()) for row in minima.values()
    ]
    exits = [float(row["plateau_eigenvalue"][-1]) for row in minima.values()]
    spread = max(float(np.ptp(row["plateau_loss"])) for row in minima.values())
    ends = [float(row["descent"][-1]) for row in minima.values()]
    monotone = all((np.diff(row["descent"]) <= 0).all() for row in minima.values())
    return [
        Claim(
            "D1: certified local minima of loss 1/2, nullity 2N − 1",
            f"{sum(a and b for a, b in zip(certified, kernels, strict=True))} of {len(minima)}",
            "all",
            holds(np.logical_and(certified, kernels)),
        ),
        Claim("D1: smallest increase of all probes", f"{min(rises):.1e}", "> 0", holds(min(rises) > 0)),
        Claim(
            "D1: what the wide ones reach from random starts", f"{max(reached):.1e}", "≈ 0", holds(max(reached) < 0.05)
        ),
        Claim("D2: loss on the plateau varies by", f"{spread:.0e}", "4e-16", holds(spread < 1e-14)),
        Claim(
            "D2: least eigenvalue at the exits",
            f"{min(exits):.3g} to {max(exits):.3g}",
            "< 0",
            holds(max(exits) < -1e-4),
        ),
        Claim(
            "D2: loss after the exit, never rising",
            f"{min(ends):.2g} to {max(ends):.2g}",
            "< 1/2",
            holds(monotone and max(ends) < 0.49),
        ),
    ]


def _remedy_claims(arrays: Arrays) -> list[Claim]:
    d, number = arrays["sigmoid/dimensions"], arrays["sigmoid/num_minima"]
    gap3, gap4 = np.abs(arrays["neuron/identity"]).max(), np.abs(arrays["factor/identity"]).max()
    late = float(arrays["factor/open.excess"][-1] * 4 * arrays["factor/times"][-1])
    growth = float(arrays["factor/open.exponent"][-1]), float(arrays["factor/closed.exponent"][-1])
    slope = float(arrays["factor/closed.gradient_norm"][-1])
    lines = [float(arrays[f"duplicate/{name}.gradient_norm"].max()) for name in ("positive", "negative", "indefinite")]
    traps, bounds = arrays["relu/loss"], arrays["relu/bound"]
    best = arrays["relu/fitted"].min(axis=1)
    peak, straight = arrays["wide/constructed"].max(), arrays["wide/straight"].max(axis=1)
    return [
        Claim(f"one neuron, d ≤ {d.max()}: strict minima", ", ".join(map(str, number)), "2^d", holds(number == 2**d)),
        Claim("D3: a ∂L/∂a − ∂L/∂b − λa² at random points", f"{gap3:.0e}", "0", holds(gap3 < 1e-11)),
        Claim(
            "D3: the neuron leads out of a bad minimum",
            f"1/2 → {arrays['neuron/modified'][-1]:.3g}",
            "lower",
            holds(arrays["neuron/modified"][-1] < 0.45),
        ),
        Claim("D4: a ∂F/∂a − ∂F/∂b − 2λa² at random points", f"{gap4:.0e}", "0", holds(gap4 < 1e-11)),
        Claim("D4: 4 t (F − L) at the last time", f"{late:.4f}", "1", holds(abs(late - 1) < 0.02)),
        Claim(
            "D5: the regulariser stops the path, at a minimum with L > 0",
            f"b = {growth[1]:.3f} (without: {growth[0]:.2f} and rising)",
            "bounded",
            holds(slope < 1e-10),
        ),
        Claim("duplicated neuron: gradient on the line", f"{max(lines):.0e}", "0", holds(max(lines) < 1e-9)),
        Claim(
            "D7: loss of the trap − loss of the affine fit",
            f"{np.abs(traps - bounds).max():.0e} of {bounds[0]:.3g}",
            "0",
            holds((np.abs(traps - bounds) < 1e-12) & (arrays["relu/status"] == Status.CONVERGED)),
        ),
        Claim("D7: best fit of the widest network", f"{best[-1]:.1e}", "far lower", holds(best[-1] < traps[-1] / 10)),
        Claim("D9: maximum on the constructed path", f"{peak:.0e}", "3e-28", holds(peak < 1e-20)),
        Claim(
            "D9: maximum on the straight line",
            f"{straight.min():.2g} to {straight.max():.2g}",
            "high",
            holds(straight.min() > 1e-3),
        ),
    ]


def _student_claims(arrays: Arrays) -> list[Claim]:
    rows = _students(arrays)
    claims = []
    for size, published in ((5, Measured(0.0, 0.0)), (10, Measured(0.33, 0.03))):
        row = rows.get((size, size))
        if row is not None:
            share, number = float(row["share"]), row["number"]
            ours = Measured(share, max(math.sqrt(share * (1 - share) / number), 0.5 / number))
            status = "undecided" if row["open"] > 0.06 else agrees(ours, published)
            theirs = "0" if size == 5 else "0.33 ± 0.03"
            claims.append(Claim(f"D8: spurious fraction, k = {size}", format_measured(*ours), theirs, status))
    least = [x for row in rows.values() for x in row["least"]]
    if least:
        text = f"{min(least):.3g} to {max(least):.3g}"
        claims.append(
            Claim("D8: least Hessian eigenvalue at spurious minima", text, "0.02 to 0.05", holds(min(least) > 1e-3))
        )
    more = [(m, k) for m, k in rows if k > m]
    if more:
        pairs = [(rows[m, m]["share"], rows[m, k]["share"] + rows[m, k]["open"]) for m, k in more if (m, m) in rows]
        text = "; ".join(f"{a:.2f} → ≤ {b:.2f}" for a, b in pairs)
        claims.append(
            Claim("D8: one student more: fraction falls", text, "removes most", holds([b < a / 2 for a, b in pairs]))
        )
    return claims


def _ticket_claims(arrays: Arrays) -> list[Claim]:
    barrier, steps = arrays["tickets/loss_barrier"], arrays["tickets/rewind_steps"]
    first, last = (measured(barrier[i, 0]) for i in (0, -1))
    sparse, random = (measured(arrays[f"tickets/{name}"][-1, -1]) for name in ("error", "random_error"))
    gap = measured(arrays["tickets/random_error"][-1, -1] - arrays["tickets/error"][-1, -1])
    share = float(arrays["tickets/density"][-1])
    return [
        Claim.bounded(f"D10: barrier (nats), children of step {steps[-1]}", last, "≈ 0 (< 0.02)", -0.02, 0.02),
        Claim.bounded(
            f"D10: barrier (nats), children of step {steps[0]}", first, "≈ 0 for small networks (< 0.02)", -0.02, 0.02
        ),
        Claim.bounded(
            f"D10: error of random masks − magnitude masks, {share:.1%} left ({random.value:.3f} − {sparse.value:.3f})",
            gap,
            "> 0",
            0.0,
            np.inf,
        ),
    ]


def summarise(arrays: Arrays) -> dict[str, Any]:
    """Claims, failures and the fractions of spurious minima."""
    claims = [*_minimum_claims(arrays), *_remedy_claims(arrays), *_student_claims(arrays), *_ticket_claims(arrays)]
    rows = [
        {
            "teachers": m,
            "students": k,
            **{name: float(row[name]) for name in ("share", "low", "high", "unconverged", "open")},
        }
        for (m, k), row in _students(arrays).items()
    ]
    return {
        "experiment": "landscape-constructions",
        "students": rows,
        "claims": [claim.__dict__ for claim in claims],
        "failures": failures(arrays),
    }


def _plain(x: Any, y: Any) -> Series:
    return Series(line=(x, y))


def _minimum_figures(config: Mapping[str, Any], arrays: Arrays) -> dict[str, tuple[Any, str]]:
    minima = _minima(arrays)
    panels = []
    for name in config["activations"]:
        rows = {units: row for (other, units), row in minima.items() if other == name}
        series = {}
        for units, row in rows.items():
            least = row["probe_min"]
            series[f"N = {units}, least of probes"] = _plain(row["radii"], np.where(least > 0, least, np.nan))
        panels.append(Panel(name, r"$L(\theta + r u) - L(\theta)$", series, log_y=True))
    probes = draw_panels(panels, xlabel=r"radius $r$", height=2.6)
    plateau, below = {}, {}
    for (name, units), row in minima.items():
        if units == min(config["units"]) or len(config["activations"]) == 1:
            t = np.linspace(0, 1, row["plateau_loss"].size)
            plateau[name] = _plain(t, row["plateau_loss"])
            below[name] = _plain(t, row["plateau_eigenvalue"])
    exits = draw_panels(
        [
            Panel("loss on the way", r"$L$", plateau, lowest=0.0),
            Panel("curvature", r"least eigenvalue of the Hessian", below, {"zero": 0.0}),
        ],
        xlabel=r"way along the plateau ($v_1$ changes its sign at 2/3)",
        log_x=False,
        height=2.4,
    )
    descent = {
        f"{name}, N = {units}": _plain(np.arange(1, row["descent"].size + 1), row["descent"])
        for (name, units), row in minima.items()
        if name == config["activations"][-1] or units == min(config["units"])
    }
    after = draw_panels(
        [Panel("gradient descent from the exit", r"$L$", descent, {"the bad minimum": 0.5}, lowest=0.0)],
        xlabel="step",
        height=3.6,
    )
    return {
        "bad_minimum": (
            probes,
            f"D1. Bad local minima: least increase of the loss among {min(config['num_probes'], 2000)} random "
            "directions, by radius. Lines end where a probe is lower: the minimum is local. Loss at the point 1/2.",
        ),
        "plateau": (
            exits,
            "D2. From the bad minimum along its plateau, at equal loss and zero gradient, to a saddle, N = "
            f"{min(config['units'])}.",
        ),
        "exit": (
            after,
            "D2. From the end of the plateau, 0.01 along the most negative direction, then gradient descent.",
        ),
    }


def _one_neuron_figures(arrays: Arrays) -> dict[str, tuple[Any, str]]:
    near, top, far = arrays["sigmoid/wells"]
    profile = draw_panels(
        [
            Panel(
                "the loss along one axis",
                r"$L$ of $d = 1$",
                {"loss": _plain(arrays["sigmoid/places"], arrays["sigmoid/profile"])},
                places={"minimum": near, "maximum": top, "minimum, bad": far},
                lowest=0.0,
            )
        ],
        xlabel=r"weight $w_k$",
        log_x=False,
        height=3.0,
    )
    d = arrays["sigmoid/dimensions"]
    share = draw_panels(
        [
            Panel(
                "gradient descent finds the global minimum",
                "fraction of starts",
                {
                    "gradient descent": Series(points=(d, arrays["sigmoid/global_share"], np.full(d.size, np.nan))),
                    "starts on its side of all maxima": _plain(d, arrays["sigmoid/basin_share"]),
                },
                log_y=True,
            )
        ],
        xlabel=r"dimension $d$ ($2^d$ minima)",
        log_x=False,
        height=3.0,
    )
    return {
        "sigmoid_axis": (profile, "One sigmoid neuron, two samples on each axis: two strict minima on each axis."),
        "sigmoid_share": (share, "One sigmoid neuron: one of the 2^d minima is global. Starts N(0, 4)."),
    }


def _remedy_figures(config: Mapping[str, Any], arrays: Arrays) -> dict[str, tuple[Any, str]]:
    steps = lambda values: np.arange(1, values.size + 1)  # noqa: E731
    plain, modified = arrays["neuron/plain"], arrays["neuron/modified"]
    neuron = draw_panels(
        [
            Panel(
                "gradient descent at a bad local minimum",
                "loss",
                {
                    r"$L$, from beside it": _plain(steps(plain), plain),
                    r"$\tilde L$, with the neuron": _plain(steps(modified), modified),
                },
                lowest=0.0,
            )
        ],
        xlabel="step",
        height=3.2,
    )
    t = arrays["factor/times"][1:]
    lam = config["factor_lam"]
    labels = {"open": "without regulariser", "closed": r"with $\mu b^2 / 2$"}
    series = {
        field: {label: _plain(t, arrays[f"factor/{name}.{field}"][1:]) for name, label in labels.items()}
        for field in ("amplitude", "exponent", "excess")
    }
    late = t > t[-1] / 1e3
    formula = {"amplitude": (4 * lam * t) ** -0.5, "exponent": np.log(4 * lam * t) / 2, "excess": 1 / (4 * t)}
    for field, values in formula.items():
        series[field]["late times, in closed form"] = _plain(t[late], values[late])
    factor = draw_panels(
        [
            Panel("amplitude", r"$a$", series["amplitude"], log_y=True),
            Panel("exponent: the path to infinity", r"$b$", series["exponent"]),
            Panel("above the loss that was to be removed", r"$F - L$", series["excess"], log_y=True),
        ],
        xlabel=r"time $t$ of gradient flow",
        height=2.2,
    )
    gammas = arrays["duplicate/gammas"]
    lines = {
        f"B {name}": _plain(gammas, arrays[f"duplicate/{name}.min_eigenvalue"])
        for name in ("positive", "negative", "indefinite")
    }
    duplicated = draw_panels(
        [
            Panel(
                "the line of a duplicated neuron",
                "least eigenvalue of the Hessian",
                lines,
                {"zero": 0.0},
                {"one copy is off": 0.0, "the other is off": 1.0},
            )
        ],
        xlabel=r"share $\gamma$ of the first copy",
        log_x=False,
        height=3.4,
    )
    return {
        "exponential_neuron": (
            neuron,
            "D3. From a bad local minimum of loss 1/2 (tanh, N = 3), gradient descent stays; with one exponential "
            "neuron there is a way down.",
        ),
        "factor": (
            factor,
            f"D4 and D5. Gradient flow of F at a bad minimum with L = 1/2, lambda = {lam:g}, mu = "
            f"{config['factor_mu']:g}. Without a regulariser of b the flow goes to infinity and F falls to L; with it, "
            "it stops at a minimum of F.",
        ),
        "duplicated_neuron": (
            duplicated,
            "One unit at a strict minimum, doubled: every point is critical, of one loss. Zero (the kernel) is the "
            "least eigenvalue where the line is of local minima; negative means saddles.",
        ),
    }


def _more_figures(config: Mapping[str, Any], arrays: Arrays) -> dict[str, tuple[Any, str]]:
    widths = arrays["relu/widths"]
    fits = arrays["relu/fitted"]
    traps = draw_panels(
        [
            Panel(
                "ReLU networks and their traps",
                "loss",
                {
                    "all active: the affine fit": _plain(widths, arrays["relu/loss"]),
                    "all dead": _plain(widths, arrays["relu/dead_loss"]),
                    "best of random starts": Series((widths, np.maximum(fits.min(axis=1), 1e-32)), None),
                },
                log_y=True,
            )
        ],
        xlabel="width N",
        log_x=False,
        height=3.4,
    )
    t = arrays["wide/times"]
    path: dict[str, Series] = {}
    for name, label in (("constructed", "constructed path"), ("straight", "straight line")):
        for i, losses in enumerate(arrays[f"wide/{name}"]):
            if i == 0:
                path[label] = _plain(t, np.maximum(losses, 1e-34))
    wide = draw_panels(
        [
            Panel(
                "between two minima of a wide network",
                "loss",
                path,
                places={"exchange begins": 1 / 3, "ends": 2 / 3},
                log_y=True,
            )
        ],
        xlabel="way",
        log_x=False,
        height=3.4,
    )
    return {
        "relu_traps": (
            traps,
            "D7. Local minima of ReLU networks at any width, and what the same network reaches from random starts "
            f"(best of {fits.shape[1]}; values below 1e-32 drawn there).",
        ),
        "wide_path": (
            wide,
            f"D9. Two networks of width {2 * config['num_samples']} that fit {config['num_samples']} labels, joined by "
            "the constructed path and by the straight line (first of the pairs).",
        ),
    }


def _student_figures(config: Mapping[str, Any], arrays: Arrays) -> dict[str, tuple[Any, str]]:
    rows = _students(arrays)
    series: dict[str, Series] = {}
    for label, extra in (("as many students", 0), ("one student more", 1)):
        chosen = {m: row for (m, k), row in rows.items() if k - m == extra}
        if chosen:
            x = np.array(list(chosen))
            names = "share", "low", "high", "open"
            p, low, high, unsettled = (np.array([row[name] for row in chosen.values()]) for name in names)
            series[label] = Series(
                (x, p), (x, p, np.stack([np.maximum(p - low, 0), np.maximum(high - p, 0) + unsettled]))
            )
    largest = max(m for m, _ in rows)
    known = {m: p for m, p in PUBLISHED.items() if m <= largest}
    series["another code"] = Series(points=(list(known), list(known.values()), np.full(len(known), np.nan)))
    fractions = draw_panels(
        [Panel("spurious minima", "fraction of runs", series, lowest=-0.03)],
        xlabel="teachers k = inputs",
        log_x=False,
        height=3.6,
    )
    losses = {
        f"k = {m}": _plain(np.sort(row["losses"]), np.linspace(0, 1, row["losses"].size, endpoint=False))
        for (m, k), row in rows.items()
        if m == k and row["losses"].size
    }
    found = {
        "students": (
            fractions,
            f"D8. Gradient descent on the Gaussian loss, {config['num_starts']} starts, bars of one standard "
            "error (Wilson), and upward the runs that had not converged and may yet end in a spurious minimum.",
        )
    }
    if losses:
        levels = draw_panels(
            [Panel("losses are quantised", "fraction of spurious minima below", losses)],
            xlabel="loss of a spurious minimum",
            log_x=False,
            height=3.4,
        )
        found["student_losses"] = levels, "D8. Cumulative distribution of the losses of spurious minima: steps."
    return found


def _ticket_figures(config: Mapping[str, Any], arrays: Arrays) -> dict[str, tuple[Any, str]]:
    density, steps = arrays["tickets/density"], arrays["tickets/rewind_steps"]

    def over(values: np.ndarray) -> Series:
        cells = [measured(row) for row in values]
        y = [cell.value for cell in cells]
        return Series((density, y), (density, y, [cell.stderr or math.nan for cell in cells]))

    errors = {f"k = {k}": over(arrays["tickets/error"][i]) for i, k in enumerate(steps)}
    barriers = {f"k = {k}": over(arrays["tickets/loss_barrier"][i]) for i, k in enumerate(steps)}
    errors[f"k = {steps[-1]}, random masks"] = over(arrays["tickets/random_error"][-1])
    figure = draw_panels(
        [
            Panel("tickets", "test error", errors, lowest=0.0),
            Panel("instability", "barrier of the test loss (nats)", barriers),
        ],
        xlabel="weights left",
        height=3.0,
    )
    caption = (
        f"D10. Multilayer perceptron {config['hidden']} on digits, pruned by magnitude and rewound to step k of "
        f"{config['ticket_steps']}, mean over {config['ticket_seeds']} seeds ± one standard error. Below: the largest "
        "loss on the line between two children of step k that differ in the order of the data, above the worse child."
    )
    return {"tickets": (figure, caption)}


def _tables(arrays: Arrays) -> list[Table]:
    rows: list[Sequence[Any]] = [
        [
            name,
            units,
            float(row["loss"]),
            f"{float(row['gradient_norm']):.0e}",
            f"{float(row['min_eigenvalue']):.0e}",
            int(row["nullity"]),
            f"{float(row['smallest_increase']):.1e}",
            float(row["plateau_eigenvalue"][-1]),
            f"{float(row['fitted'].min()):.0e}",
        ]
        for (name, units), row in _minima(arrays).items()
    ]
    header = [
        "activation",
        "N",
        "loss",
        "gradient",
        "least eigenvalue",
        "nullity",
        "least increase",
        "at the exit",
        "fitted",
    ]
    tables = [Table(header, rows, "D1 and D2: certificates of bad local minima, and the best fit from random starts.")]
    rows = [
        [
            m,
            k,
            *(f"{row[name]:.3f}" for name in ("share", "open", "unconverged")),
            PUBLISHED.get(m) if m == k else None,
            row["number"],
        ]
        for (m, k), row in _students(arrays).items()
    ]
    header = ["teachers", "students", "spurious", "open", "not converged", "another code", "starts"]
    return [
        *tables,
        Table(
            header,
            rows,
            (
                "D8: where gradient descent ends, by fractions of the starts. Open: not converged (gradient above "
                "1e-6) at a loss above 1e-3; not converged: open, or creeping to loss 0 in the valleys of a student "
                "with more units."
            ),
        ),
    ]


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Figures, tables and the page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, arrays = stored.config, stored.arrays
    drawn = _minimum_figures(config, arrays) | _one_neuron_figures(arrays) | _remedy_figures(config, arrays)
    drawn |= _more_figures(config, arrays) | _student_figures(config, arrays) | _ticket_figures(config, arrays)
    pictures = [picture(directory, name, *figure) for name, figure in drawn.items()]
    what = (
        "Constructions computed in float64, each with its certificate: gradient, all eigenvalues of the Hessian, and "
        "the loss at random points around. Theirs: the theorem, or numbers of another code."
    )
    title = "Bad minima at any width, what removes them, and paths between good ones"
    return page(directory, stored, title, what, claim, pictures, _tables(arrays))

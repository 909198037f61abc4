"""What the experiment on deep linear networks says: claims, figures, page, from stored arrays.

`sweep/quantity` is (F, S, ...), steps by seeds; `resnet/depth/kind/quantity` is (S, ...). Runs that did not converge
are left out of every number but their own count.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import Claim, cell, failures, holds, measured, page, picture
from experiments.registry import Summary
from experiments.wide_minima.drawing import draw_matrices
from jflat.core import Status
from jflat.report import Panel, Picture, Series, Table, draw_panels, load_run

__all__ = ["draw", "summarise"]

Arrays = Mapping[str, np.ndarray]
LABELS = {
    "positive": "white data, T positive definite",
    "rotated": "white data, T rotated",
    "coloured": "coloured data",
}


def _converged(arrays: Arrays, name: str, quantity: str) -> np.ndarray:
    """A quantity as float64, NaN where the run did not converge."""
    values = np.asarray(arrays[f"{name}/{quantity}"], np.float64)
    good = arrays[f"{name}/status"] == Status.CONVERGED
    return np.where(good.reshape(good.shape + (1,) * (values.ndim - good.ndim)), values, np.nan)


def _sweep_claims(config: Mapping[str, Any], arrays: Arrays) -> list[Claim]:
    fractions, ratio = np.asarray(config["fractions"]), _converged(arrays, "sweep", "ratio")
    below, count = fractions < 1, np.isfinite(ratio)
    if not count.any():
        return [Claim("runs that converge", f"0 of {count.size}", "some", "does not hold")]
    kept = ratio[count]
    capped = (ratio * fractions[:, None])[count]
    claims = [
        Claim(
            "every minimum reached: λ_max over the least sharpness",
            f"least {kept.min():.4f}",
            "≥ 1",
            holds(kept.min() >= 1 - 1e-6),
        ),
        Claim("every minimum reached: λ_max η / 2", f"largest {capped.max():.4f}", "≤ 1", holds(capped.max() <= 1.001)),
    ]
    if np.any(~below):
        text = f"{int(count[~below].sum())} of {count[~below].size} converge"
        claims.append(Claim("steps above η_c", text, "none", holds(not count[~below].any())))
    if np.sum(below) > 1:
        first, last = np.flatnonzero(below)[[0, -1]]
        fall = measured(ratio[first] - ratio[last])
        text = f"ratio at {fractions[first]:g} η_c − at {fractions[last]:g} η_c, same start"
        claims.append(Claim.bounded(text, fall, "larger steps are flatter (> 0)", 0.0, np.inf))
        gains = np.abs(_converged(arrays, "sweep", "path_gains") - 1).max(-1)
        text = f"uneven gains, max |g_k / s^(1/m) − 1|: {fractions[first]:g} η_c − {fractions[last]:g} η_c"
        claims.append(Claim.bounded(text, measured(gains[first] - gains[last]), "evener (> 0)", 0.0, np.inf))
        residuals = _converged(arrays, "sweep", "coupling_residuals").max(-1)
        text = f"coupling residual, largest layer: {fractions[first]:g} η_c − {fractions[last]:g} η_c"
        claims.append(Claim.bounded(text, measured(residuals[first] - residuals[last]), "coupled (> 0)", 0.0, np.inf))
    return claims


def _resnet_claims(config: Mapping[str, Any], arrays: Arrays) -> list[Claim]:
    claims = []
    for depth in config["resnet_depths"]:
        for kind, band in (("positive", 1e-4), ("rotated", 0.01)):
            name = f"resnet/{depth}/{kind}"
            worst = float(np.max(np.abs(arrays[f"{name}/ratio"] - 1)))
            good = np.all(arrays[f"{name}/status"] == Status.CONVERGED) and worst < band
            claims.append(
                Claim(f"{LABELS[kind]}, {depth} layers: |ratio − 1|", f"{worst:.1e}", f"0 [± {band:g}]", holds(good))
            )
        claims.append(_saddle_claim(config, arrays, depth))
        name = f"resnet/{depth}/coloured"
        ratio, even = _converged(arrays, name, "ratio"), arrays[f"{name}/balanced_ratio"]
        claims.append(
            Claim.bounded(
                f"coloured data, {depth} layers: ratio", measured(ratio), "above 1: not flattest", 1.0, np.inf
            )
        )
        gap = float(np.max(np.abs(ratio / even - 1)))
        claims.append(
            Claim(f"coloured data, {depth} layers: ratio / balanced − 1", f"{gap:.1e}", "0 [± 0.01]", holds(gap < 0.01))
        )
    return claims


def _saddle_claim(config: Mapping[str, Any], arrays: Arrays, depth: int) -> Claim:
    """Runs with det T < 0 stay at the loss of the saddle; at depth 2 it is a strict one, which rounding may leave."""
    status, floor = arrays[f"resnet/{depth}/negative/status"], config["smallest"] ** 2 / 2
    left = (status == Status.CONVERGED) if depth == 2 else np.zeros(status.shape, bool)
    share = (arrays[f"resnet/{depth}/negative/loss"] / floor)[~left]
    stuck = np.isin(status[~left], (Status.NOT_GLOBAL, Status.MAX_STEPS)).all()
    near = stuck and (share >= 1 - 1e-9).all() and (share < 1.05).all()
    text = f"{share.min():.4f} to {share.max():.4f}" if share.size else "none stays"
    if depth == 2:
        text += f"; {left.sum()} of {left.size} leave by rounding"
    theirs = "1 [to 1.05]" + (" until rounding leads out" if depth == 2 else "")
    return Claim(f"det T < 0, {depth} layers: loss over c·{config['smallest']:g}²", text, theirs, holds(near))


def summarise(config: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Every number of the run: sweep, ResNets, claims, failures."""
    ratio = _converged(arrays, "sweep", "ratio")
    sweep = [
        {
            "fraction": float(fraction),
            "converged": int(np.isfinite(row).sum()),
            "of": int(row.size),
            "ratio": measured(row)._asdict(),
            "least": float(np.nanmin(row)) if np.isfinite(row).any() else None,
            "largest": float(np.nanmax(row)) if np.isfinite(row).any() else None,
        }
        for fraction, row in zip(config["fractions"], ratio, strict=True)
    ]
    claims = _sweep_claims(config, arrays) + _resnet_claims(config, arrays)
    expected = (Status.NOT_GLOBAL, Status.OSCILLATING)  # det T < 0, and steps above the critical one
    return {
        "experiment": "wide-minima-linear",
        "sweep": sweep,
        "claims": [claim.__dict__ for claim in claims],
        "failures": failures(arrays, expected),
    }


def _spread(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median of the columns, and (2, n) distances to the 10 and 90 % quantiles; NaN where there is nothing."""
    found = np.full((3, rows.shape[1]), np.nan)
    for number, column in enumerate(rows.T):
        if np.isfinite(column).any():
            found[:, number] = np.nanquantile(column, (0.1, 0.5, 0.9))
    return found[1], np.stack([found[1] - found[0], found[2] - found[1]])


def _sweep_figure(config: Mapping[str, Any], arrays: Arrays) -> Any:
    fractions, ratio = np.asarray(config["fractions"]), _converged(arrays, "sweep", "ratio")
    middle, error = _spread(ratio.T)
    cap = np.geomspace(max(fractions[0], 0.2), 1.0, 60)
    top = np.nanmax(middle + error[1]) * 1.08
    share = np.isfinite(ratio).mean(1)
    shown = cap[1 / cap <= top]
    panels = [
        Panel(
            f"{config['depth']} layers, {config['num_seeds']} starts",
            r"$\lambda_{\max}$ / least sharpness",
            {
                "gradient descent, median, 10 to 90 %": Series(points=(fractions, middle, error)),
                r"stability cap $2/\eta$": Series(line=(shown, 1 / shown)),
            },
            levels={"flattest minima": 1.0},
            places={r"$\eta_c$": 1.0},
        ),
        Panel(
            "",
            "share that converges",
            {"runs": Series((fractions, share), (fractions, share, 0 * share))},
            places={r"$\eta_c$": 1.0},
        ),
    ]
    caption = (
        "Sharpness of the minimum that gradient descent ends at, over the least sharpness of any global minimum, "
        "against the step over the critical one. Starts are the same for all steps; above the cap none is stable."
    )
    return draw_panels(panels, xlabel=r"step size $\eta / \eta_c$", log_x=False), caption


def _gain_figure(config: Mapping[str, Any], arrays: Arrays) -> Any:
    fractions, layers = np.asarray(config["fractions"]), np.arange(1, config["depth"] + 1)
    below = np.flatnonzero(fractions < 1)
    chosen = dict.fromkeys((below[0], below[len(below) // 2], below[-1]))
    panels = []
    limit = np.sqrt(max(config["depth"] - 1, 1))
    for quantity, title, ylabel, levels in (
        ("path_gains", "gain of each layer along the path", "$g_k / s^{1/m}$", {"flattest minima": 1.0}),
        (
            "spectral_gains",
            "largest gain up to a layer",
            r"$\|W_k \cdots W_1\| / s^{k/m}$",
            {"largest at a flattest one": limit},
        ),
    ):
        values = _converged(arrays, "sweep", quantity)
        series = {}
        for place, number in enumerate(chosen):
            middle, error = _spread(values[number])
            shift = 0.06 * (place - (len(chosen) - 1) / 2)
            series[rf"$\eta = {fractions[number]:g}\,\eta_c$"] = Series(
                (layers + shift, middle), (layers + shift, middle, error)
            )
        panels.append(Panel(title, ylabel, series, levels=levels))
    caption = "Gains after training with small and large steps: median over starts, 10 to 90 %."
    figure = draw_panels(panels, xlabel="layer k", log_x=False)
    figure.axes[-1].set_xticks(layers)
    return figure, caption


def _coupling_figure(config: Mapping[str, Any], arrays: Arrays) -> Any:
    fractions = np.asarray(config["fractions"])
    below = np.flatnonzero(fractions < 1)
    found = _converged(arrays, "sweep", "coupling")
    # One start, since the pair that is coupled need not be the same one in another: the middle one of the largest step.
    weakest = np.min(np.max(found[below[-1]], axis=(-2, -1)), axis=-1)
    start = int(np.argsort(weakest)[len(weakest) // 2])
    rows = {rf"$\eta = {fractions[i]:g}\,\eta_c$": list(found[i, start]) for i in dict.fromkeys((below[0], below[-1]))}
    depth = max(config["resnet_depths"])
    resnet = arrays[f"resnet/{depth}/positive/coupling"][0][: config["depth"] - 1]
    if len(resnet) == config["depth"] - 1:
        rows["ResNet"] = list(resnet)
    titles = [f"layers {k}, {k + 1}" for k in range(1, config["depth"])]
    caption = (
        "Overlap of right singular vectors of a layer (rows, largest value first) with left ones of the layer before "
        "(columns): one start, that of median coupling at the largest step, after training with two steps. ResNet: the "
        f"first layers of {depth} from zero initialisation."
    )
    return draw_matrices(rows, titles, label=r"$|\langle v_j(W_{k+1}),\, u_i(W_k)\rangle|$"), caption


def _resnet_figure(config: Mapping[str, Any], arrays: Arrays) -> Any:
    depths = np.asarray(config["resnet_depths"])
    series = {}
    for place, kind in enumerate(LABELS):
        middle, error = _spread(np.stack([_converged(arrays, f"resnet/{m}/{kind}", "ratio") for m in depths], axis=1))
        shifted = depths * 1.02 ** (place - 1)
        series[LABELS[kind]] = Series((shifted, middle), (shifted, middle, error))
    even = [np.median(arrays[f"resnet/{m}/coloured/balanced_ratio"]) for m in depths]
    series["balanced minimum, coloured data"] = Series(line=(depths, even))
    floor = config["smallest"] ** 2 / 2
    middle, error = _spread(np.stack([arrays[f"resnet/{m}/negative/loss"] for m in depths], axis=1))
    stuck = {"white data, det T < 0": Series((depths, middle / floor), (depths, middle / floor, error / floor))}
    panels = [
        Panel(
            "linear ResNets, zero initialisation",
            r"$\lambda_{\max}$ / least sharpness",
            series,
            levels={"flattest minima": 1.0},
        ),
        Panel("where det T < 0", f"final loss / c·{config['smallest']:g}²", stuck, levels={"saddle": 1.0}, lowest=0.0),
    ]
    caption = "Where linear ResNets from zero initialisation end: median over targets, 10 to 90 %."
    return draw_panels(panels, xlabel="depth m", log_x=False), caption


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Figures, tables and the page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, metrics, arrays = stored.config, stored.metrics, stored.arrays
    drawn = {
        "step_size": _sweep_figure(config, arrays),
        "gains": _gain_figure(config, arrays),
        "coupling": _coupling_figure(config, arrays),
        "resnets": _resnet_figure(config, arrays),
    }
    pictures: list[Picture] = [picture(directory, name, *figure) for name, figure in drawn.items()]
    rows = [
        [
            f"{row['fraction']:g}",
            f"{row['converged']} of {row['of']}",
            cell(row["ratio"]),
            row["least"],
            row["largest"],
            1 / row["fraction"] if row["fraction"] <= 1 else None,
        ]
        for row in metrics["sweep"]
    ]
    header = ["η / η_c", "converged", "ratio, mean", "least", "largest", "cap"]
    tables = [Table(header, rows, "Sharpness over the least sharpness of a global minimum, by step.")]
    what = (
        f"Networks of {config['dim']} units a layer learn T with singular values {config['smallest']:g} to "
        f"{config['largest']:g} by full-batch gradient descent; loss c |W − T|², c = 1/2. The sharpness of every "
        "minimum is exact. Theirs: statements of the paper, and their numbers as derived for jflat.linear."
    )
    title = "Deep linear networks: which minimum does gradient descent find?"
    return page(directory, stored, title, what, claim, pictures, tables)

"""The coordinate check as a picture: does each layer move as its parametrisation predicts, yes or no?

One column for each parametrisation. Above, how far each layer's coordinates moved against the width, on logarithmic
axes that all columns share, with the predicted power through the middle of each curve (thin): curves lie on their
lines, in muP flat. Below, the measured power of each layer against the predicted one: a filled mark inside of the
tolerance bar, or a red cross outside of it. The title says the verdict in words.

`powers` draws the lower half alone, for all statistics of many parametrisations on one sheet.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jflat.core import check
from jflat.report.figure_style import COLOURS, LINES, MARKERS, Figure, empty_figure, styled
from jflat.report.statistics import mean_and_stderr
from jflat.width import CoordTable, fit_slopes, predicted_slopes

__all__ = ["coordinate_check", "powers"]

_WRONG = "#C00000"
_LABELS = {
    "delta": r"change of coordinates, rms $\Delta h_\ell$",
    "dwx": r"own update, rms $\Delta W_\ell\, x_{\ell-1}$",
    "w0dx": r"inherited change, rms $W_\ell\, \Delta x_{\ell-1}$",
}
_SHORT = {"delta": r"$\Delta h$", "dwx": r"$\Delta W x$", "w0dx": r"$W_0 \Delta x$"}


def coordinate_check(
    tables: CoordTable | Mapping[str, CoordTable],
    stat: str = "delta",
    *,
    predicted: Mapping[str, float | None] | None = None,
    step: int = -1,
    fit: slice = slice(1, None),
    atol: float = 0.1,
    columns: int | None = None,
) -> Figure:
    """Curves over widths and measured powers against predicted ones, one column per parametrisation.

    Args:
      tables: of `jflat.width.coord_check`, by name; or one.
      stat: "delta", "dwx" or "w0dx".
      predicted: powers by layer, the same for all tables, say all 0 for what muP should be; None is what
        `predicted_slopes` says of each table's own parametrisation.
      step, fit: as in `fit_slopes`.
      atol: what counts as right, as in `assert_exponents`.
      columns: as many side by side, the others below; None is all.

    Returns:
      A matplotlib `Figure`, for `figures.save_figure`. Curves are geometric means over seeds with bands of one
      standard error, and mark the widths left out of the fit by open marks; error bars of powers are two standard
      errors. A layer that is zero, overflows or has no prediction has no curve; if it should have one, it is wrong.

    Raises:
      ValueError: without a table, for another statistic.
    """
    named = {"": tables} if isinstance(tables, CoordTable) else dict(tables)
    check.require(len(named) > 0, "coordinate_check", "tables", "must have at least one table", "none")
    check.require_choice("coordinate_check", "stat", stat, tuple(_LABELS))
    with styled(8, axes_linewidth=0.6, lines_linewidth=1.2, lines_markersize=3.4, grid_linewidth=0.4):
        across = len(named) if columns is None else min(columns, len(named))
        down = -(-len(named) // across)
        figure = empty_figure(max(3.4, 1.0 + 2.3 * across), 4.4 * down)
        grid = figure.subplots(2 * down, across, squeeze=False, sharey="row", height_ratios=(3, 2) * down)
        pairs = [(grid[2 * i, j], grid[2 * i + 1, j]) for i in range(down) for j in range(across)]
        for axes in pairs[len(named) :]:
            axes[0].remove()
            axes[1].remove()
        for (name, table), (top, bottom) in zip(named.items(), pairs[: len(named)], strict=True):
            wanted = predicted_slopes(table, stat, step=step) if predicted is None else dict(predicted)
            _curves(top, table, stat, wanted, step, fit)
            wrong = _powers(bottom, table, stat, wanted, step, fit, atol)
            verdict = "as predicted" if not wrong else "WRONG: " + ", ".join(wrong)
            top.set_title(f"{name}\n{verdict}".strip(), color=_WRONG if wrong else "black")
        for top, bottom in zip(grid[::2, 0], grid[1::2, 0], strict=True):
            top.set_ylabel(_LABELS[stat])
            bottom.set_ylabel("power of the width")
        return figure


def powers(
    tables: Mapping[str, CoordTable],
    *,
    step: int = -1,
    fit: slice = slice(1, None),
    atol: float = 0.1,
    columns: int = 2,
) -> Figure:
    """The measured power of every statistic of every layer against the predicted one, one panel per parametrisation.

    Args:
      tables: by name.
      step, fit, atol: as in `coordinate_check`.
      columns: panels side by side.

    Returns:
      A `Figure`: grey bars are predictions with their tolerance, marks are measured with two standard errors, red
      crosses are outside. What no theory predicts, or a statistic that is unknown, has no place.
    """
    check.require(len(tables) > 0, "powers", "tables", "must have at least one table", "none")
    with styled(8, axes_linewidth=0.6, lines_markersize=3.4, grid_linewidth=0.4):
        down = -(-len(tables) // columns)
        figure = empty_figure(0.5 + 3.6 * columns, 0.6 + 1.55 * down)
        grid = figure.subplots(down, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(tables) :]:
            axes.remove()
        for (name, table), axes in zip(tables.items(), grid.flat, strict=False):
            wrong = 0
            places: dict[float, str] = {}
            for number, stat in enumerate(_LABELS):
                start = number * (len(table.layers) + 0.6)
                wanted = predicted_slopes(table, stat, step=step)
                wrong += len(_powers(axes, table, stat, wanted, step, fit, atol, start))
                known = {start + i: layer for i, layer in enumerate(table.layers) if wanted[layer] is not None}
                middle = sum(known) / len(known)
                axes.text(middle, 0.98, _SHORT[stat], ha="center", va="top", transform=axes.get_xaxis_transform())
                places |= known
            axes.set_xticks(list(places), list(places.values()))
            axes.set_xlim(-0.6, max(places) + 0.6)
            axes.set_xlabel("")
            axes.margins(y=0.18)
            verdict = "as predicted" if not wrong else f"{wrong} of {len(places)} WRONG"
            axes.set_title(f"{name}: {verdict}", color=_WRONG if wrong else "black")
        for axes in grid[:, 0]:
            axes.set_ylabel("power of $n$")
        figure.supxlabel(rf"layer (bar: predicted $\pm${atol:g})", fontsize=8)
        return figure


def _curves(axes: Any, table: CoordTable, stat: str, wanted: Mapping[str, Any], step: int, fit: slice) -> None:
    widths = np.asarray(table.widths, np.float64)
    fitted = np.zeros(len(widths), bool)
    fitted[fit] = True
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for number, layer in enumerate(table.layers):
        values = table.stats[stat][:, :, step, number]
        if wanted.get(layer) is None or not np.all(np.isfinite(values) & (values > 0)):
            continue
        mean, stderr = mean_and_stderr(np.log(values))
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(widths, np.exp(mean), color=colour, linestyle=LINES[number % len(LINES)], label=layer)
        for chosen, face in ((fitted, colour), (~fitted, "white")):
            marker = MARKERS[number % len(MARKERS)]
            axes.plot(widths[chosen], np.exp(mean[chosen]), marker, color=colour, markerfacecolor=face)
        axes.fill_between(widths, np.exp(mean - stderr), np.exp(mean + stderr), color=colour, alpha=0.25, linewidth=0)
        centred = np.log(widths) - np.log(widths[fitted]).mean()
        line = mean[fitted].mean() + float(wanted[layer]) * centred
        axes.plot(widths, np.exp(line), color="#555555", linewidth=0.7, zorder=1)
    axes.set_xticks(widths, [f"{width:g}" for width in widths])
    axes.minorticks_off()
    axes.set_xlabel("width $n$")
    axes.legend(loc="best", handlelength=2.6)


def _powers(
    axes: Any,
    table: CoordTable,
    stat: str,
    wanted: Mapping[str, Any],
    step: int,
    fit: slice,
    atol: float,
    start: float = 0.0,
) -> list[str]:
    """Measured and predicted powers of the layers that are wanted, from `start` on; returns those that are wrong."""
    wrong = []
    slopes = fit_slopes(table, stat, step=step, fit=fit)
    for number, layer in enumerate(table.layers):
        if wanted.get(layer) is None:
            continue
        target, slope = float(wanted[layer]), slopes[layer]
        place = start + number
        axes.bar(place, 2 * atol, bottom=target - atol, width=0.7, color="#d0d0d0", zorder=1)
        axes.plot([place - 0.35, place + 0.35], [target, target], color="#555555", linewidth=1.0, zorder=2)
        is_right = abs(slope.value - target) <= atol
        if not is_right:
            wrong.append(layer)
        if np.isfinite(slope.value):
            colour = COLOURS[number % len(COLOURS)] if is_right else _WRONG
            marker = MARKERS[number % len(MARKERS)] if is_right else "x"
            error = 2 * slope.stderr if np.isfinite(slope.stderr) else 0.0
            size = 4.0 if is_right else 7.0
            axes.errorbar(place, slope.value, yerr=error, color=colour, marker=marker, markersize=size, zorder=3)
        else:
            axes.text(place, target, "?", color=_WRONG, ha="center", va="center", fontweight="bold", zorder=3)
    axes.set_xticks(range(len(table.layers)), table.layers)
    axes.set_xlim(-0.6, len(table.layers) - 0.4)
    axes.set_xlabel(rf"layer (bar: predicted $\pm${atol:g})")
    return wrong

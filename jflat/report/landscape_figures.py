r"""Loss surfaces as contour lines, from stored arrays: panels that share their levels and their axes.

Lines carry their value, and the filling goes one way from light (low) to dark (high), so a picture says the same in
grey. Levels are round numbers, about even in the logarithm, in the range of all panels together: two surfaces can be
compared line by line. Points without a finite loss are left white.

Curves (a loss on a line, a path, a band) are drawn by `jflat.report.draw_panels`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jflat.core import check
from jflat.report.figure_style import MARKERS, Figure, empty_figure, styled

__all__ = ["Surface", "contours", "round_levels"]


class Surface(NamedTuple):
    """One panel."""

    x: ArrayLike
    """(n,) ascending: coordinates along the first direction."""
    y: ArrayLike
    """(m,) ascending: along the second."""
    losses: ArrayLike
    """(n, m), as `jflat.landscape.loss_surface` gives them."""
    points: Mapping[str, tuple[float, float]] = {}
    """Marked points by label."""
    trajectory: ArrayLike | None = None
    """(T, 2): a line with a dot for each point, and an open circle at its start."""


def round_levels(low: float, high: float, *, at_most: int = 9) -> np.ndarray:
    """Round numbers in [low, high], about even in the logarithm: as many as `at_most` allows of the series below.

    Six to a decade (1, 1.5, 2, 3, 5, 7), three (1, 2, 5), two (1, 3), or one; powers of ten are thinned out further.

    >>> round_levels(0.3, 30.0).tolist()
    [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    """
    inside = 0 < low < high < np.inf
    check.require(inside, "round_levels", "low and high", "must be positive, finite and ascending", (low, high))
    check.require_integer("round_levels", "at_most", at_most, 1)
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for series in _SERIES:
        levels = np.array([float(f"{s}e{k}") for k in powers for s in series])
        levels = levels[(levels >= low) & (levels <= high)]
        if len(levels) <= at_most:
            return levels
    return levels[:: -(-len(levels) // at_most)]


_SERIES = ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))


def contours(
    surfaces: Mapping[str, Surface],
    *,
    xlabel: str,
    ylabel: str,
    levels: Sequence[float] | None = None,
    columns: int = 2,
    width: float = 5.6,
) -> Figure:
    """Contour lines of losses on a plane, side by side, with the same levels and axes.

    Args:
      surfaces: by title.
      xlabel, ylabel: with their units.
      levels: two or more, ascending; None takes round numbers (`round_levels`) in the range of all finite losses, and
        evenly spaced ones where that range has fewer than three.
      columns: panels in a row.
      width: of the figure in inches; 5.6 suits a phone.

    Returns:
      A matplotlib figure.

    Raises:
      ValueError: without a surface, for shapes that do not fit, or where no loss is finite.

    >>> x = np.linspace(-1, 1, 5)
    >>> bowl = Surface(x, x, x[:, None] ** 2 + x**2)
    >>> len(contours({"a bowl": bowl}, xlabel="x", ylabel="y").axes)
    1
    """
    where = "contours"
    check.require(len(surfaces) > 0, where, "surfaces", "must have at least one", "none")
    check.require_integer(where, "columns", columns, 1)
    drawn = {title: _checked(title, surface) for title, surface in surfaces.items()}
    finite = np.concatenate([losses[np.isfinite(losses)] for _, _, losses in drawn.values()])
    check.require(finite.size > 0, where, "surfaces", "must have a finite loss", "none")
    chosen = np.asarray(levels if levels is not None else _levels(finite), float)
    ascends = chosen.ndim == 1 and chosen.size > 1 and bool(np.all(np.diff(chosen) > 0))
    check.require(ascends, where, "levels", "must be two or more and ascend", chosen.tolist())
    columns = min(columns, len(drawn))
    rows = -(-len(drawn) // columns)
    labels = list(dict.fromkeys(label for surface in surfaces.values() for label in surface.points))
    with styled(10 if columns < 3 else 8, lines_linewidth=1.0):
        box = (width - 0.6 - 0.3 * (columns - 1)) / columns
        figure = empty_figure(width, rows * (box + 0.4) + 0.5 + 0.28 * -(-len(labels) // 2))
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        handles: dict[str, Any] = {}
        for number, axes in enumerate(grid.ravel()):
            if number >= len(drawn):
                axes.set_visible(False)
                continue
            title = list(drawn)[number]
            _draw(axes, *drawn[title], chosen)
            _mark(axes, surfaces[title], labels, handles)
            axes.set_title(title)
            if number + columns >= len(drawn):
                axes.set_xlabel(xlabel)
                axes.xaxis.set_tick_params(labelbottom=True)
            if number % columns == 0:
                axes.set_ylabel(ylabel)
        if handles:
            figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2)
        return figure


def _checked(title: str, surface: Surface) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y, losses = (np.asarray(a, np.float64) for a in surface[:3])
    fits = x.ndim == y.ndim == 1 and losses.shape == (x.size, y.size) and min(x.size, y.size) >= 2
    shapes = x.shape, y.shape, losses.shape
    check.require(
        fits, "contours", repr(title), "must have x (n,), y (m,) and losses (n, m), n and m at least 2", shapes
    )
    return x, y, losses


def _levels(finite: np.ndarray) -> np.ndarray:
    low, high = float(finite.min()), float(finite.max())
    if 0 < low < high and len(levels := round_levels(low, high)) >= 3:
        return levels
    from matplotlib.ticker import MaxNLocator

    top = high if high > low else low + 1
    ticks = np.asarray(MaxNLocator(8).tick_values(low, top))
    return ticks[(ticks > low) & (ticks < top)]


def _draw(axes: Any, x: np.ndarray, y: np.ndarray, losses: np.ndarray, levels: np.ndarray) -> None:
    from matplotlib import colormaps

    shades = [tuple(shade) for shade in colormaps["Greys"](np.linspace(0.03, 0.55, levels.size + 1))]
    values = np.ma.masked_invalid(losses).T
    axes.contourf(x, y, values, levels, colors=shades, extend="both")
    if values.count() and values.min() < levels[-1] and values.max() > levels[0]:
        lines = axes.contour(x, y, values, levels, colors="#08306b", linewidths=0.9)
        axes.clabel(lines, fmt=lambda value: f"{value:.4g}", fontsize=7, inline_spacing=2)
    axes.set_box_aspect(1)
    axes.grid(False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)


def _mark(axes: Any, surface: Surface, labels: list[str], handles: dict[str, Any]) -> None:
    if surface.trajectory is not None:
        path = np.asarray(surface.trajectory, np.float64)
        axes.plot(*path.T, color="#D55E00", marker=".", markersize=4, linewidth=1.2)
        axes.plot(*path[0], color="#D55E00", marker="o", markersize=7, markerfacecolor="white", linestyle="none")
    for label, place in surface.points.items():
        number = labels.index(label)
        style: Any = {"marker": MARKERS[number % len(MARKERS)], "color": "black", "markersize": 8, "linestyle": "none"}
        handle = axes.plot(*place, label=label, markerfacecolor="white", markeredgewidth=1.3, **style)[0]
        handles.setdefault(label, handle)

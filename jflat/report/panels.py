"""Panels of theory lines and measured points with error bars, told apart in grey by dashes and marker shapes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jflat.core import check
from jflat.report.figure_style import COLOURS, LINES, MARKERS, Figure, empty_figure, styled

__all__ = ["Panel", "Series", "draw_panels"]

_REFERENCE: Any = {"color": "#555555", "linewidth": 1.4, "zorder": 1}
_REFERENCE_LINES: Any = ((0, (1, 1.5)), (0, (6, 2)), (0, (6, 2, 1, 2)), (0, (2.5, 1.5)))


class Series(NamedTuple):
    """One colour, dash and marker: a line, points, or both."""

    line: tuple[ArrayLike, ArrayLike] | None = None
    """(x, y) of the theory, or of what joins the points."""
    points: tuple[ArrayLike, ArrayLike, ArrayLike] | None = None
    """(x, mean, error) of the measurement; the error is (n,), or (2, n) below and above; NaN is no bar."""
    x_error: ArrayLike | None = None
    """Of x, where that is measured too."""
    note: str = ""
    """Written at the last point of the line."""


class Panel(NamedTuple):
    """One pair of axes."""

    title: str
    """Above the axes."""
    ylabel: str
    """With its unit."""
    series: Mapping[str, Series]
    """By label; a label has one style in all panels."""
    levels: Mapping[str, float] = {}
    """Horizontal lines by label, grey."""
    places: Mapping[str, float] = {}
    """Vertical lines by label, grey."""
    lowest: float | None = None
    """Lower end of the vertical axis."""
    log_y: bool = False
    """Whether the vertical axis is logarithmic."""


def draw_panels(
    panels: Sequence[Panel],
    *,
    xlabel: str,
    log_x: bool = True,
    height: float = 2.9,
    xticks: ArrayLike | None = None,
) -> Figure:
    """Panels below each other with one horizontal axis and one legend.

    Args:
      panels: from the top.
      xlabel: with its unit.
      log_x: whether the horizontal axis is logarithmic.
      height: of a panel in inches; the width is 5.6, which suits a phone.
      xticks: places of the ticks of the horizontal axis, for few values such as widths; None leaves them to matplotlib.

    Returns:
      A matplotlib figure, for `figures.save_figure` or a `Picture`.

    Raises:
      ValueError: without panels.

    >>> theory, measured = ([0.0, 1.0], [1.0, 0.0]), ([0.5], [0.4], [0.1])
    >>> panel = Panel("a title", "fraction", {"N = 10": Series(theory, measured)}, places={"capacity": 0.8})
    >>> len(draw_panels([panel], xlabel="load", log_x=False).axes)
    1
    """
    check.require(len(panels) > 0, "draw_panels", "panels", "must have at least one", len(panels))
    labels = list(dict.fromkeys(label for panel in panels for label in panel.series))
    references = list(dict.fromkeys(label for panel in panels for label in (*panel.levels, *panel.places)))
    with styled(11, lines_linewidth=1.9, lines_markersize=6):
        figure = empty_figure(5.6, height * len(panels) + 0.35 + 0.24 * -(-(len(labels) + len(references)) // 2))
        axes_list = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        handles: dict[str, Any] = {}
        for panel, axes in zip(panels, axes_list, strict=True):
            for label, series in panel.series.items():
                handles.setdefault(label, _draw(axes, series, labels.index(label)))
            for draw, lines in ((axes.axhline, panel.levels), (axes.axvline, panel.places)):
                for label, value in lines.items():
                    dashes = _REFERENCE_LINES[references.index(label) % len(_REFERENCE_LINES)]
                    handles.setdefault(label, draw(value, linestyle=dashes, **_REFERENCE))
            axes.set_title(panel.title)
            axes.set_ylabel(panel.ylabel)
            if log_x:
                axes.set_xscale("log")
            if panel.log_y:
                axes.set_yscale("log")
            if panel.lowest is not None:
                axes.set_ylim(bottom=panel.lowest)
        axes_list[-1].set_xlabel(xlabel)
        if xticks is not None:
            places = np.asarray(xticks, np.float64)
            axes_list[-1].set_xticks(places, [f"{tick:g}" for tick in places])
            axes_list[-1].xaxis.set_ticks([], minor=True)
        figure.legend(
            [handles[label] for label in (*labels, *references)],
            [*labels, *references],
            loc="outside lower center",
            ncols=2,
            handlelength=3.4,
            columnspacing=1.4,
        )
        return figure


def _draw(axes: Any, series: Series, number: int) -> Any:
    """Draw one series and return what the legend shows for it."""
    style: Any = {"color": COLOURS[number % len(COLOURS)]}
    marks: Any = style | {"marker": MARKERS[number % len(MARKERS)], "markerfacecolor": "white"}
    dashes: Any = style | {"linestyle": LINES[number % len(LINES)]}
    if series.line is not None:
        x, y = map(np.asarray, series.line)
        axes.plot(x, y, **dashes)
        if series.note and x.size:
            axes.annotate(series.note, (x[-1], y[-1]), (4, 0), textcoords="offset points", fontsize=9, va="center")
    if series.points is not None:
        x, mean, error = map(np.asarray, series.points)
        errors = np.nan_to_num(error), None if series.x_error is None else np.nan_to_num(np.asarray(series.x_error))
        axes.errorbar(x, mean, *errors, linestyle="none", capsize=3, elinewidth=1.2, **marks)
    both = marks if series.points is not None else {}
    dash = dashes if series.line is not None else style | {"linestyle": "none"}
    return axes.plot([], [], **(dash | both))[0]

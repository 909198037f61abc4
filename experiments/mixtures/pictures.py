"""Panels of theory lines and simulated points with error bars, told apart in grey by dashes and marker shapes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jflat.report.figure_style import COLOURS, LINES, MARKERS, Figure, empty_figure, styled

__all__ = ["Panel", "Series", "draw_panels"]


class Series(NamedTuple):
    """One colour, dash and marker: a line, points, or both."""

    line: tuple[np.ndarray, np.ndarray] | None = None
    """(x, y) of the theory."""
    points: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    """(x, mean, standard error) of the simulation."""


class Panel(NamedTuple):
    """One pair of axes."""

    title: str
    ylabel: str
    series: Mapping[str, Series]
    """By label; a label has one style in all panels."""
    levels: Mapping[str, float] = {}
    """Horizontal lines by label, grey and dotted."""
    lowest: float | None = None
    """Lower end of the vertical axis."""


def draw_panels(panels: Sequence[Panel], *, xlabel: str, log_x: bool = True, height: float = 2.9) -> Figure:
    """Panels below each other with one horizontal axis and one legend."""
    labels = list(dict.fromkeys(label for panel in panels for label in panel.series))
    with styled(11, lines_linewidth=1.9, lines_markersize=6):
        figure = empty_figure(5.6, height * len(panels) + 0.9)
        axes_list = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        handles: dict[str, Any] = {}
        for panel, axes in zip(panels, axes_list, strict=True):
            for label, series in panel.series.items():
                style: Any = {"color": COLOURS[labels.index(label) % len(COLOURS)]}
                marks: Any = style | {"marker": MARKERS[labels.index(label) % len(MARKERS)], "markerfacecolor": "white"}
                dashes: Any = style | {"linestyle": LINES[labels.index(label) % len(LINES)]}
                if series.line is not None:
                    axes.plot(*series.line, **dashes)
                if series.points is not None:
                    x, mean, stderr = series.points
                    axes.errorbar(x, mean, np.nan_to_num(stderr), linestyle="none", capsize=3, **marks)
                both = marks if series.points is not None else {}
                dash = dashes if series.line is not None else style | {"linestyle": "none"}
                handles.setdefault(label, axes.plot([], [], **(dash | both))[0])
            for label, value in panel.levels.items():
                handle = axes.axhline(value, color="#555555", linestyle=(0, (1, 1.5)), linewidth=1.4, zorder=1)
                handles.setdefault(label, handle)
            axes.set_title(panel.title)
            axes.set_ylabel(panel.ylabel)
            if log_x:
                axes.set_xscale("log")
            if panel.lowest is not None:
                axes.set_ylim(bottom=panel.lowest)
        axes_list[-1].set_xlabel(xlabel)
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=2,
            handlelength=3.4,
            columnspacing=1.4,
        )
        return figure

"""What all figures share: palette, line styles, markers, and an empty figure without any global state of matplotlib.

Series differ by colour (the palette of Okabe & Ito, safe for the colour-blind), by line style and by marker, so they
stay apart in grey. matplotlib is imported inside the functions.
"""

from typing import Any

__all__ = ["COLOURS", "LINES", "MARKERS", "Figure", "empty_figure", "styled"]

Figure = Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#8C6D31")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)), (0, (4, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "jflat",  # so that the same figure gives the same bytes
    "pdf.fonttype": 42,
}


def styled(size: float, **more: Any) -> Any:
    """A context in which figures are made: text of `size` points, ticks and legends one point smaller.

    `more` are further matplotlib settings, with underscores for dots: `lines_linewidth=1.2`.
    """
    from matplotlib import rc_context

    sizes: Any = {"font.size": size, "axes.titlesize": size, "axes.labelsize": size}
    sizes |= dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), size - 1)
    return rc_context(_STYLE | sizes | {name.replace("_", ".", 1): value for name, value in more.items()})


def empty_figure(width: float, height: float) -> Figure:
    """A figure of so many inches. Call it inside `styled`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MatplotlibFigure

    figure = MatplotlibFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure

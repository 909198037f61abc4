"""Pictures of the experiments on critical points that `draw_panels` does not have."""

from collections.abc import Callable, Mapping

import numpy as np

from jflat.report.figure_style import COLOURS, MARKERS, Figure, empty_figure, styled

__all__ = ["index_and_loss", "plain_scatter", "plane", "sorted_runs"]


def plane(
    loss: Callable[[np.ndarray, np.ndarray], np.ndarray],
    half_width: float,
    points: Mapping[str, np.ndarray],
    special: Mapping[str, tuple[float, float]],
) -> Figure:
    """Marked points (n, 2) on the level lines of a loss on [-w, w]^2, and special points with their names.

    >>> len(plane(lambda x, y: x**2 + y**2, 1.0, {"starts": np.ones((1, 2))}, {"minimum": (0.0, 0.0)}).axes)
    1
    """
    line = np.linspace(-1.06 * half_width, 1.06 * half_width, 161)
    x, y = np.meshgrid(line, line)
    values = np.log10(loss(x, y) - loss(x, y).min() + 1)
    with styled(11):
        figure = empty_figure(5.6, 5.4)
        axes = figure.subplots()
        axes.contourf(x, y, values, levels=18, cmap="Greys", alpha=0.55)
        for number, (label, where) in enumerate(points.items()):
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            axes.scatter(where[:, 0], where[:, 1], label=label, s=34, edgecolors="white", linewidths=0.6, **style)
        for number, (label, (a, b)) in enumerate(special.items()):
            axes.scatter(
                [a],
                [b],
                marker="*" if number == 0 else "X",
                s=170,
                color="black",
                edgecolors="white",
                zorder=4,
                label=label,
            )
        axes.set_xlabel("$x$")
        axes.set_ylabel("$y$")
        axes.grid(False)
        figure.legend(loc="outside lower center", ncols=2)
        return figure


def index_and_loss(known: tuple[np.ndarray, np.ndarray], found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Index fraction against loss: the analytic points small and grey beneath, found ones above them, by method.

    >>> one = np.ones(1)
    >>> len(index_and_loss((one, one), {"a method": (one, one)}).axes)
    1
    """
    with styled(11):
        figure = empty_figure(5.6, 4.6)
        axes = figure.subplots()
        axes.scatter(*known, s=5, color="#999999", linewidths=0, label=f"all {len(known[0])} analytic points")
        for number, (label, (loss, fraction)) in enumerate(found.items()):
            style = {"edgecolors": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            axes.scatter(loss, fraction, label=label, s=44 + 26 * number, facecolors="none", linewidths=1.3, **style)
        axes.set_xlabel("loss")
        axes.set_ylabel("negative eigenvalues / parameters")
        figure.legend(loc="outside lower center", ncols=2)
        return figure


def sorted_runs(values: Mapping[str, np.ndarray], levels: Mapping[str, float], *, ylabel: str) -> Figure:
    """Positive numbers of runs, sorted, against the share of runs that are below; logarithmic.

    >>> len(sorted_runs({"a": np.ones(3)}, {"success": 0.1}, ylabel="number").axes)
    1
    """
    with styled(11, lines_linewidth=1.9):
        figure = empty_figure(5.6, 3.9)
        axes = figure.subplots()
        for number, (label, numbers) in enumerate(values.items()):
            ordered = np.sort(np.maximum(np.asarray(numbers, float), 1e-40))
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            axes.plot((np.arange(len(ordered)) + 0.5) / len(ordered), ordered, label=label, markersize=3.5, **style)
        for label, level in levels.items():
            axes.axhline(level, linestyle=(0, (1, 1.5)), color="#555555", label=label)
        axes.set_yscale("log")
        axes.set_xlabel("share of runs")
        axes.set_ylabel(ylabel)
        figure.legend(loc="outside lower center", ncols=2)
        return figure


def plain_scatter(
    groups: Mapping[str, tuple[np.ndarray, np.ndarray]], *, xlabel: str, ylabel: str, lines: tuple[float, float]
) -> Figure:
    """Points by label, with a dotted vertical and a dotted horizontal line.

    >>> one = np.ones(1)
    >>> len(plain_scatter({"a": (one, one)}, xlabel="x", ylabel="y", lines=(0.5, 0.5)).axes)
    1
    """
    with styled(11):
        figure = empty_figure(5.6, 4.4)
        axes = figure.subplots()
        for number, (label, (x, y)) in enumerate(groups.items()):
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            axes.scatter(x, y, label=label, s=38, alpha=0.8, linewidths=0, **style)
        axes.axvline(lines[0], linestyle=(0, (1, 1.5)), color="#555555")
        axes.axhline(lines[1], linestyle=(0, (1, 1.5)), color="#555555")
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        figure.legend(loc="outside lower center", ncols=2)
        return figure

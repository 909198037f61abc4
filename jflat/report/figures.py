"""Figures from stored arrays: curves with bands over seeds, energies against scale, spectra, scatter plots.

Every function takes arrays by label (`spectrum`: results) and returns a new matplotlib `Figure`; nothing is shown, and
no global state of matplotlib is read or left changed (no pyplot). Sizes are chosen for a phone: 5.6 inches wide with 11
point text, which is legible when the picture is scaled to 360 points. `spectrum` is made for print, at the width of a
column or of a page.

matplotlib is imported inside the functions.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jflat.core import check
from jflat.report.figure_style import COLOURS, LINES, MARKERS, Figure, empty_figure, styled
from jflat.report.spectrum_figure import spectrum
from jflat.report.statistics import mean_and_stderr, spearman, spearman_within
from jflat.report.store import write_atomically

__all__ = ["local_energy", "save_figure", "scatter", "spectral_density", "spectrum", "training_curves"]

_WIDTH = 5.6


def _style(number: int) -> dict[str, Any]:
    n = len(COLOURS)
    return {"color": COLOURS[number % n], "linestyle": LINES[number % n], "marker": MARKERS[number % n]}


def _new_figure(title: str, xlabel: str, ylabel: str, num_labels: int) -> tuple[Figure, Any]:
    """A figure whose height leaves room for the rows of the legend, and its axes. Call it inside `_styled`."""
    figure = empty_figure(_WIDTH, 3.7 + 0.24 * -(-num_labels // 2))
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def _styled() -> Any:
    return styled(11, lines_linewidth=1.9, lines_markersize=5.5)


def _finish(figure: Figure, axes: Any) -> Figure:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, handlelength=3.2, columnspacing=1.4)
    elif labels:
        axes.set_title("\n".join(filter(None, [axes.get_title(), labels[0]])))
    return figure


def _by_seed(where: str, label: str, values: ArrayLike, length: int) -> np.ndarray:
    array = np.atleast_2d(np.asarray(values, np.float64))
    rule = f"must have shape (seeds, {length}) or ({length},)"
    check.require(array.ndim == 2 and array.shape[1] == length, where, f"{label!r}", rule, np.shape(values))
    return array


def _marked(length: int, number: int, num_labels: int) -> tuple[int, int]:
    """`markevery` for about eight markers on a line of so many points, staggered where lines may lie on each other."""
    every = max(1, length // 8)
    return (number * every // num_labels, every)


def training_curves(
    steps: ArrayLike,
    curves: Mapping[str, ArrayLike],
    *,
    ylabel: str,
    xlabel: str = "gradient evaluations",
    title: str = "",
    log_y: bool = False,
) -> Figure:
    """Curves over training: the median over seeds, with a band from the 10 % to the 90 % quantile of the seeds.

    Args:
      steps: (T,) positions; or pass costs that make methods comparable, gradient evaluations rather than steps.
      curves: by label, (S, T) or (T,); NaN (a run that diverged) is left out of the quantiles at its step.
      ylabel: with its unit.
      xlabel: what `steps` counts.
      title: above the axes.
      log_y: logarithmic vertical axis.
    """
    places = np.asarray(steps)
    with _styled():
        figure, axes = _new_figure(title, xlabel, ylabel, len(curves))
        for number, (label, values) in enumerate(curves.items()):
            runs = np.ma.masked_invalid(_by_seed("training_curves", label, values, places.size))
            low, middle, high = np.ma.filled(_quantiles(runs, (0.1, 0.5, 0.9)), np.nan)
            style = _style(number)
            axes.plot(places, middle, label=label, markevery=_marked(places.size, number, len(curves)), **style)
            if len(runs) > 1:
                axes.fill_between(places, low, high, color=style["color"], alpha=0.18, linewidth=0)
        if log_y:
            axes.set_yscale("log")
        return _finish(figure, axes)


def _quantiles(runs: np.ma.MaskedArray, levels: Sequence[float]) -> np.ma.MaskedArray:
    """Quantiles over the first axis of what is not masked; masked where nothing is left."""
    columns = [column.compressed() for column in runs.T]
    rows = [np.quantile(c, levels) if c.size else np.full(len(levels), np.nan) for c in columns]
    return np.ma.masked_invalid(np.stack(rows, axis=1))


def local_energy(
    scales: ArrayLike,
    energies: Mapping[str, ArrayLike],
    *,
    ylabel: str = "rise of the training error",
    xlabel: str = r"relative size of the perturbation $\sigma$",
    title: str = "",
    log_y: bool = False,
) -> Figure:
    """Local energy against the scale of the perturbation, per method: mean over seeds, band of one standard error.

    Args:
      scales: (K,) the sigmas.
      energies: by label, (S, K) or (K,).
      ylabel, xlabel: with their units.
      title: above the axes.
      log_y: logarithmic vertical axis.
    """
    places = np.asarray(scales)
    with _styled():
        figure, axes = _new_figure(title, xlabel, ylabel, len(energies))
        for number, (label, values) in enumerate(energies.items()):
            mean, stderr = mean_and_stderr(_by_seed("local_energy", label, values, places.size))
            style = _style(number)
            axes.plot(places, mean, label=label, markevery=_marked(places.size, number, len(energies)), **style)
            if not np.all(np.isnan(stderr)):
                axes.fill_between(places, mean - stderr, mean + stderr, color=style["color"], alpha=0.22, linewidth=0)
        if log_y:
            axes.set_yscale("log")
        return _finish(figure, axes)


def spectral_density(
    grids: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    xlabel: str = r"Hessian eigenvalue $\lambda$",
    ylabel: str = r"density per unit of $\lambda$",
    title: str = "",
    num_decades: float = 7.0,
) -> Figure:
    """Spectral densities on a logarithmic vertical axis.

    Args:
      grids: by label, (eigenvalues (n,), density (n,)), density at least 0.
      xlabel, ylabel: with their units.
      title: above the axes.
      num_decades: how far below its maximum the vertical axis goes; what lies lower is not drawn.
    """
    check.require(len(grids) > 0, "spectral_density", "grids", "must have at least one density", "none")
    with _styled():
        figure, axes = _new_figure(title, xlabel, ylabel, len(grids))
        top = max(float(np.max(np.asarray(density))) for _, density in grids.values())
        rule = "must have a positive finite maximum"
        check.require(np.isfinite(top) and top > 0, "spectral_density", "grids", rule, top)
        floor = top * 10.0**-num_decades
        for number, (label, (places, density)) in enumerate(grids.items()):
            x, y = np.asarray(places, np.float64), np.asarray(density, np.float64)
            same = x.ndim == 1 and x.shape == y.shape
            check.require(
                same, "spectral_density", f"{label!r}", "must be two vectors of one length", (x.shape, y.shape)
            )
            markevery = _marked(x.size, number, len(grids))
            axes.plot(x, np.where(y >= floor, y, np.nan), label=label, markevery=markevery, **_style(number))
        axes.axvline(0.0, color="#777777", linewidth=0.8, zorder=0)
        axes.set_yscale("log")
        axes.set_ylim(floor, 3 * top)
        return _finish(figure, axes)


def scatter(
    x: Mapping[str, ArrayLike],
    y: Mapping[str, ArrayLike],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    log_x: bool = False,
) -> Figure:
    """One point per run, one colour and marker per method; the rank correlations stand in the title.

    "All runs" is Spearman's correlation of all points; "within methods" is `spearman_within`, which a difference
    between the methods alone cannot produce. Points with a value that is not finite are left out and counted there.

    Args:
      x: flatness, by label, (S,).
      y: test error, by the same labels, (S,).
      xlabel, ylabel: with their units.
      title: first line of the title.
      log_x: logarithmic horizontal axis (points at or below 0 are left out and counted).

    Raises:
      ValueError: if x and y have different labels or lengths.
    """
    check.require(list(x) == list(y), "scatter", "y", f"must have the labels of x, {list(x)}", list(y))
    kept_x, kept_y, groups, dropped = [], [], [], 0
    with _styled():
        figure, axes = _new_figure(title, xlabel, ylabel, len(x))
        for number, label in enumerate(x):
            a, b = np.asarray(x[label], np.float64), np.asarray(y[label], np.float64)
            same = a.ndim == 1 and a.shape == b.shape
            check.require(same, "scatter", f"{label!r}", "must be two vectors of one length", (a.shape, b.shape))
            good = np.isfinite(a) & np.isfinite(b) & ((a > 0) | (not log_x))
            dropped += int(np.sum(~good))
            kept_x.append(a[good])
            kept_y.append(b[good])
            groups.append(np.full(int(np.sum(good)), number))
            style = _style(number)
            marks = {"color": style["color"], "marker": style["marker"], "s": 34, "alpha": 0.8, "linewidth": 0}
            axes.scatter(a[good], b[good], label=label, **marks)
        if log_x:
            _log_x(axes)
        points = np.concatenate(kept_x), np.concatenate(kept_y), np.concatenate(groups)
        lines = [title] if title else []
        if points[0].size >= 2:
            parts = [f"rank correlation: all runs {_signed(spearman(*points[:2]))}"]
            if len(x) > 1:
                parts.append(f"within methods {_signed(spearman_within(*points))}")
            lines.append(", ".join(parts))
        if dropped:
            lines.append(f"{dropped} of {dropped + points[0].size} runs left out (no finite value)")
        axes.set_title("\n".join(lines))
        return _finish(figure, axes)


def _log_x(axes: Any) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 times the powers of ten (below three decades)."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high < 1e3 * low:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _signed(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:+.2f}".replace("-", "−")


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 160) -> pathlib.Path:
    """Write a figure as .png, .svg or .pdf, in one step, and return the path.

    Pictures have `dpi` dots per inch (160 give 896 points across at 5.6 inches; papers ask for 300 or more). The file
    has no date in it: the same figure gives the same bytes.

    Raises:
      ValueError: for another ending.
    """
    target = pathlib.Path(path)
    nameless: dict[str, dict[str, Any]] = {
        ".png": {"Software": None},
        ".svg": {"Date": None},
        ".pdf": {"CreationDate": None},
    }
    rule = f"must end in {', '.join(nameless)}"
    check.require(target.suffix in nameless, "save_figure", "path", rule, target.name)
    kind: Any = {"format": target.suffix[1:], "metadata": nameless[target.suffix]}
    with _styled():
        write_atomically(target, lambda file: figure.savefig(file, dpi=dpi, **kind))
    return target

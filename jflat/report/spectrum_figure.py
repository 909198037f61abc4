r"""The spectrum of a network as a figure for print: bulk and outliers in one picture, with errors, and layer by layer.

Eigenvalues of a network's Hessian span many decades on both sides of zero. So the horizontal axis is
asinh(lambda / lambda_0), linear within lambda_0 of zero and logarithmic beyond, and `jflat.curvature.smooth_density`
smooths by a Gaussian of one width h on that axis: over h lambda_0 in the bulk and over h |lambda| at an outlier, still
a density per unit of lambda that integrates to one. One eigenvalue of P alone has the peak

    1 / (P h sqrt(2 pi (lambda^2 + lambda_0^2))):

a computed eigenvalue is drawn as a stick of that height, so that sticks count what the curve shows, and show what it is
too uncertain for.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import check
from jflat.curvature import DensityResult, EigenResult, density_grid, smooth_density
from jflat.report.figure_style import COLOURS, LINES, MARKERS, Figure, empty_figure, styled
from jflat.report.statistics import mean_and_stderr

__all__ = ["spectrum"]

Densities = Mapping[str, DensityResult | Sequence[DensityResult]]
Eigenvalues = Mapping[str, EigenResult | Sequence[EigenResult]]

_SIZES = {"column": 3.4, "page": 7.0}


class _Curve(NamedTuple):
    """One density; several runs are seeds or checkpoints. Only probes that did not fail."""

    runs: list[DensityResult]

    def on(self, grid: np.ndarray, linear: float, width: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard error on the grid: over runs where there are several, else over the probes of the one."""
        curves = [smooth_density(run, jnp.asarray(grid), width, linear=linear) for run in self.runs]
        means, stderrs = np.asarray(curves, np.float64).swapaxes(0, 1)
        return mean_and_stderr(means) if len(means) > 1 else (means[0], stderrs[0])


class _Sticks(NamedTuple):
    """Computed eigenvalues (t,), how uncertain they are, and P."""

    values: np.ndarray
    errors: np.ndarray
    size: int


def spectrum(
    densities: Densities,
    eigenvalues: Eigenvalues | None = None,
    *,
    blocks: Densities | None = None,
    block_eigenvalues: Eigenvalues | None = None,
    size: str = "column",
    linear: float | None = None,
    width: float = 0.15,
    xlabel: str = r"eigenvalue $\lambda$",
    ylabel: str = r"density $\rho(\lambda)$",
    title: str = "",
    block_title: str = "",
) -> Figure:
    """The spectrum of a network, for print: densities on a logarithmic axis, computed eigenvalues as sticks on them.

    Args:
      densities: by label (say H and G), the result of `jflat.curvature.spectral_density`; for several seeds or
        checkpoints a sequence of results, or one result of a `vmap` with leaves (S, ...).
      eigenvalues: by the same labels, or some of them, the result of `jflat.curvature.eigenpairs`; likewise for seeds.
        Sticks stand at the mean over seeds of the k-th eigenvalue; a horizontal bar is one standard error over seeds,
        or for one result the residual, within which an eigenvalue lies.
      blocks, block_eigenvalues: the same of diagonal blocks (operators with a `mask`), drawn in a panel of their own.
        Each density integrates to one over its block.
      size: "column" (3.4 inches wide, panels one over the other) or "page" (7 inches, side by side).
      linear: lambda_0, in units of the operator; None is 1e-3 of the largest node.
      width: h, the standard deviation of the smoothing on the axis asinh(lambda / lambda_0), so about relative; above
        0.5 outliers merge, below 0.1 the separate nodes of the bulk show.
      xlabel, ylabel: with their units.
      title, block_title: above the panels.

    Returns:
      A matplotlib `Figure`, for `figures.save_figure`. Bands are one standard error, over seeds where there are several
      (that of the probes is in it), else over probes. Probes and seeds that failed are left out; the legend counts
      those drawn.

    Raises:
      ValueError: without a density, for labels of eigenvalues that no density has, or where every probe failed.
    """
    check.require(len(densities) > 0, "spectrum", "densities", "must have at least one density", "none")
    check.require_choice("spectrum", "size", size, tuple(_SIZES))
    check.require_number("spectrum", "width", width, 0.0, exclusive=True)
    panels = [(title, *_read(densities, eigenvalues))]
    if blocks:
        panels.append((block_title, *_read(blocks, block_eigenvalues)))
    everything = _pooled([run for _, curves, _ in panels for curve in curves.values() for run in curve.runs])
    linear = (1e-3 * float(np.max(np.abs(everything.nodes))) or 1.0) if linear is None else linear
    check.require_number("spectrum", "linear", linear, 0.0, exclusive=True)
    grid = np.asarray(density_grid(everything, 1200, width=width, linear=linear)[0], np.float64)

    is_column = size == "column"
    wide = is_column or len(panels) == 1
    height = (2.35 * len(panels) + 0.1) if is_column else 3.0
    with styled(8, axes_linewidth=0.6, lines_linewidth=1.2, lines_markersize=2.6, grid_linewidth=0.4):
        figure = empty_figure(_SIZES[size], height)
        shape = (len(panels), 1) if wide else (1, len(panels))
        all_axes = figure.subplots(*shape, squeeze=False, sharex=True).ravel()
        for number, (axes, (head, curves, sticks)) in enumerate(zip(all_axes, panels, strict=True)):
            _draw(axes, curves, sticks, grid, linear, width)
            letter = f"({'ab'[number]}) " if len(panels) > 1 else ""
            axes.set_title((letter + head).strip(), loc="left")
            if not (is_column and number + 1 < len(panels)):
                axes.set_xlabel(xlabel)
            if wide or number == 0:
                axes.set_ylabel(ylabel)
        return figure


def _read(densities: Densities, eigenvalues: Eigenvalues | None) -> tuple[dict[str, _Curve], dict[str, _Sticks]]:
    curves = {label: _curve(label, result) for label, result in densities.items()}
    for label in eigenvalues or {}:
        check.require(label in curves, "spectrum", "eigenvalues", f"must be labelled as {list(curves)}", repr(label))
    return curves, {label: _sticks(label, result) for label, result in (eigenvalues or {}).items()}


def _curve(label: str, result: DensityResult | Sequence[DensityResult]) -> _Curve:
    runs = []
    for one in [result] if isinstance(result, DensityResult) else result:
        nodes, weights = np.asarray(one.nodes), np.asarray(one.weights)
        shape = (-1, *nodes.shape[-2:])
        for n, w in zip(nodes.reshape(shape), weights.reshape(shape), strict=True):
            good = np.all(np.isfinite(n) & np.isfinite(w), axis=1)
            if good.any():
                runs.append(DensityResult(jnp.asarray(n[good]), jnp.asarray(w[good]), one.num_matvecs, one.status))
    check.require(len(runs) > 0, "spectrum", f"{label!r}", "must have a probe that did not fail", "none")
    return _Curve(runs)


def _pooled(runs: list[DensityResult]) -> DensityResult:
    """The nodes of all runs, whose numbers of steps may differ, as one probe: what a common grid must cover."""
    nodes, weights = (jnp.concatenate([getattr(r, name).ravel() for r in runs])[None] for name in ("nodes", "weights"))
    return DensityResult(nodes, weights, runs[0].num_matvecs, runs[0].status)


def _sticks(label: str, result: EigenResult | Sequence[EigenResult]) -> _Sticks:
    results = [result] if isinstance(result, EigenResult) else list(result)
    numbers = np.concatenate([np.atleast_2d(np.asarray(r.values, np.float64)) for r in results])
    residuals = np.concatenate([np.atleast_2d(np.asarray(r.residuals, np.float64)) for r in results])
    leaves = jax.tree.leaves(results[0].vectors)
    size = sum(leaf.size for leaf in leaves) // np.asarray(results[0].values).size
    good = np.all(np.isfinite(numbers), axis=1)
    check.require(bool(good.any()), "spectrum", f"{label!r}", "must have finite eigenvalues", "none")
    mean, stderr = mean_and_stderr(numbers[good])
    return _Sticks(mean, residuals[good][0] if good.sum() == 1 else stderr, size)


def _draw(
    axes: Any,
    curves: Mapping[str, _Curve],
    sticks: Mapping[str, _Sticks],
    grid: np.ndarray,
    linear: float,
    width: float,
) -> None:
    drawn = {label: curve.on(grid, linear, width) for label, curve in curves.items()}
    top = max(float(mean.max()) for mean, _ in drawn.values())

    def height(stick: _Sticks) -> np.ndarray:
        return 1 / (stick.size * width * np.sqrt(2 * np.pi * (stick.values**2 + linear**2)))

    floor = min([float(height(s).min()) for s in sticks.values()], default=3e-7 * top) / 3
    axes.set_xscale("asinh", linear_width=linear)
    axes.set_yscale("log")
    _ticks(axes, grid, linear)
    axes.set_xlim(grid[0], grid[-1])
    axes.set_ylim(floor, 4 * top)
    axes.axvline(0.0, color="#777777", linewidth=0.5, zorder=0)
    for number, (label, (mean, stderr)) in enumerate(drawn.items()):
        colour, line = COLOURS[number % len(COLOURS)], LINES[number % len(LINES)]
        axes.plot(grid, np.where(mean >= floor, mean, np.nan), color=colour, linestyle=line, label=label)
        if np.all(np.isfinite(stderr)):
            low, high = np.maximum(mean - stderr, floor / 10), mean + stderr
            axes.fill_between(grid, low, high, where=high >= floor, color=colour, alpha=0.25, linewidth=0)
        if label in sticks:
            stick, is_first = sticks[label], number == 0
            heights, face = height(stick), colour if is_first else "none"
            size = 2.4 if is_first else 3.6
            axes.vlines(stick.values, floor, heights, color=colour, linewidth=0.5, alpha=0.55)
            marks = {"marker": MARKERS[number % len(MARKERS)], "markersize": size, "markerfacecolor": face}
            axes.errorbar(
                stick.values,
                heights,
                xerr=stick.errors,
                color=colour,
                linestyle="none",
                elinewidth=0.6,
                mew=0.6,
                **marks,
            )
    _legend(axes, curves, sticks)


def _ticks(axes: Any, grid: np.ndarray, linear: float) -> None:
    """Powers of ten on both sides, as many as fit, none within lambda_0 of zero but zero."""
    from matplotlib.ticker import FixedLocator, LogFormatterSciNotation, NullFormatter

    first = int(np.ceil(np.log10(linear)))
    powers = [10.0**k for k in range(first, first + 40) if 10.0**k <= max(grid[-1], -grid[0])]
    chosen = [-p for p in powers if -p >= grid[0]] + [0.0] + [p for p in powers if p <= grid[-1]]
    axes.xaxis.set_major_locator(FixedLocator(chosen))
    axes.xaxis.set_major_formatter(LogFormatterSciNotation())
    minor = [s * p * k for s in (-1, 1) for p in [powers[0] / 10, *powers] for k in range(2, 10)] if powers else []
    axes.xaxis.set_minor_locator(FixedLocator([x for x in minor if grid[0] <= x <= grid[-1] and abs(x) >= linear]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_on()


def _legend(axes: Any, curves: Mapping[str, _Curve], sticks: Mapping[str, _Sticks]) -> None:
    """The curves by label, what a stick is, and what the bands are."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles, labels = axes.get_legend_handles_labels()
    if sticks:
        handles.append(Line2D([], [], color="#444444", marker="o", markersize=2.4, linewidth=0.5))
        labels.append("one eigenvalue")
    counts = {len(c.runs) for c in curves.values()}, {len(run.nodes) for c in curves.values() for run in c.runs}
    number, what = (counts[1], "probe") if counts[0] == {1} else (counts[0], "seed")
    if max(number) > 1:
        span = f"{min(number)}" if len(number) == 1 else f"{min(number)}–{max(number)}"
        handles.append(Patch(color="#444444", alpha=0.25, linewidth=0))
        labels.append(f"1 s.e. of {span} {what}s")
    axes.legend(handles, labels, loc="upper right", handlelength=2.0, borderaxespad=0.1, labelspacing=0.3)

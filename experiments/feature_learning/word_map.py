"""Maps of word embeddings: the two principal directions of a few pairs, such as capitals and their countries."""

from collections.abc import Mapping, Sequence

import numpy as np

from jflat.report.figure_style import COLOURS, Figure, empty_figure, styled

__all__ = ["draw_maps", "principal_coordinates"]


def principal_coordinates(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of vectors of length one, from their inner products alone.

    Args:
      gram: (2 P, 2 P) inner products of a_1, b_1, a_2, b_2, ...; normalised here.

    Returns:
      (coordinates, shares): (2 P, 2), with b - a positive on average in both, and the shares (2,) of the variance.

    >>> points = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    >>> principal_coordinates(points @ points.T)[1]
    array([0.5, 0.5])
    """
    size = np.sqrt(np.maximum(np.diagonal(gram), 1e-30))
    cosine = np.asarray(gram, np.float64) / size / size[:, None]
    centred = cosine - cosine.mean(0) - cosine.mean(1)[:, None] + cosine.mean()
    values, vectors = np.linalg.eigh(centred)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1][:, :2]
    points = vectors * np.sqrt(values[:2])
    shift = np.sum(points[1::2] - points[::2], axis=0)
    return points * np.where(shift < 0, -1, 1), values[:2] / max(values.sum(), 1e-30)


def draw_maps(grams: Mapping[str, np.ndarray], labels: Sequence[str]) -> Figure:
    """One map below the other: an arrow from a to b for each pair, all with one scale.

    >>> len(draw_maps({"no structure": np.eye(4)}, ["rome", "italy", "paris", "france"]).axes)
    1
    """
    with styled(10):
        figure = empty_figure(5.6, 3.6 * len(grams) + 0.2)
        every = figure.subplots(len(grams), 1, squeeze=False)[:, 0]
        for axes, (name, gram) in zip(every, grams.items(), strict=True):
            points, shares = principal_coordinates(gram)
            first, second = points[::2], points[1::2]
            axes.quiver(
                *first.T, *(second - first).T, angles="xy", scale_units="xy", scale=1, color="#999999", width=0.004
            )
            axes.plot(*first.T, "o", color=COLOURS[0], markersize=5)
            axes.plot(*second.T, "s", color=COLOURS[1], markersize=5)
            for number, (point, label) in enumerate(zip(points, labels, strict=True)):
                colour = COLOURS[number % 2]
                shift = (4, -10) if number % 2 == 0 else (4, 4)
                axes.annotate(label, point, shift, textcoords="offset points", fontsize=8, color=colour)
            edge = 1.25 * max(np.abs(points).max(), 1e-6)
            axes.set_xlim(-edge, 1.15 * edge)
            axes.set_ylim(-edge, edge)
            axes.set_title(f"{name}: {100 * shares.sum():.0f} % of the variance")
            axes.set_ylabel("second direction")
        every[-1].set_xlabel("first principal direction")
        return figure

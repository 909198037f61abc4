"""Pictures that both experiments draw: matrices of numbers in [0, 1], one row of them for each case."""

from collections.abc import Mapping, Sequence

import numpy as np

from jflat.report.figure_style import Figure, empty_figure, styled

__all__ = ["draw_matrices"]


def draw_matrices(rows: Mapping[str, Sequence[np.ndarray]], titles: Sequence[str], *, label: str) -> Figure:
    """Matrices with entries in [0, 1] in shades of grey, a row of them for each label, with one scale.

    Args:
      rows: by label, as many matrices as there are titles; any shapes.
      titles: of the columns.
      label: of the scale.

    >>> len(draw_matrices({"a": [np.eye(2)], "b": [np.ones((2, 2))]}, ["layers 1, 2"], label="overlap").axes)
    3
    """
    with styled(10):
        figure = empty_figure(5.6, 1.35 * len(rows) + 0.9)
        grid = figure.subplots(len(rows), len(titles), squeeze=False)
        for row, (name, matrices) in enumerate(rows.items()):
            for number, (matrix, axes) in enumerate(zip(matrices, grid[row], strict=True)):
                image = axes.imshow(matrix, vmin=0, vmax=1, cmap="Greys", interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                axes.grid(False)
                if row == 0:
                    axes.set_title(titles[number], fontsize=9)
                if number == 0:
                    axes.set_ylabel(name, fontsize=9)
        figure.colorbar(image, ax=grid, label=label, shrink=0.8, aspect=18)
        return figure

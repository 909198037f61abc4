"""Panels: what is drawn is read back from the artists."""

import numpy as np
import pytest

from jflat.report import Panel, Series, draw_panels, figures


def test_lines_points_and_references_are_where_they_should_be(tmp_path):
    x = np.array([0.1, 0.2, 0.4])
    error = np.stack([np.full(3, 0.1), np.array([0.2, np.nan, 0.2])])
    theory = Series(line=(x, 2 * x), note="end")
    panels = [
        Panel("a", "y", {"theory": theory, "N = 9": Series(points=(x, 3 * x, error))}, {"zero": 0.0}, {"here": 0.3}),
        Panel("b", "z", {"N = 9": Series((x, x), (x, x, np.full(3, 0.01)), x_error=np.full(3, 0.02))}, log_y=True),
    ]
    figure = draw_panels(panels, xlabel="x", log_x=False)
    first, second = figure.axes
    np.testing.assert_allclose(first.lines[0].get_ydata(), 2 * x)
    bars = first.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars], np.stack([3 * x - 0.1, 3 * x + [0.2, 0.0, 0.2]], axis=1))
    assert {text.get_text() for text in first.texts} == {"end"}
    (place,) = [line for line in first.lines if list(line.get_xdata()) == [0.3, 0.3]]
    (level,) = [line for line in first.lines if list(line.get_ydata()) == [0.0, 0.0]]
    assert place.get_linestyle() == level.get_linestyle() == "--"  # what matplotlib calls any pattern
    assert place._unscaled_dash_pattern != level._unscaled_dash_pattern
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["theory", "N = 9", "zero", "here"]
    assert (first.get_yscale(), second.get_yscale()) == ("linear", "log")
    of_first, of_second = (axes.containers[0].lines[0] for axes in (first, second))
    assert of_first.get_marker() == of_second.get_marker()
    assert of_first.get_color() == of_second.get_color() != first.lines[0].get_color()
    assert figures.save_figure(figure, tmp_path / "panels.png").stat().st_size > 0


def test_no_panels_are_refused():
    with pytest.raises(ValueError, match="draw_panels: panels must have at least one"):
        draw_panels([], xlabel="x")

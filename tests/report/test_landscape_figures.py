"""Contour panels. Oracle: what is drawn, read back from the artists."""

import numpy as np
import pytest

from jflat.report import figures
from jflat.report.landscape_figures import Surface, contours, round_levels

X, Y = np.linspace(-1, 1, 21), np.linspace(-2, 2, 31)
BOWL = 0.1 + X[:, None] ** 2 + 10 * Y**2


def contour_sets(axes):
    return [artist for artist in axes.collections if hasattr(artist, "levels")]


def test_panels_share_levels_and_show_the_first_direction_across(tmp_path):
    wide = Surface(X, Y, BOWL, points={"solution": (0.0, 0.0)}, trajectory=[[0.5, 1.0], [0.1, 0.2], [0.0, 0.0]])
    flat = Surface(X, Y, 0.3 * BOWL, points={"solution": (0.0, 0.0)})
    figure = contours({"one": wide, "two": flat}, xlabel="x (units)", ylabel="y")
    first, second = figure.axes
    lines = [contour_sets(axes)[1] for axes in (first, second)]
    np.testing.assert_array_equal(lines[0].levels, lines[1].levels)
    np.testing.assert_array_equal(lines[0].levels, round_levels(0.03, 41.1))
    # the line of level 10 ends where x = 0 at y = sqrt(.99)
    segments = np.concatenate(lines[0].allsegs[list(lines[0].levels).index(10.0)])
    assert np.abs(segments[:, 1]).max() == pytest.approx(np.sqrt(0.99), abs=0.01)
    assert {text.get_text() for text in first.texts} & {"10", "3", "1", "0.3"}
    assert (first.get_title(), second.get_title()) == ("one", "two")
    assert first.get_xlabel() == second.get_xlabel() == "x (units)"
    np.testing.assert_array_equal(first.lines[0].get_xydata(), [[0.5, 1.0], [0.1, 0.2], [0.0, 0.0]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["solution"]
    # darker is higher, also in grey
    shades = contour_sets(first)[0].get_facecolor()[:, :3].mean(axis=1)
    assert np.all(np.diff(shades) < 0)
    assert figures.save_figure(figure, tmp_path / "a.png").stat().st_size > 0


def test_losses_that_are_not_finite_or_not_positive_are_drawn_around():
    broken = BOWL.copy()
    broken[:3] = np.nan
    broken[-1, -1] = np.inf
    figure = contours({"broken": Surface(X, Y, broken)}, xlabel="x", ylabel="y", columns=3)
    assert np.isfinite(contour_sets(figure.axes[0])[1].levels).all()
    negative = contours({"negative": Surface(X, Y, BOWL - 20)}, xlabel="x", ylabel="y")
    levels = contour_sets(negative.axes[0])[1].levels
    assert 5 <= len(levels) <= 9
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-9)
    constant = contours({"constant": Surface(X, Y, 0 * BOWL)}, xlabel="x", ylabel="y")
    assert len(contour_sets(constant.axes[0])) == 1
    own = contours({"own": Surface(X, Y, BOWL)}, xlabel="x", ylabel="y", levels=[1.0, 3.0])
    np.testing.assert_array_equal(contour_sets(own.axes[0])[1].levels, [1, 3])


def test_levels_are_round_and_few():
    assert round_levels(1e-6, 1e6).size <= 9
    np.testing.assert_array_equal(round_levels(0.9, 2.1), [1, 1.5, 2])
    np.testing.assert_array_equal(round_levels(0.9, 22.0), [1, 1.5, 2, 3, 5, 7, 10, 15, 20])
    np.testing.assert_array_equal(round_levels(0.9, 110.0), [1, 2, 5, 10, 20, 50, 100])
    np.testing.assert_array_equal(round_levels(0.9, 2e4, at_most=5), [1, 10, 100, 1000, 10_000])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: contours({}, xlabel="x", ylabel="y"), "contours: surfaces must have at least one"),
        (lambda: contours({"a": Surface(Y, X, BOWL)}, xlabel="x", ylabel="y"), "'a' must have x"),
        (lambda: contours({"a": Surface(X, Y, BOWL * np.nan)}, xlabel="x", ylabel="y"), "must have a finite loss"),
        (
            lambda: contours({"a": Surface(X, Y, BOWL)}, xlabel="x", ylabel="y", levels=[2, 1]),
            "levels must be two or more and ascend",
        ),
        (lambda: round_levels(0.0, 1.0), "low and high must be positive"),
    ],
)
def test_refused_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()

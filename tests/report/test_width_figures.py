"""Figure of the coordinate check. Oracle: what is drawn, read back from the artists, for powers written by hand."""

import numpy as np
import pytest

from jflat.report import figures
from jflat.report.width_figures import coordinate_check
from jflat.width import CoordTable, mup, ntp

WIDTHS = (64, 128, 256, 512)


def table_of(p, powers, noise=0.02):
    rng = np.random.default_rng(0)
    exponents = np.array(powers)[None, None, :]
    values = np.array(WIDTHS, float)[None, :, None] ** exponents * np.exp(noise * rng.standard_normal((6, 4, 3)))
    stats = {"delta": np.stack([np.zeros_like(values), values], axis=2)}
    return CoordTable(WIDTHS, ("h1", "h2", "f"), stats, p, np.zeros((6, 4), np.int32))


def test_verdicts_and_marks(tmp_path):
    figure = coordinate_check({"good": table_of(ntp(), (-0.5, -0.5, 0)), "bad": table_of(mup(), (0, -0.5, 0))})
    good, bad, good_powers, bad_powers = figure.axes
    assert good.get_title() == "good\nas predicted"
    assert bad.get_title() == "bad\nWRONG: h2"
    assert [text.get_text() for text in bad.get_legend().get_texts()] == ["h1", "h2", "f"]
    assert good.get_ylim() == bad.get_ylim()
    marks = [
        [line.get_marker() for line in axes.lines if line.get_marker() != "None"] for axes in (good_powers, bad_powers)
    ]
    assert (marks[0].count("x"), marks[1].count("x")) == (0, 1)
    assert len(bad_powers.patches) == 3
    assert figures.save_figure(figure, tmp_path / "a.png").stat().st_size > 0


def test_a_layer_that_does_not_move_is_wrong_and_another_prediction():
    table = table_of(mup(), (0, 0, 0))
    table.stats["delta"][..., 1] = 0
    assert coordinate_check(table).axes[0].get_title() == "WRONG: h2"
    flat = coordinate_check(table_of(ntp(), (-0.5, -0.5, 0)), predicted=dict.fromkeys(("h1", "h2", "f"), 0.0))
    assert flat.axes[0].get_title() == "WRONG: h1, h2"


def test_refused():
    with pytest.raises(ValueError, match="coordinate_check: tables must have"):
        coordinate_check({})
    with pytest.raises(ValueError, match="coordinate_check: stat must be one of"):
        coordinate_check(table_of(mup(), (0, 0, 0)), "act")

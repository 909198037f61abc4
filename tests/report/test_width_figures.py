"""Figure of the coordinate check. Oracle: what is drawn, read back from the artists, for powers written by hand."""

import numpy as np
import pytest

from jflat.report import figures
from jflat.report.width_figures import coordinate_check, powers
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


def test_many_parametrisations_in_rows_and_all_statistics_on_one_sheet():
    named = {name: table_of(mup(), (0, 0, 0)) for name in "abc"}
    figure = coordinate_check(named, columns=2)
    assert [axes.get_title()[:1] for axes in figure.axes] == ["a", "b", "", "", "c", ""]
    sheet = {}
    for name, tilt in (("good", 0.0), ("bad", 0.3)):
        table = table_of(mup(), (0, tilt, 0))
        moved = table.stats["delta"]
        sheet[name] = table._replace(stats={"delta": moved, "dwx": np.ones_like(moved), "w0dx": np.ones_like(moved)})
    good, bad = powers(sheet).axes
    assert (good.get_title(), bad.get_title()) == ("good: as predicted", "bad: 1 of 8 WRONG")
    assert [text.get_text() for text in good.get_xticklabels()] == ["h1", "h2", "f"] * 2 + ["h2", "f"]
    assert len(good.patches) == 8
    assert [line.get_marker() for line in bad.lines].count("x") == 1


def test_refused():
    with pytest.raises(ValueError, match="coordinate_check: tables must have"):
        coordinate_check({})
    with pytest.raises(ValueError, match="powers: tables must have"):
        powers({})
    with pytest.raises(ValueError, match="coordinate_check: stat must be one of"):
        coordinate_check(table_of(mup(), (0, 0, 0)), "act")

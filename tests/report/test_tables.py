"""Tables. Oracle: strings written by hand, and an HTML parser that must find the cells again."""

import html.parser
import math

import numpy as np
import pytest

from jflat.report import Measured, format_cell, format_measured, html_table, text_table

DIGITS = [
    (0.123456, 0.0123, "0.123 ± 0.012"),
    (0.123456, 0.0996, "0.12 ± 0.10"),  # the error rounds up to one more place
    (-0.5, 0.00042, "−0.50000 ± 0.00042"),
    (12.0, 3.0, "12.0 ± 3.0"),
    (99.96, 9.96, "100 ± 10"),
    (1234.4, 67.0, "1234 ± 67"),
    (0.0, 0.02, "0.000 ± 0.020"),
    (123456.0, 789.0, "(1.2346 ± 0.0079)e+05"),
    (1.2342e-7, 1.2e-9, "(1.234 ± 0.012)e−07"),
    (1e-9, 1e-7, "(0.0 ± 1.0)e−07"),
    (0.25, math.nan, "0.25"),
    (0.25, None, "0.25"),
    (0.25, 0.0, "0.25"),
    (math.nan, 0.1, "–"),
    (-math.inf, 0.1, "−∞"),
]


@pytest.mark.parametrize(("value", "stderr", "text"), DIGITS)
def test_digits_follow_the_error(value, stderr, text):
    assert format_measured(value, stderr) == text


def test_cells():
    assert format_cell(np.float32(0.5)) == "0.5"
    assert format_cell(np.int32(-7)) == "−7"
    assert format_cell(np.bool(False)) == "no"
    assert format_cell(math.nan) == "–"
    assert format_cell(np.array(2.0)) == "2"
    with pytest.raises(ValueError, match=r"one value, not an array of shape \(2,\)"):
        format_cell(np.ones(2))


HEADER = ["method", "error", "note"]
ROWS = [["SGD", Measured(0.1, 0.012), "a < b & c"], ["Entropy-SGD", None, '"<script>alert(1)</script>"']]


def test_text_is_aligned():
    lines = text_table(HEADER, ROWS).split("\n")
    assert len(lines) == 4
    column = lines[0].index("note")
    assert all(line[column:] == row[2] for line, row in zip(lines[2:], ROWS, strict=True))
    assert lines[2][: column - 2].endswith("0.100 ± 0.012")
    assert lines[3][: column - 2].endswith("–")
    assert text_table(["a", "b"], []) == "a  b\n-  -"


class Cells(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_html_holds_the_same_cells_and_nothing_else():
    parser = Cells()
    parser.feed(html_table(HEADER, ROWS))
    assert parser.rows == [HEADER, *([format_cell(cell) for cell in row] for row in ROWS)]
    assert {tag for tag, _ in parser.tags} == {"table", "thead", "tbody", "tr", "th", "td"}
    scopes = [attributes.get("scope") for tag, attributes in parser.tags if tag == "th"]
    assert scopes == ["col"] * 3 + ["row"] * 2
    assert "<caption>a &amp; b</caption>" in html_table(HEADER, ROWS, "a & b")


def test_ragged_rows_are_refused():
    for table in (text_table, html_table):
        with pytest.raises(ValueError, match=r"rows must have 3 cells each; got \['x'\]"):
            table(HEADER, [["x"]])

"""Tables for the terminal and for the page, and numbers with their errors in the right digits.

A cell is a string, an integer, a float (four significant digits), None or NaN (a dash), a `Measured` value with its
standard error, or a boolean (yes / no). Columns of numbers are set to the right.
"""

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jflat.core import check

__all__ = ["Measured", "format_cell", "format_measured", "html_table", "text_table"]

_DASH = "–"


class Measured(NamedTuple):
    """A value with its standard error (NaN or None where it is unknown)."""

    value: float
    """The mean."""
    stderr: float | None
    """Its standard error, at least 0."""


def _format_number(value: float) -> str:
    if not math.isfinite(value):
        return _DASH if math.isnan(value) else ("∞" if value > 0 else "−∞")
    return f"{value:.4g}".replace("-", "−")


def format_measured(value: float, stderr: float | None) -> str:
    """`value ± stderr`: the error to two significant digits, the value to the same place.

    An unknown error (NaN or None), or one below 1e-6 of the value (rounding), leaves the value alone, with four
    significant digits; a value that is NaN is a dash. Sizes of 1e5 and more, or errors below 1e-5, take a common power
    of ten.

    >>> format_measured(0.123456, 0.0123), format_measured(1234.5, 67.0), format_measured(0.5, None)
    ('0.123 ± 0.012', '1234 ± 67', '0.5')
    >>> format_measured(1.23456e-7, 1.2e-9)
    '(1.235 ± 0.012)e−07'
    """
    if stderr is None or not math.isfinite(value) or not math.isfinite(stderr) or stderr <= 1e-6 * abs(value):
        return _format_number(value)
    size = max(abs(value), stderr)
    exponent = math.floor(math.log10(size))
    is_extreme = size >= 1e5 or stderr < 1e-5
    scale = 10.0**exponent if is_extreme else 1.0
    value, stderr = value / scale, stderr / scale
    places = max(0, 1 - math.floor(math.log10(float(f"{stderr:.1e}"))))
    text = f"{value:.{places}f} ± {stderr:.{places}f}".replace("-", "−")
    return f"({text})e{exponent:+03d}".replace("e-", "e−") if is_extreme else text


def format_cell(cell: Any) -> str:
    """The text of one cell.

    >>> [format_cell(c) for c in ("SAM", 12, 0.123456, None, True, Measured(1.0, 0.1))]
    ['SAM', '12', '0.1235', '–', 'yes', '1.00 ± 0.10']
    """
    if cell is None:
        return _DASH
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Measured):
        return format_measured(float(cell.value), None if cell.stderr is None else float(cell.stderr))
    if np.ndim(cell) > 0:
        raise ValueError(f"format_cell: cell must be one value, not an array of shape {np.shape(cell)}.")
    if isinstance(cell, bool | np.bool):
        return "yes" if cell else "no"
    if isinstance(cell, int | np.integer):
        return str(cell).replace("-", "−")
    return _format_number(float(cell))


def _check(where: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[bool]:
    """Refuse ragged rows; say for each column whether it holds numbers only."""
    for row in rows:
        check.require(len(row) == len(header), where, "rows", f"must have {len(header)} cells each", list(row))
    return [bool(rows) and not any(isinstance(row[j], str) for row in rows) for j in range(len(header))]


def text_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in plain text: columns aligned, a rule under the header, no trailing spaces.

    Raises:
      ValueError: if a row has another number of cells than the header.

    >>> print(text_table(["method", "error"], [["SGD", Measured(0.021, 0.0014)], ["SAM", None]]))
    method            error
    ------  ---------------
    SGD     0.0210 ± 0.0014
    SAM                   –
    """
    is_number = _check("text_table", header, rows)
    texts = [list(map(str, header)), *([format_cell(cell) for cell in row] for row in rows)]
    widths = [max(len(row[j]) for row in texts) for j in range(len(header))]
    texts.insert(1, ["-" * width for width in widths])

    def line(row: list[str]) -> str:
        cells = zip(row, widths, is_number, strict=True)
        return "  ".join(text.rjust(width) if right else text.ljust(width) for text, width, right in cells).rstrip()

    return "\n".join(map(line, texts))


def html_table(header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> str:
    """The table as an HTML `<table>`, all text escaped; cells of number columns have the class `n`.

    The first cell of each row is its heading, for screen readers.

    Raises:
      ValueError: if a row has another number of cells than the header.

    >>> print(html_table(["a"], [["<b>"]]).replace("<tbody>", "\\n<tbody>"))
    <table><thead><tr><th scope="col">a</th></tr></thead>
    <tbody><tr><th scope="row">&lt;b&gt;</th></tr></tbody></table>
    """
    is_number = _check("html_table", header, rows)

    def cell(j: int, value: Any, tag: str, scope: str = "") -> str:
        attributes = (f' scope="{scope}"' if scope else "") + (' class="n"' if is_number[j] else "")
        return f"<{tag}{attributes}>{html.escape(format_cell(value))}</{tag}>"

    head = "".join(cell(j, str(text), "th", "col") for j, text in enumerate(header))
    body = "".join(
        "<tr>"
        + "".join(cell(j, value, "th" if j == 0 else "td", "row" if j == 0 else "") for j, value in enumerate(row))
        + "</tr>"
        for row in rows
    )
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

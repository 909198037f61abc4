"""The table of ratios: for every measured task and peer, jflat's time over the peer's, and the error of both."""

from collections.abc import Iterable
from typing import Any

__all__ = ["table"]

_WHAT = ("benchmark", "network", "optimiser", "task")


def _what(row: dict[str, Any]) -> str:
    return " ".join(row[name] for name in _WHAT if name in row)


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Markdown, from records with a `library`, one line for a task: its error in jflat, then jflat's time over that of
    each peer, with the peer's error in brackets.

    Of equal records the last counts; other forms of jflat, "jflat (...)", are left out. The ratio is of processor time
    where that was taken (`cpu_jflat_over_this`, or the record's `clock`), and missing where there was nothing to time.
    Versions stand above.

    >>> ours = {"benchmark": "solvers", "task": "compatible", "library": "jflat", "error": 8e-9}
    >>> print(table([ours, ours | {"library": "SciPy", "error": 2e-7, "jflat_over_this": 0.774}]))
    | task | error | jflat's time over the peer's (the peer's error) |
    | --- | --- | --- |
    | solvers compatible | 8e-09 | SciPy 0.77 (2e-07) |
    """
    found = {(_what(row), row["library"]): row for row in rows if "library" in row}
    versions = {name: version for row in found.values() for name, version in row.get("versions", {}).items()}
    lines = [", ".join(f"{name} {version}" for name, version in versions.items()), ""] if versions else []
    lines += ["| task | error | jflat's time over the peer's (the peer's error) |", "|" + " --- |" * 3]
    for what in dict.fromkeys(what for what, _ in found):
        peers = [_cell(name, row) for (its, name), row in found.items() if its == what and not name.startswith("jflat")]
        if peers:
            lines.append(f"| {what} | {_error(found.get((what, 'jflat'), {}))} | {'; '.join(peers)} |")
    return "\n".join(lines)


def _cell(name: str, row: dict[str, Any]) -> str:
    ratio = row.get("cpu_jflat_over_this", row.get("jflat_over_this"))
    words = [name, "" if ratio is None else f"{ratio:.2f}", f"({_error(row)})" if "error" in row else ""]
    return " ".join(filter(None, words))


def _error(row: dict[str, Any]) -> str:
    return f"{row['error']:.0e}" if "error" in row else ""

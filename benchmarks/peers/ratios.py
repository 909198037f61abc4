"""The table of ratios: for every measured task and peer, jflat's time over the peer's, and the error of both."""

from collections.abc import Iterable
from typing import Any

__all__ = ["table"]

_WHAT = ("benchmark", "network", "optimiser", "task")


def _what(row: dict[str, Any]) -> str:
    return " ".join(row[name] for name in _WHAT if name in row)


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Markdown, from records with a `library`: of equal ones the last counts, and those of "jflat" give its error;
    other forms of it, "jflat (...)", are left out.

    The ratio is of processor time where that was taken (`cpu_jflat_over_this`, or the record's `clock`), and missing
    where there was nothing to time. Peers' versions stand above.

    >>> ours = {"benchmark": "solvers", "task": "compatible", "library": "jflat", "error": 8e-9}
    >>> print(table([ours, ours | {"library": "SciPy", "error": 2e-7, "jflat_over_this": 0.774}]))
    | task | peer | jflat / peer | error of jflat | of the peer |
    | --- | --- | --- | --- | --- |
    | solvers compatible | SciPy | 0.77 | 8e-09 | 2e-07 |
    """
    found = {(_what(row), row["library"]): row for row in rows if "library" in row}
    versions = {name: version for row in found.values() for name, version in row.get("versions", {}).items()}
    lines = [", ".join(f"{name} {version}" for name, version in versions.items()), ""] if versions else []
    lines += ["| task | peer | jflat / peer | error of jflat | of the peer |", "|" + " --- |" * 5]
    for (what, library), row in found.items():
        if library.startswith("jflat"):
            continue
        ours = found.get((what, "jflat"), {})
        ratio = row.get("cpu_jflat_over_this", row.get("jflat_over_this"))
        errors = [f"{one['error']:.0e}" if "error" in one else "" for one in (ours, row)]
        lines.append("| " + " | ".join([what, library, "" if ratio is None else f"{ratio:.2f}", *errors]) + " |")
    return "\n".join(lines)

"""A regression check of two stored runs: `python -m benchmarks compare OLD.jsonl NEW.jsonl [--tolerance 0.15]`.

Records meet if they have the same benchmark and the same fields of what was measured: strings, whole numbers and
`SETTINGS`, but no `OUTCOMES` and nothing about the environment (`ENVIRONMENT`). Of several alike in a file the last
counts. Every number that is a ratio or a time (`kind`) is then put beside the old one, and judged:

    slower   new > (1 + tolerance) old, and the intervals [x q1 / q2, x q3 / q2] do not meet
    faster   the same with old and new exchanged
    noise    beyond the tolerance, but the intervals meet
    same     within the tolerance
    other machine   a time from elsewhere, not judged
    peer            a number of another library alone, not judged
    busy            wall time, or a ratio of it, where the load of a run was above `BUSY` times its cores; not judged

with q the quartiles stored for the number (`NAME_quartiles`), else those of `cpu_ms` for names that begin with "cpu_",
else those of `ms` (wall time, so too wide for processor time on a busy machine); without any the interval is a point.
The interval of a ratio is twice as wide, as if its other number scattered as much. Of a gain the inverse is judged, of
a peer's record (`library`) only jflat's ratio to it. Times count only between runs on one machine, ratios anywhere.
The exit code is 1 if anything is slower or no longer a finite number, 2 if nothing meets.
"""

import argparse
import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

__all__ = ["Change", "changes", "key", "kind", "main", "read", "table"]

MACHINE = ("device", "cores", "machine")
"""Fields that two runs must share for their times to be compared."""
ENVIRONMENT = (*MACHINE, "jax", "python", "date", "load", "versions", "repeats")
SETTINGS = ("stop_below",)
"""Numbers with a decimal point that say what was measured."""
OUTCOMES = ("bytes", "collectives", "finite_at_zero_gradient", "inner_steps", "num_steps", "updates_per_second")
"""Whole numbers, and lists, that were measured."""
BUSY = 1.5
"""The load average over the cores that makes a machine busy; a benchmark's own is 1."""
TIMES = ("ms", "cpu_s", "us_per_word", "ns_per_message", "ns_per_inner_step", "seconds_per_success")
RATIOS = ("ratio", "gradients_per_product")


class Change(NamedTuple):
    """One number of a record in both runs."""

    record: str
    """What was measured, `key` in words."""
    number: str
    """The name of the field."""
    old: float | None
    """None if the record is in the new run only."""
    new: float | None
    """None if the record is in the old run only."""
    verdict: str
    """"slower", "faster", "same", "noise", "not finite", "other machine", "busy", "peer", "missing", "added"."""


def key(row: dict[str, Any]) -> str:
    """What a record measured, in words, the same in every run.

    >>> key({"benchmark": "hvp", "network": "MLP", "samples": 512, "ms": 1.25, "date": "2026-11-21"})
    'hvp, network MLP, samples 512'
    """

    def says_what(name: str, value: Any) -> bool:
        if name in ("benchmark", *ENVIRONMENT, *OUTCOMES) or kind(name):
            return False
        return isinstance(value, str | int) or name in SETTINGS

    found = sorted((name, value) for name, value in row.items() if says_what(name, value))
    return ", ".join([row["benchmark"], *(f"{name} {value}" for name, value in found)])


def kind(name: str) -> str | None:
    """Of a field by its name: "time", "ratio", "gain" (a ratio of which more is better), or None.

    >>> [kind(name) for name in ("ms", "cpu_ms", "over_floor", "jflat_over_this", "vmap_gain", "error")]
    ['time', 'time', 'ratio', 'ratio', 'gain', None]
    """
    if name in TIMES or name.endswith("_ms"):
        return "time"
    if name in RATIOS or name.startswith("over_") or "_over_" in name:
        return None if name.endswith("quartiles") else "ratio"
    return "gain" if name.endswith("_gain") else None


def read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The last record of each key in a file of JSON lines."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {key(row): row for row in rows}


def _interval(row: dict[str, Any], name: str, value: float) -> tuple[float, float]:
    """The quartiles of a number, as the module's docstring says."""
    if f"{name}_quartiles" in row:
        low, high = row[f"{name}_quartiles"]
        return low, high
    clock = "cpu_ms" if name.startswith("cpu_") and "cpu_ms" in row else "ms"
    if f"{clock}_quartiles" in row and row[clock] > 0:
        power = 1 if kind(name) == "time" else 2
        low, high = ((quartile / row[clock]) ** power for quartile in row[f"{clock}_quartiles"])
        return min(low, 1.0) * value, max(high, 1.0) * value
    return value, value


def _is_wall(row: dict[str, Any], name: str) -> bool:
    """Whether neighbours change the number: it is not processor time, and not counted."""
    is_processor = name.startswith("cpu_") or name == "processor_ms"
    is_processor |= row.get("clock") == "processor" and name != "wall_ms"
    is_counted = name == "ratio" and "bytes" in row
    return not (is_processor or is_counted)


def _verdict(old: dict[str, Any], new: dict[str, Any], name: str, tolerance: float) -> str:
    before, after = old[name], new.get(name)
    if after is None or not math.isfinite(after):
        return "not finite"
    if not str(old.get("library", "jflat")).startswith("jflat") and "jflat" not in name:
        return "peer"
    if kind(name) == "time" and any(old.get(field) != new.get(field) for field in MACHINE):
        return "other machine"
    if any(_is_wall(row, name) and (row.get("load") or 0) > BUSY * row["cores"] for row in (old, new)):
        return "busy"
    first, last = (_interval(row, name, row[name]) for row in (old, new))
    if kind(name) == "gain":
        (before, first), (after, last) = (after, last), (before, first)
    apart = last[0] > first[1] or first[0] > last[1]
    if after > (1 + tolerance) * before:
        return "slower" if apart else "noise"
    if before > (1 + tolerance) * after:
        return "faster" if apart else "noise"
    return "same"


def changes(
    old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]], tolerance: float = 0.15
) -> Iterator[Change]:
    """Every number of every record, in the order of the old run; records of one run only as one row without numbers."""
    for what, row in old.items():
        if what not in new:
            yield Change(what, "", None, None, "missing")
            continue
        for name, value in row.items():
            if kind(name) and isinstance(value, int | float) and math.isfinite(value):
                yield Change(what, name, value, new[what].get(name), _verdict(row, new[what], name, tolerance))
    yield from (Change(what, "", None, None, "added") for what in new if what not in old)


def table(found: Sequence[Change]) -> str:
    """Markdown: record, number, old, new, new / old, verdict."""
    lines = ["| record | number | old | new | new / old | |", "|" + " --- |" * 6]
    for change in found:
        old, new = change.old, change.new
        cells = ["" if value is None else f"{value:.4g}" for value in (old, new)]
        ratio = f"{new / old:.2f}" if old and new is not None else ""
        lines.append("| " + " | ".join([change.record, change.number, *cells, ratio, change.verdict]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and what is slower; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description=__doc__.split("\n")[0])
    parser.add_argument("old", type=pathlib.Path, help="JSON lines of a stored run")
    parser.add_argument("new", type=pathlib.Path, help="JSON lines of the run to judge")
    parser.add_argument("--tolerance", type=float, default=0.15, help="relative; 0.15 by default")
    options = parser.parse_args(arguments)
    old, new = read(options.old), read(options.new)
    found = list(changes(old, new, options.tolerance))
    print(table(found))
    if not old.keys() & new.keys():
        print("no record of the two runs measured the same")
        return 2
    worse = [change for change in found if change.verdict in ("slower", "not finite")]
    print(f"\n{len(worse)} of {len(found)} slower beyond {options.tolerance:g} and the noise")
    return int(bool(worse))

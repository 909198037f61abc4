"""Claims with their status, and the page they stand on: what the pages of all experiments share."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.registry import Summary
from jflat.core import Status, succeeded
from jflat.report import (
    Facts,
    Measured,
    Picture,
    Run,
    Section,
    Table,
    figures,
    format_measured,
    mean_and_stderr,
    text_table,
    write_page,
)

__all__ = [
    "Claim",
    "agrees",
    "cell",
    "failures",
    "holds",
    "how_it_was_run",
    "judge",
    "measured",
    "page",
    "picture",
    "statuses",
]

STATUS_TEXT = (
    "Holds: within the bounds beyond two standard errors; does not hold: outside of them beyond two standard errors; "
    "undecided: in between. Bounds in brackets are ours."
)


@dataclasses.dataclass(frozen=True)
class Claim:
    """One row of a table of claims."""

    claim: str
    ours: str
    theirs: str
    status: str

    @classmethod
    def bounded(cls, claim: str, value: Measured, theirs: str, low: float, high: float) -> "Claim":
        """The claim that a measured value lies in [low, high]."""
        return cls(claim, format_measured(*value), theirs, judge(value, low, high))


def measured(values: Any) -> Measured:
    """Mean and standard error over what is finite; NaN where nothing is."""
    values = np.asarray(values, np.float64)
    good = values[np.isfinite(values)]
    if good.size == 0:
        return Measured(float("nan"), None)
    mean, stderr = mean_and_stderr(good)
    return Measured(float(mean), float(stderr))


def cell(stored: Mapping[str, Any] | None, scale: float = 1.0) -> Measured:
    """A measured value as metrics store it, times `scale`, for a table or a figure.

    Args:
      stored: with "value" and "stderr", as `Measured._asdict()` is read back; None is a number that is not known.
      scale: positive; 100 for per cent.

    Returns:
      Two floats: NaN (a dash in tables) for what is not known.

    >>> cell({"value": 0.25, "stderr": 0.5}, 100), cell({"value": 2.0, "stderr": None})
    (Measured(value=25.0, stderr=50.0), Measured(value=2.0, stderr=nan))
    """
    known = stored or {"value": None, "stderr": None}
    return Measured(*(float("nan") if known[name] is None else scale * known[name] for name in ("value", "stderr")))


def holds(condition: Any) -> str:
    """Whether an exact condition (all of an array) "holds" or "does not hold"; None is "undecided".

    >>> holds(1 < 2), holds(np.arange(3) < 2), holds(None)
    ('holds', 'does not hold', 'undecided')
    """
    if condition is None:
        return "undecided"
    return "holds" if np.all(condition) else "does not hold"


def judge(value: Measured, low: float, high: float) -> str:
    """Whether low <= value <= high "holds" or "does not hold" beyond two standard errors, else "undecided".

    >>> judge(Measured(1.0, 0.1), 0.0, np.inf), judge(Measured(1.0, 0.1), -np.inf, 0.9), judge(Measured(1, None), 0, 1)
    ('holds', 'undecided', 'undecided')
    """
    if value.stderr is None or not np.isfinite([value.value, value.stderr]).all():
        return "undecided"
    lower, upper = value.value - 2 * value.stderr, value.value + 2 * value.stderr
    if low <= lower and upper <= high:
        return "holds"
    return "does not hold" if upper < low or lower > high else "undecided"


def agrees(ours: Measured, theirs: Measured) -> str:
    """Whether two measurements differ by less than two standard errors of their difference.

    >>> agrees(Measured(1.0, 0.3), Measured(1.5, 0.4)), agrees(Measured(1.0, 0.1), Measured(2.0, 0.1))
    ('holds', 'does not hold')
    """
    numbers = [np.nan if x is None else x for x in (*ours, *theirs)]
    if not np.isfinite(numbers).all():
        return "undecided"
    return "holds" if abs(numbers[0] - numbers[2]) <= 2 * np.hypot(numbers[1], numbers[3]) else "does not hold"


def statuses(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The status of each claim of a run's metrics.

    >>> statuses({"claims": [{"claim": "zero", "status": "holds", "ours": "0", "theirs": "0"}]})
    {'zero': 'holds'}
    """
    return {claim["claim"]: claim["status"] for claim in metrics["claims"]}


def failures(arrays: Mapping[str, np.ndarray], expected: Sequence[Status] = ()) -> list[dict[str, Any]]:
    """What did not succeed, by array of statuses and kind, with the number of times; `expected` kinds are left out."""
    return [
        {
            "part": name.removesuffix("status").rstrip("/._"),
            "outcome": Status(int(code)).name.lower().replace("_", " "),
            "times": int(np.sum(values == code)),
            "of": int(values.size),
        }
        for name, values in arrays.items()
        if name.endswith("status")
        for code in np.unique(values[~succeeded(values)])
        if code not in expected
    ]


def picture(directory: pathlib.Path, name: str, figure: Any, caption: str) -> Picture:
    """Write a figure as .png and .svg, and say what it shows."""
    path = figures.save_figure(figure, directory / f"{name}.png")
    figures.save_figure(figure, directory / f"{name}.svg")
    return Picture(path, caption, f"{name.replace('_', ' ')}. {caption}")


def how_it_was_run(stored: Run) -> Section:
    """The last section of a page: configuration, versions, device and minutes of a run."""
    facts = {key: value for key, value in stored.provenance.items() if key != "seconds"}
    facts["minutes"] = f"{stored.provenance['seconds'] / 60:.1f}"
    return Section("How it was run", [Facts(dict(stored.config)), Facts(facts)])


def page(
    directory: pathlib.Path,
    stored: Run,
    title: str,
    what: str,
    claim: str,
    pictures: Sequence[Picture],
    tables: Sequence[Table],
) -> Summary:
    """Write `index.html` of a run whose metrics have "claims" and "failures"."""
    claims, failed = stored.metrics["claims"], stored.metrics["failures"]
    header = ["claim", "status", "ours", "theirs"]
    rows = [[c["claim"], c["status"], c["ours"], c["theirs"]] for c in claims]
    blocks: list[Any] = [what, STATUS_TEXT, Table(header, rows, f"Paper: {claim}")]
    if failed:
        cells = [[f["part"], f["outcome"], f"{f['times']} of {f['of']}"] for f in failed]
        blocks.append(Table(["part", "outcome", "times"], cells, "What did not succeed."))
    sections = [
        Section("What was found", blocks),
        Section("Figures", list(pictures)),
        Section("Numbers", list(tables)),
        how_it_was_run(stored),
    ]
    path = write_page(directory / "index.html", title, sections)
    texts = [
        text_table(header, rows),
        *(f"{table.caption}\n{text_table(table.header, table.rows)}" for table in tables),
    ]
    return Summary("\n\n".join(texts), path, claims)

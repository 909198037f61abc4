"""Rows of README's table of claims on the pages of the site, so that every number is written once.

A page says `<!-- claims: SOURCE | TEXT -->`, with SOURCE the module of an experiment, a package of them, or
`benchmarks`, and the optional TEXT a regular expression looked for in the claim. `<!-- claims: preamble -->` is what
README says before the table; `<!-- commands: PACKAGE -->` is a block that runs all of its experiments. A hook of mkdocs
puts them there.
"""

import fnmatch
import pathlib
import re
import sys
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the experiments are not installed with the library

from experiments.registry import EXPERIMENTS  # noqa: E402

MARK = re.compile(r"^<!-- claims: ([\w.]+)(?: \| (.+?))? -->$", re.MULTILINE)

COMMANDS = re.compile(r"^<!-- commands: ([\w.]+) -->$", re.MULTILINE)


class Claims(NamedTuple):
    """README's table: what stands before it, the cells of its header, and of each row."""

    preamble: str
    header: list[str]
    rows: list[list[str]]


def cells(line: str) -> list[str]:
    """The cells of a row of a Markdown table; an escaped bar is no border.

    >>> cells("| a | b \\\\| c |")
    ['a', 'b \\\\| c']
    """
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def read(readme: str) -> Claims:
    """The table of claims of README's text, with "same" in the column of commands replaced by what it repeats."""
    lines = readme.split("\n## Claims\n")[1].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| claim"))
    header, rows = cells(lines[start]), []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        row = cells(line)
        assert len(row) == len(header), line
        row[1] = rows[-1][1] if row[1] == "same" else row[1]
        rows.append(row)
    return Claims("\n".join(lines[:start]).strip(), [header[0].split(" (")[0], *header[1:]], rows)


def names(command: str) -> list[str]:
    """What a cell of commands runs: names of experiments and benchmarks.

    >>> names("`run mixtures-ridge`, `python -m benchmarks hvp`")
    ['mixtures-ridge', 'benchmarks']
    """
    return [first or second for first, second in re.findall(r"\brun ([\w-]+)|-m (benchmarks)\b", command)]


def select(claims: Claims, source: str, text: str | None = None) -> list[list[str]]:
    """The rows of one source whose claim has `text` in it."""

    def belongs(name: str) -> bool:
        return fnmatch.fnmatch(EXPERIMENTS.get(name, name) + ".", f"{source}.*")

    return [row for row in claims.rows if any(map(belongs, names(row[1]))) and re.search(text or "", row[0])]


def fill(markdown: str, claims: Claims) -> str:
    """A page with the rows in place of its marks."""

    def table(mark: re.Match[str]) -> str:
        if mark[1] == "preamble":
            return claims.preamble
        rows = select(claims, mark[1], mark[2])
        if not rows:
            return "*README has no row of these experiments yet.*"
        lines = [claims.header, ["---"] * len(claims.header), *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def commands(mark: re.Match[str]) -> str:
        lines = [f"python -m experiments run {name}" for name, path in EXPERIMENTS.items() if path.startswith(mark[1])]
        return "\n".join(["```bash", *lines, "```"])

    return COMMANDS.sub(commands, MARK.sub(table, markdown))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return fill(markdown, read((ROOT / "README.md").read_text()))

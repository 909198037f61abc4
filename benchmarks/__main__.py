"""Run benchmarks: `python -m benchmarks [NAME ...] [--toy] [--output FILE]`; JSON lines to the screen and the file.

`python -m benchmarks --peers PYTHON` runs those that have peers, and ends with the table of ratios
(`benchmarks.peers.ratios`, also written beside FILE); `bash benchmarks/peers/install FOLDER` makes PYTHON.
`python -m benchmarks ratios FILE ...` prints that table of stored runs.
`python -m benchmarks compare OLD NEW` compares two such files (`benchmarks.compare`).
"""

import argparse
import importlib
import inspect
import pathlib
import sys
from collections.abc import Sequence

from benchmarks import compare
from benchmarks.peers import ratios

BENCHMARKS = (
    "hvp",
    "optimisers",
    "seeds",
    "curvature",
    "messages",
    "critical",
    "solvers",
    "width",
    "coordinates",
    "scaling",
)
PEERED = ("curvature", "optimisers", "solvers", "width")
"""Those that a peer exists for."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the named benchmarks, or all."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["compare"]:
        sys.exit(compare.main(arguments[1:]))
    if arguments[:1] == ["ratios"]:
        print(ratios.table(row for path in arguments[1:] for row in compare.read(pathlib.Path(path)).values()))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"among {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--toy", action="store_true", help="a size that runs in seconds, to see that it works")
    parser.add_argument("--output", type=pathlib.Path, help="append the JSON lines to this file")
    peers = parser.add_argument_group(
        "of those with peers (curvature, optimisers, solvers, width); networks and tasks of curvature alone"
    )
    peers.add_argument("--peers", metavar="PYTHON", help="the Python that benchmarks/peers/install made")
    peers.add_argument("--threads", type=int, help="cores for all; with 1, processor seconds are the time")
    peers.add_argument("--repeats", type=int, help="rounds")
    peers.add_argument("--networks", nargs="+", help="mlp, convnet")
    peers.add_argument("--tasks", nargs="+", help="gradient, hvp, lanczos, top, top_known, density, trace")
    options = parser.parse_args(arguments)
    own = {name: getattr(options, name) for name in ("peers", "threads", "repeats", "networks", "tasks")}
    rows = []
    for name in options.names or (PEERED if options.peers else BENCHMARKS):
        if name not in BENCHMARKS:
            parser.error(f"unknown benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
        module = importlib.import_module(f"benchmarks.{name}")
        understood = inspect.signature(module.main).parameters
        rows += module.main(options.output, options.toy, **{key: own[key] for key in own if key in understood})
    if options.peers:
        text = ratios.table(rows)
        print(text)
        if options.output is not None:
            options.output.with_suffix(".ratios.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Run benchmarks: `python -m benchmarks [NAME ...] [--toy] [--output FILE]`; JSON lines to the screen and the file."""

import argparse
import importlib
import pathlib

BENCHMARKS = ("hvp", "optimisers", "seeds")


def main() -> None:
    """Run the named benchmarks, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"among {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--toy", action="store_true", help="a size that runs in seconds, to see that it works")
    parser.add_argument("--output", type=pathlib.Path, help="append the JSON lines to this file")
    options = parser.parse_args()
    for name in options.names or BENCHMARKS:
        if name not in BENCHMARKS:
            parser.error(f"unknown benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
        importlib.import_module(f"benchmarks.{name}").main(options.output, options.toy)


if __name__ == "__main__":
    main()

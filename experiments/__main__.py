"""Usage: `python -m experiments list | run NAME [--preset P] [--output DIR] [--FIELD VALUE ...] | report [DIR]`.

With `run NAME ... --distributed` on each of several processes, they share the work and a folder that all of them see.
SLURM, Kubernetes, Open MPI and TPU pods are recognised; elsewhere also say --coordinator HOST:PORT (where process 0
listens), --num-processes N and --process-id I, or JFLAT_COORDINATOR, JFLAT_NUM_PROCESSES and JFLAT_PROCESS_ID.
"""

import argparse
import difflib
import pathlib
import shlex
import sys
from collections.abc import Sequence
from types import TracebackType

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments import registry
from jflat.core import check
from jflat.core.processes import (
    LostProcessError,
    agree,
    end_lost,
    is_primary,
    noticing_lost_processes,
    start_processes,
)
from jflat.report import load_run, run_name

EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130


class Bar:
    """A progress bar with an estimate of the time left; on a pipe or in a log, a line now and then."""

    def __init__(self, console: Console):
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=60.0,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._what = ""

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, done: float, total: float, what: str) -> None:
        self._bar.update(self._task, completed=done, total=total, description=what, refresh=True)
        if not self._console.is_terminal and what != self._what:
            self._console.print(f"{100 * done / total:3.0f} %  {what}", highlight=False)
        self._what = what


def _known(kind: str, name: str, names: Sequence[str]) -> str:
    """`name` if it is among `names`; otherwise exit with the nearest one."""
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise SystemExit(f"experiments: unknown {kind} {name!r}.{hint} There are: {', '.join(names)}.")


def list_experiments(console: Console) -> None:
    """Print every experiment with its claim and presets."""
    for name in registry.EXPERIMENTS:
        module = registry.load(name)
        console.print(f"[bold]{name}[/bold]  (presets: {', '.join(module.PRESETS)})")
        console.print(f"    {module.CLAIM}", highlight=False)


def _join_the_others(name: str, options: argparse.Namespace) -> None:
    """Become one of several processes; before anything else of JAX, and so before the experiment is imported."""
    able = ", ".join(registry.DISTRIBUTED)
    check.require(name in registry.DISTRIBUTED, "run", "--distributed", f"is known to {able} alone", name)
    start_processes(
        options.coordinator,
        options.num_processes,
        options.process_id,
        heartbeat_seconds=options.heartbeat_seconds,
        shutdown_seconds=options.heartbeat_seconds,
    )


def run(arguments: Sequence[str], console: Console) -> int:
    """Run one experiment; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments run", add_help=False, allow_abbrev=False)
    parser.add_argument("name", nargs="?")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs"))
    several = parser.add_argument_group("several processes")
    several.add_argument("--distributed", action="store_true")
    several.add_argument("--coordinator", metavar="HOST:PORT")
    several.add_argument("--num-processes", type=int)
    several.add_argument("--process-id", type=int)
    several.add_argument("--heartbeat-seconds", type=int, default=100)
    known, fields = parser.parse_known_args(arguments)
    if known.name is None:
        raise SystemExit(f"experiments: run needs the name of an experiment: {', '.join(registry.EXPERIMENTS)}.")
    name = _known("experiment", known.name, list(registry.EXPERIMENTS))
    if known.distributed:
        try:
            _join_the_others(name, known)
        except (ValueError, RuntimeError) as error:
            console.print(f"experiments: {error}", style="red", highlight=False, soft_wrap=True, markup=False)
            return EXIT_BAD_INPUT
        console.quiet = not is_primary()
    module = registry.load(name)
    preset = module.PRESETS[_known("preset", known.preset, list(module.PRESETS))]
    config = tyro.cli(
        module.Config,
        default=preset,
        args=fields,
        prog=f"python -m experiments run {known.name}",
        description=f"{module.CLAIM}\n\nBesides these fields: --preset {' | '.join(module.PRESETS)}, --output DIR; "
        "on several processes --distributed (python -m experiments --help).",
    )
    directory = known.output / run_name(config, known.name)
    console.print(f"{known.name}: results go to {directory}", highlight=False, soft_wrap=True)
    try:
        with Bar(console) as bar, noticing_lost_processes("Start all again; what is done is kept."):
            module.run(config, directory, bar)
    except LostProcessError as error:
        end_lost(error)
    except KeyboardInterrupt:
        again = shlex.join(["python", "-m", "experiments", "run", *arguments])
        console.print(
            f"Interrupted. What is done is kept; the same command goes on from there:\n  {again}", soft_wrap=True
        )
        return EXIT_INTERRUPTED
    except (ValueError, FileNotFoundError, ImportError) as error:
        console.quiet = False  # whichever process it is
        console.print(f"experiments: {error}", style="red", highlight=False, soft_wrap=True, markup=False)
        return EXIT_BAD_INPUT
    if is_primary():
        summary = module.report(directory)
        console.print(summary.table, highlight=False, markup=False, soft_wrap=True)
        console.print(f"The page: {summary.page}", highlight=False, soft_wrap=True)
    agree(False)  # the others wait for the page: processes that share a run end together
    return 0


def report(arguments: Sequence[str], console: Console) -> int:
    """Draw again the figures and pages of the finished runs below a folder, from their stored arrays."""
    parser = argparse.ArgumentParser(prog="python -m experiments report")
    parser.add_argument("directory", nargs="?", type=pathlib.Path, default=pathlib.Path("runs"))
    root = parser.parse_args(arguments).directory
    found = 0
    for metrics in sorted(root.rglob("metrics.json")):
        name = load_run(metrics.parent).metrics.get("experiment")  # a part of a run has none
        if name not in registry.EXPERIMENTS:
            continue
        summary = registry.load(name).report(metrics.parent)
        console.print(summary.table, highlight=False, markup=False, soft_wrap=True)
        console.print(f"The page: {summary.page}", highlight=False, soft_wrap=True)
        found += 1
    if not found:
        console.print(f"experiments: no finished run below {root}.", style="red", soft_wrap=True)
        return EXIT_BAD_INPUT
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Dispatch on the first word; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        console.print(__doc__, highlight=False, markup=False)
        return 0
    command = _known("command", command, ["list", "run", "report"])
    if command == "list":
        list_experiments(console)
        return 0
    return run(arguments[1:], console) if command == "run" else report(arguments[1:], console)


if __name__ == "__main__":
    sys.exit(main())

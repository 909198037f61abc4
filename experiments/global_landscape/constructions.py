"""The constructions behind the theorems on the global landscape, run and certified.

Claims (Sun et al. 2007.01429 and the papers it reviews; `jflat.landscape.constructions` has them one by one):

1. Networks of any width with a smooth activation have bad local minima (D1); these belong to plateaus with an exit at
   equal loss, as wide networks have no bad basin (D2). One sigmoid neuron has 2^d strict minima.
2. One exponential neuron leaves no bad local minimum (D3); so does a factor without a unit more, by opening a path to
   infinity (D4), which a regulariser closes, at the price of the minimum (D5).
3. Critical points of a network are lines of critical points of the wider one; ReLU networks have traps (D7).
4. A ReLU student with orthonormal teacher: no spurious minima with 5 units, 0.33 +- 0.06 of the runs with 10 (D8).
5. Two minima of a wide network are joined by a path without a barrier, where the straight line has one (D9).
6. Networks trained from a late enough step, small ones from the start, are stable to the noise of SGD: no barrier
   between children; and masks by magnitude keep the accuracy where random ones lose it (D10).

That all local minima of deep linear networks are global (D6) is enumerated in the experiment on critical points.

    python -m experiments run landscape-constructions                     about 5 minutes on two cores
    python -m experiments run landscape-constructions --preset smoke      seconds; the tests run it
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal

from experiments.global_landscape import constructions_page, constructions_parts, tickets
from experiments.parts import Part, run_parts
from experiments.registry import Progress, Summary

__all__ = ["CLAIM", "PRESETS", "Config", "report", "run"]

CLAIM = (
    "Bad local minima exist at any width, what removes them has a price, and wide networks connect their minima "
    "(2007.01429)."
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    num_samples: int = 20
    dimension: int = 2
    activations: tuple[Literal["sigmoid", "swish", "tanh"], ...] = ("sigmoid", "swish", "tanh")
    units: tuple[int, ...] = (2, 10, 50)
    """N of the bad local minima."""
    num_probes: int = 20000
    """On each sphere around a claimed minimum."""
    num_radii: int = 25
    num_points: int = 21
    """Of a plateau."""
    num_steps: int = 3000
    """Of gradient descent from its exit."""
    num_fits: int = 4
    fit_steps: int = 200
    """Random starts of Levenberg-Marquardt, and its steps: what the same network can reach."""
    dimensions: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    """d of one sigmoid neuron."""
    num_runs: int = 2000
    lam: float = 0.1
    """Regulariser of the exponential neuron."""
    factor_lam: float = 0.1
    factor_mu: float = 0.01
    final_time: float = 1e5
    num_gammas: int = 51
    widths: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Of ReLU traps."""
    teachers: tuple[int, ...] = (5, 6, 8, 10, 12, 15)
    """k = n of students and teachers; 20 takes the time of all these together."""
    extra_students: tuple[int, ...] = (8, 10, 12)
    """Teachers that a student with one unit more is trained on too."""
    num_starts: int = 300
    student_steps: int = 8000
    num_certified: int = 5
    num_pairs: int = 5
    hidden: tuple[int, ...] = (64, 32)
    rewind_steps: tuple[int, ...] = (0, 20, 100, 300)
    ticket_steps: int = 1000
    ticket_seeds: int = 6
    num_rounds: int = 6
    prune_fraction: float = 0.4
    learning_rate: float = 0.1
    batch_size: int = 32
    seed: int = 0


PRESETS = {
    "smoke": Config(
        activations=("tanh",),
        units=(2,),
        num_probes=100,
        num_radii=4,
        num_points=3,
        num_steps=50,
        num_fits=1,
        fit_steps=20,
        dimensions=(1, 2),
        num_runs=50,
        final_time=1e3,
        num_gammas=5,
        widths=(2, 4),
        teachers=(5, 6),
        extra_students=(),
        num_starts=6,
        student_steps=300,
        num_certified=1,
        num_pairs=1,
        hidden=(8,),
        rewind_steps=(0, 20),
        ticket_steps=40,
        ticket_seeds=2,
        num_rounds=1,
    ),
    "default": Config(),
    "paper": Config(num_starts=1000, teachers=(5, 6, 7, 8, 9, 10, 12, 15, 20), extra_students=(8, 10, 12, 15, 20)),
}


def _parts(config: Config) -> dict[str, Part]:
    def quiet(compute: Callable[..., Any], *more: Any) -> Part:
        def part(tell: Callable[[float, str], None]) -> Any:
            tell(0.0, compute.__name__)
            with constructions_parts.double():
                return compute(config, *more)

        return part

    p = constructions_parts
    parts = {
        f"minimum/{name}/{units}": quiet(p.minimum, name, units)
        for name in config.activations
        for units in config.units
    }
    simple = {"sigmoid": p.sigmoid, "neuron": p.neuron, "factor": p.factor, "duplicate": p.duplicate, "relu": p.relu}
    parts |= {name: quiet(compute) for name, compute in simple.items()}
    pairs = [(k, k) for k in config.teachers] + [(k, k + 1) for k in config.extra_students]
    parts |= {f"students/{m}/{k}": quiet(p.students, m, k) for m, k in pairs}
    parts["wide"] = quiet(p.wide)

    def lottery(tell: Callable[[float, str], None]) -> Any:  # in float32, as networks are trained
        tell(0.0, "tickets")
        return tickets.tickets(config)

    return parts | {"tickets": lottery}


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Compute part by part what is not there yet."""
    costs = {f"students/{m}/{k}": m * k / 20 for m in config.teachers for k in (m, m + 1)} | {"tickets": 20.0}
    run_parts(config, directory, progress, _parts(config), constructions_page.summarise, costs)


def report(directory: pathlib.Path) -> Summary:
    """Figures and the page, from stored arrays."""
    return constructions_page.draw(directory, CLAIM)

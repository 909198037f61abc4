"""abc-parametrisations as data: how a network's multipliers, initial sizes and learning rates depend on its width.

A network of L hidden layers of width n has weights W^l = n^{-a_l} w^l with w^l_ij ~ N(0, n^{-2 b_l}) initially, and w^l
is trained with the learning rate eta n^{-c_l}, eta free of n. The exponents (a_l, b_l, c_l) of the first layer, of the
layers in between and of the readout are the parametrisation; constants in front never matter. Exponents are exact
fractions, so what `classify` says is exact too.

**Symmetry.** The function f_t is unchanged at any width and time under

    SGD (also momentum):           a_l += theta_l,   b_l -= theta_l,   c_l -= 2 theta_l
    Adam with eps = 0, sign-like:  a_l += theta_l,   b_l -= theta_l,   c_l -= theta_l

because the gradient with respect to w is n^{-a} times that with respect to W. `shift` moves along it, `fold` moves to
a = 0 (no multipliers in the network), `canonical` to equal c_l (one learning rate for all layers), where everything
that mixes layers has to be computed: global norms, trust regions, sharpness.

The exponent c means another thing for SGD than for Adam, so the optimiser is part of the data.

Reference: Yang & Hu 2021 (arXiv:2011.14522), definition 3.1 and table 1; Yang & Littwin 2023 (arXiv:2308.01814) for
Adam. Differs from them in that every kind of layer has its own c (theirs is shared, or shifted to be so).
"""

import dataclasses
from fractions import Fraction
from typing import Any, NamedTuple

from jflat.core import check

__all__ = ["ABC", "Exponents", "canonical", "fold", "mfp", "mup", "ntp", "shift", "sp"]

HALF = Fraction(1, 2)
OPTIMIZERS = ("sgd", "adam")
"""Those whose symmetry and scaling are known: "sgd" is any update linear in the gradients, "adam" any entrywise one."""


class Exponents(NamedTuple):
    """The exponents of one kind of layer, fractions: W = n^{-a} w, std w = n^{-b}, learning rate eta n^{-c}."""

    a: Fraction
    """Of the multiplier in the forward pass."""
    b: Fraction
    """Of the initial standard deviation."""
    c: Fraction
    """Of the learning rate."""


def fraction(where: str, argument: str, value: Any) -> Fraction:
    """A number as an exact fraction; a float as the nearest one with a denominator of at most a million."""
    check.require_number(where, argument, float(value) if isinstance(value, Fraction) else value)
    return Fraction(value).limit_denominator(10**6)


@dataclasses.dataclass(frozen=True)
class ABC:
    """An abc-parametrisation: triples (a, b, c) for the three kinds of layers, and the optimiser that c is meant for.

    Biases and gains are like inputs (of size 1); a parameter without an infinite axis, such as the output's bias,
    depends on no exponent.

    Raises:
      ValueError: for exponents that are no numbers, an optimiser that is not "sgd" or "adam".

    >>> ABC((0, 0, 1), (0, 0.5, 1), (0, 0.5, 1)) == sp(c=1)
    True
    """

    input: Exponents
    """Of the first layer: finite fan-in, infinite fan-out."""
    hidden: Exponents
    """Of the layers with both infinite."""
    output: Exponents
    """Of the readout: infinite fan-in, finite fan-out."""
    optimizer: str = "sgd"
    """"sgd" (also momentum: linear in the gradients) or "adam" (entrywise and free of the gradient's scale)."""

    def __post_init__(self) -> None:
        for name in ("input", "hidden", "output"):
            triple = tuple(getattr(self, name))
            check.require(len(triple) == 3, "ABC", name, "must be the triple (a, b, c)", triple)
            object.__setattr__(self, name, Exponents(*(fraction("ABC", name, value) for value in triple)))
        check.require_choice("ABC", "optimizer", self.optimizer, OPTIMIZERS)

    @property
    def layers(self) -> tuple[Exponents, Exponents, Exponents]:
        """(input, hidden, output)."""
        return self.input, self.hidden, self.output

    @property
    def rate_power(self) -> int:
        """The update of W is n^{-(rate_power a + c)} times what the optimiser makes of the gradients of W: 2 or 1."""
        return 2 if self.optimizer == "sgd" else 1


def sp(c: Any = 0, optimizer: str = "sgd") -> ABC:
    """The standard parametrisation: std 1 in the first layer, fan_in^{-1/2} after it, one learning rate eta n^{-c}.

    With SGD it is stable from c = 1 on, and then in the kernel regime.
    """
    return ABC((0, 0, c), (0, HALF, c), (0, HALF, c), optimizer)  # type: ignore[arg-type]


def ntp(optimizer: str = "sgd") -> ABC:
    """The neural tangent parametrisation: W = n^{-1/2} w with w ~ N(0, 1) behind the first layer; kernel regime."""
    rates = (0, 0, 0) if optimizer == "sgd" else (HALF, 1, HALF)
    return ABC((0, 0, rates[0]), (HALF, 0, rates[1]), (HALF, 0, rates[2]), optimizer)  # type: ignore[arg-type]


def mfp() -> ABC:
    """The mean-field parametrisation for SGD, W^{L+1} = w / n with learning rate eta n; for L > 1 also n^{-1/2} inside.

    It is `shift(mup(), 1/2)`, so the same networks as muP.

    >>> mfp() == shift(mup(), 1 / 2)
    True
    """
    return ABC((0, 0, -1), (HALF, 0, -1), (1, 0, -1))  # type: ignore[arg-type]


def mup(optimizer: str = "sgd") -> ABC:
    """The maximal-update parametrisation: the one where every layer learns as much as it can without blowing up.

    SGD: Yang & Hu, definition 5.1. Adam: Yang & Littwin, whose d_l is a function of these (`prescale_by_abc`).

    >>> print([str(sum(e)) for e in fold(mup("adam")).layers])  # 1: std 1, rate 1; then n^{-1/2}, 1/n; then 1/n, 1/n
    ['0', '3/2', '2']
    """
    if optimizer == "sgd":
        return ABC((-HALF, HALF, 0), (0, HALF, 0), (HALF, HALF, 0))  # type: ignore[arg-type]
    return ABC((0, 0, 0), (0, HALF, 1), (1, 0, 0), optimizer)  # type: ignore[arg-type]


def shift(p: ABC, theta: Any) -> ABC:
    """The same networks in other coordinates: a += theta, b -= theta, c -= 2 theta (SGD) or theta (Adam).

    Args:
      p: the parametrisation.
      theta: one number for all layers, or three: (input, hidden, output).

    Returns:
      An `ABC` whose networks compute the same functions at every width and step (Adam: at eps = 0, or behind
      `prescale_by_abc`).

    Raises:
      ValueError: for something else than one number or three.
    """
    thetas = tuple(theta) if isinstance(theta, tuple | list) else (theta,) * 3
    check.require(len(thetas) == 3, "shift", "theta", "must be a number or three: input, hidden, output", theta)
    moves = [fraction("shift", "theta", value) for value in thetas]
    moved = [Exponents(e.a + t, e.b - t, e.c - p.rate_power * t) for e, t in zip(p.layers, moves, strict=True)]
    return ABC(moved[0], moved[1], moved[2], p.optimizer)


def fold(p: ABC) -> ABC:
    """The member of p's class without multipliers, a = 0: only an initialisation and learning rates per layer.

    >>> [(float(e.b), float(e.c)) for e in fold(mup()).layers]  # stds 1, n^{-1/2}, 1/n; learning rates n, 1, 1/n
    [(0.0, -1.0), (0.5, 0.0), (1.0, 1.0)]
    """
    return shift(p, tuple(-e.a for e in p.layers))


def canonical(p: ABC, c: Any = 0) -> ABC:
    """The member of p's class whose layers all have the learning-rate exponent `c`.

    Parameters without an infinite axis (see `ABC`) have no exponents: for c other than 0 their rate stays apart.

    >>> canonical(fold(mup())) == mup()
    True
    """
    target = fraction("canonical", "c", c)
    return shift(p, tuple((e.c - target) / p.rate_power for e in p.layers))

r"""The devices of the theory, as values: a measure on the weights and a channel from overlaps to stabilities.

Two weight vectors with overlap q have fields at a random pattern with correlation Q(q); the pattern is satisfied at
margin kappa if the field exceeds kappa. With infinitely many hidden units the output field is Gaussian, and only Q
knows the activation:

    perceptron             Q(q) = q
    tree committee, sign   Q(q) = (2 / pi) arcsin q
    tree committee, relu   Q(q) = (sqrt(1 - q^2) + q (pi / 2 + arcsin q) - 1) / (pi - 1)      (half the outputs are -1)

(centred and normalised: Q(0) = 0, Q(1) = 1; Barkai, Hansel, Sompolinsky 1992; 1907.07578). A committee or
parity machine with few hidden units is a sum over internal representations instead (`entropy`).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jflat.core import check

__all__ = [
    "Model",
    "binary_perceptron",
    "parity_machine",
    "spherical_perceptron",
    "tree_committee",
]


@dataclasses.dataclass(frozen=True)
class Model:
    """A device whose N weights are +-1 (`binary`) or on the sphere |w|^2 = N (`spherical`).

    Build it with `binary_perceptron`, `spherical_perceptron`, `tree_committee` or `parity_machine`.
    """

    weights: str = "binary"
    """"binary" or "spherical"."""
    activation: str = "linear"
    """"linear" (one unit), "sign", "relu" (K to infinity), "majority" or "parity" (of K sign units)."""
    num_hidden: float = math.inf
    """K of "majority" and "parity"; infinite else."""

    def __post_init__(self) -> None:
        check.require_choice("Model", "weights", self.weights, ("binary", "spherical"))
        check.require_choice("Model", "activation", self.activation, ("linear", "sign", "relu", "majority", "parity"))
        few = self.activation in ("majority", "parity")
        rule = "must be 3 (majority), 2 or 3 (parity) with few hidden units, infinite else"
        odd = self.activation != "majority" or self.num_hidden == 3
        is_right = self.num_hidden in (2, 3) and odd if few else math.isinf(self.num_hidden)
        check.require(is_right, "Model", "num_hidden", rule, self.num_hidden)

    @property
    def is_gaussian(self) -> bool:
        """Whether the output field is Gaussian: one unit, or infinitely many."""
        return self.activation in ("linear", "sign", "relu")

    def kernel(self, q: jax.Array) -> jax.Array:
        """Q(q), the correlation of the fields of two weight vectors with overlap q."""
        return _KERNELS[self.activation](q)


def _sign_kernel(q: jax.Array) -> jax.Array:
    return jnp.arcsin(q) * (2 / math.pi)


def _relu_kernel(q: jax.Array) -> jax.Array:
    without_one = -q * q / (1 + jnp.sqrt(1 - q * q))  # sqrt(1 - q^2) - 1, exact for small q
    return (without_one + q * (math.pi / 2 + jnp.arcsin(q))) / (math.pi - 1)


_KERNELS = {"linear": lambda q: q, "sign": _sign_kernel, "relu": _relu_kernel}


def binary_perceptron() -> Model:
    """sign(w . xi), w in {-1, 1}^N."""
    return Model()


def spherical_perceptron() -> Model:
    """sign(w . xi), |w|^2 = N."""
    return Model(weights="spherical")


def tree_committee(activation: str = "sign", num_hidden: float = math.inf, *, weights: str = "binary") -> Model:
    """A committee whose K units see disjoint inputs: "sign" with K = 3 or infinite, "relu" with K infinite.

    >>> tree_committee("relu").kernel(jnp.float32(1.0))
    Array(1., dtype=float32)
    """
    check.require_choice("tree_committee", "activation", activation, ("sign", "relu"))
    if math.isinf(num_hidden):
        return Model(weights, activation)
    check.require(activation == "sign", "tree_committee", "num_hidden", "must be infinite for relu", num_hidden)
    return Model(weights, "majority", num_hidden)


def parity_machine(num_hidden: int = 3, *, weights: str = "binary") -> Model:
    """The product of the signs of K = 2 or 3 units that see disjoint inputs: a device without wide flat minima."""
    return Model(weights, "parity", num_hidden)

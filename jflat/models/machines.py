r"""Machines of statistical physics with one output +-1: the perceptron, the committee and the parity machine.

Unit l sees n inputs (all N, or its own N / K in a tree) through the pre-activation lambda_l, and answers tau_l:

    lambda_l = w_l . x_l / sqrt(n) (+ b for the perceptron),        tau_l = g(lambda_l)

    perceptron    f = lambda
    committee     f = K^(-1/2) sum_l c_l tau_l      c_l = 1; for ReLU units half of them +1 and half -1
    parity        f = prod_l tau_l

The class is sign f, and y f is the margin that `jflat.losses` takes (`on_margins`). The activation g is

    "sign"  sign lambda, without gradient           "tanh"  tanh(slope lambda)
    "relu"  max(0, lambda)                          "erf"   erf(slope lambda / sqrt 2)

tanh and erf being relaxations of sign. Weights w follow from the parameters h:

    "real"        w = h
    "clipped"     w = sign h in the value, the identity in the gradient (straight through)
    "tanh"        w = tanh(weight_slope h), a relaxation; let h or the slope grow
    "mean_field"  w = +-1 at random and independent, with mean m = tanh h: by the central limit theorem lambda is normal
                  with mean omega = m . x / sqrt(n) and variance V = sum_i (1 - m_i^2) x_i^2 / n, and tau is the mean

        E sign lambda = erf(omega / sqrt(2 V)),    E erf(s lambda / sqrt 2) = erf(s omega / sqrt(2 (1 + s^2 V)))
        E relu lambda = omega Phi(omega / sqrt V) + sqrt(V) phi(omega / sqrt V)

so a sign unit becomes smooth; the perceptron's output is then E sign lambda too. `binarise` gives the weights +-1 of
trained h, to be judged by the same machine with real weights. The parameters are {"weights": h}, h (N,) for the
perceptron, (K, n) otherwise, the layout of the message-passing algorithms.

With inputs +-1 and weights +-1 take n odd (and K odd for sign units), or f may be exactly zero: that counts as wrong.

References: Baldassi et al. 1905.07833 (committees, +-1 weights), 1907.07578 (ReLU), 1710.09825 (stochastic weights).
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jflat.core import check
from jflat.models.model import Model, build

__all__ = ["binarise", "committee", "parity_machine", "perceptron"]

PyTree = Any

ACTIVATIONS = ("sign", "relu", "tanh", "erf")
WEIGHTS = ("real", "clipped", "tanh", "mean_field")
_HIGHEST = jax.lax.Precision.HIGHEST


def _signs(h: jax.Array) -> jax.Array:
    return jnp.where(h >= 0, jnp.ones_like(h), -jnp.ones_like(h))


def binarise(params: PyTree) -> PyTree:
    """The configuration +-1 that latent parameters stand for: sign of every number, zero counting as +1.

    >>> binarise({"weights": jnp.array([0.3, -2.0, 0.0])})["weights"]
    Array([ 1., -1.,  1.], dtype=float32)
    """
    return jax.tree.map(_signs, params)


class Machine(nn.Module):
    """The machines of the module; `readout` is "field" (perceptron), "vote" or "product"."""

    num_units: int
    is_tree: bool
    readout: str
    activation: str
    slope: float
    weights: str
    weight_slope: float
    has_bias: bool
    scale: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, N) -> (B,)."""
        groups = self.num_units if self.is_tree else 1
        inputs = x.shape[1] // groups
        shape = (inputs,) if self.readout == "field" else (self.num_units, inputs)
        h = self.param("weights", nn.initializers.normal(self.scale), shape, self.dtype).reshape(-1, inputs)
        x = x.reshape(-1, groups, inputs)
        mean = self._through(x, self._weights(h))
        if self.has_bias:
            mean = mean + self.param("bias", nn.initializers.zeros, (), self.dtype)
        variance = None
        if self.weights == "mean_field":
            spread = 4 * jax.nn.sigmoid(2 * h) * jax.nn.sigmoid(-2 * h)  # 1 - tanh^2 h without cancellation
            variance = self._through(x * x / math.sqrt(inputs), spread)
        if self.readout == "field" and variance is None:
            return mean[:, 0]
        tau = self._answers(mean, variance)
        if self.readout == "product":
            return jnp.prod(tau, axis=1)
        if self.activation == "relu":
            half = self.num_units // 2
            return (jnp.sum(tau[:, :half], axis=1) - jnp.sum(tau[:, half:], axis=1)) / math.sqrt(self.num_units)
        return jnp.sum(tau, axis=1) / math.sqrt(self.num_units)

    def _weights(self, h: jax.Array) -> jax.Array:
        if self.weights == "real":
            return h
        if self.weights == "clipped":
            return _signs(h) + (h - jax.lax.stop_gradient(h))  # exactly +-1
        return jnp.tanh((self.weight_slope if self.weights == "tanh" else 1.0) * h)

    def _through(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """w_l . x_l / sqrt(n): (B, G, n) and (K, n) -> (B, K)."""
        root = math.sqrt(x.shape[2])
        if self.is_tree:
            return jnp.einsum("bkn,kn->bk", x, w, precision=_HIGHEST) / root
        return jnp.matmul(x[:, 0], w.T, precision=_HIGHEST) / root

    def _answers(self, mean: jax.Array, variance: jax.Array | None) -> jax.Array:
        """tau, or its mean over the weights."""
        if variance is None:
            if self.activation == "sign":
                return jnp.where(mean > 0, 1, jnp.where(mean < 0, -1, 0)).astype(mean.dtype)
            if self.activation == "relu":
                return jax.nn.relu(mean)
            if self.activation == "tanh":
                return jnp.tanh(self.slope * mean)
            return jax.lax.erf(self.slope / math.sqrt(2) * mean)
        if self.activation == "erf":
            return jax.lax.erf(self.slope * mean / jnp.sqrt(2 * (1 + self.slope**2 * variance)))
        width = jnp.sqrt(jnp.maximum(variance, jnp.finfo(mean.dtype).eps ** 2))
        if self.activation == "sign":
            return jax.lax.erf(mean / (math.sqrt(2) * width))
        z = mean / width
        return mean * jax.scipy.stats.norm.cdf(z) + width * jax.scipy.stats.norm.pdf(z)


def _machine(
    name: str,
    num_inputs: int,
    num_units: int,
    tree: bool,
    readout: str,
    activation: str,
    slope: float,
    weights: str,
    weight_slope: float,
    bias: bool,
    scale: float,
    dtype: Any,
) -> Model:
    check.require_integer(name, "num_inputs", num_inputs, 1)
    check.require_integer(name, "num_units", num_units, 1)
    rule = f"must be divisible by num_units = {num_units} for a tree"
    check.require(not tree or num_inputs % num_units == 0, name, "num_inputs", rule, num_inputs)
    check.require_choice(name, "activation", activation, ACTIVATIONS)
    check.require_choice(name, "weights", weights, WEIGHTS)
    for argument, value in {"slope": slope, "weight_slope": weight_slope, "scale": scale}.items():
        check.require_number(name, argument, value, 0.0, exclusive=True)
    known = weights != "mean_field" or activation != "tanh"
    check.require(known, name, "activation", "has no mean in closed form with weights='mean_field'; use 'erf'", "tanh")
    rule = "must be even for ReLU units, half of which vote -1"
    check.require(activation != "relu" or num_units % 2 == 0, name, "num_units", rule, num_units)
    module = Machine(num_units, tree, readout, activation, slope, weights, weight_slope, bias, scale, dtype)
    return build(name, module, (num_inputs,), dtype)


def perceptron(
    num_inputs: int,
    *,
    weights: str = "real",
    weight_slope: float = 1.0,
    bias: bool = False,
    scale: float = 1.0,
    dtype: Any = jnp.float32,
) -> Model:
    """f = w . x / sqrt(N) + b, or its mean sign erf(omega / sqrt(2 V)) for weights="mean_field".

    Args:
      num_inputs: N.
      weights: "real", "clipped", "tanh" or "mean_field", see the module.
      weight_slope: of weights="tanh"; positive.
      bias: add a real bias b, which starts at 0.
      scale: standard deviation of the parameters h at the start.
      dtype: of the parameters; inputs must have it.

    Returns:
      A `Model` with outputs (B,), parameters {"weights": (N,)[, "bias": ()]} and no state.

    Raises:
      ValueError: for a size below 1, an unknown choice, a slope or scale that is not positive; at call time for inputs
        of another shape or of integers.

    >>> model = perceptron(4)
    >>> model.apply({"weights": jnp.array([1.0, 1.0, 1.0, -1.0])}, {}, jnp.ones((1, 4)))
    Array([1.], dtype=float32)
    """
    name = "perceptron"
    return _machine(name, num_inputs, 1, False, "field", "sign", 1.0, weights, weight_slope, bool(bias), scale, dtype)


def committee(
    num_inputs: int,
    num_units: int,
    *,
    tree: bool = False,
    activation: str = "sign",
    slope: float = 1.0,
    weights: str = "real",
    weight_slope: float = 1.0,
    scale: float = 1.0,
    dtype: Any = jnp.float32,
) -> Model:
    """f = K^(-1/2) sum_l c_l g(w_l . x_l / sqrt(n)): a hidden layer whose votes have fixed weights c_l.

    Args:
      num_inputs: N, divisible by K for a tree.
      num_units: K; even for ReLU units, and odd for sign units if the vote should never be a draw.
      tree: unit l sees inputs l N / K to (l + 1) N / K only; else all units see all inputs.
      activation: "sign", "relu", "tanh" or "erf".
      slope: of tanh and erf; positive.
      weights, weight_slope, scale, dtype: as in `perceptron`; "mean_field" goes with all activations but "tanh".

    Returns:
      A `Model` with outputs (B,), parameters {"weights": (K, n)} and no state. Gradients through "sign" with weights
      that are not "mean_field" are zero.

    Raises:
      ValueError: as `perceptron`, and for sizes or choices that do not go together.

    >>> model = committee(3, 3)
    >>> model.apply({"weights": jnp.eye(3)}, {}, jnp.array([[1.0, 1.0, -1.0]]))  # two votes to one: 1 / sqrt 3
    Array([0.57735026], dtype=float32)
    """
    return _machine(
        "committee", num_inputs, num_units, tree, "vote", activation, slope, weights, weight_slope, False, scale, dtype
    )


def parity_machine(
    num_inputs: int,
    num_units: int,
    *,
    tree: bool = True,
    activation: str = "sign",
    slope: float = 1.0,
    weights: str = "real",
    weight_slope: float = 1.0,
    scale: float = 1.0,
    dtype: Any = jnp.float32,
) -> Model:
    """f = prod_l g(w_l . x_l / sqrt(n)): the device whose solutions have no wide flat minima.

    Args:
      num_inputs, num_units: N and K.
      tree: as in `committee`; the parity machine of the literature is a tree.
      activation: "sign", "tanh" or "erf".
      slope, weights, weight_slope, scale, dtype: as in `committee`. With "mean_field" in a tree the units are
        independent, so f is the exact mean of the product; where units share inputs too, because weights do not.

    Returns:
      A `Model` with outputs (B,), parameters {"weights": (K, n)} and no state.

    Raises:
      ValueError: as `committee`, and for ReLU units, whose product has no sign.

    >>> model = parity_machine(2, 2)
    >>> model.apply({"weights": jnp.ones((2, 1))}, {}, jnp.array([[1.0, -1.0], [-1.0, -1.0]]))
    Array([-1.,  1.], dtype=float32)
    """
    name = "parity_machine"
    check.require_choice(name, "activation", activation, tuple(a for a in ACTIVATIONS if a != "relu"))
    return _machine(
        name, num_inputs, num_units, tree, "product", activation, slope, weights, weight_slope, False, scale, dtype
    )

"""The network of the theory: a multi-layer perceptron without biases, as plain functions.

    h^1 = W^1 x,   x^l = phi(h^l),   h^{l+1} = W^{l+1} x^l,   f = W^{L+1} x^L

in the standard parametrisation, W^1_ij ~ N(0, 1/d) and W^l_ij ~ N(0, 1/n) behind it. For coordinate checks, and as the
finite network that a limit is compared with; for work there is `jflat.models.mlp`.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import check
from jflat.width.coordinates import Linear

__all__ = ["PlainNetwork", "plain_mlp"]

PyTree = Any


class PlainNetwork(NamedTuple):
    """Three functions, in the order that `coord_check` wants them."""

    init: Callable[[jax.Array], PyTree]
    """key -> {"layer_0": {"kernel": (d, n)}, ...}."""
    apply: Callable[[PyTree, jax.Array], jax.Array]
    """(params, x of (B, d)) -> (B, outputs)."""
    layers: Callable[[PyTree, jax.Array], dict[str, Linear]]
    """(params, x) -> inputs, kernel and output of the layers h1, ..., hL, f."""


def plain_mlp(
    width: int,
    *,
    input_size: int,
    depth: int,
    num_outputs: int = 1,
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh,
    dtype: Any = jnp.float32,
) -> PlainNetwork:
    """A multi-layer perceptron with `depth` hidden layers of `width` units, without biases.

    >>> network = plain_mlp(8, input_size=3, depth=2)
    >>> params = network.init(jax.random.key(0))
    >>> {name: layer.output.shape for name, layer in network.layers(params, jnp.ones((5, 3))).items()}
    {'h1': (5, 8), 'h2': (5, 8), 'f': (5, 1)}
    """
    named = {"width": width, "input_size": input_size, "depth": depth, "num_outputs": num_outputs}
    for name, value in named.items():
        check.require_integer("plain_mlp", name, value, 1)
    fans = [input_size, *[width] * depth, num_outputs]

    def init(key: jax.Array) -> PyTree:
        # one draw for all layers: the random number generator dominates the compile time
        sizes = [fan_in * fan_out for fan_in, fan_out in itertools.pairwise(fans)]
        numbers = jax.random.normal(key, (sum(sizes),), dtype)
        params, start = {}, 0
        for i, size in enumerate(sizes):
            kernel = numbers[start : start + size].reshape(fans[i], fans[i + 1]) / jnp.sqrt(jnp.asarray(fans[i], dtype))
            params[f"layer_{i}"] = {"kernel": kernel}
            start += size
        return params

    def layers(params: PyTree, x: jax.Array) -> dict[str, Linear]:
        found: dict[str, Linear] = {}
        for i in range(depth + 1):
            kernel = params[f"layer_{i}"]["kernel"]
            found["f" if i == depth else f"h{i + 1}"] = Linear(x, kernel, h := x @ kernel)
            x = activation(h)
        return found

    return PlainNetwork(init, lambda params, x: layers(params, x)["f"].output, layers)

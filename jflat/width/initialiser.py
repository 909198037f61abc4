"""The initialiser side: initial sizes as a transformation of initial parameters, multipliers as one of the network.

Take any network as it is written, whose initialiser is the standard one (std proportional to fan_in^{-1/2}, gains 1,
biases 0), and scale its parameters once after `init`:

    params = init_transform(mup(), shapes)(network.init(key, x))

A parametrisation is used here in its form without multipliers (`fold`): then the network itself needs no change. Who
wants the multipliers n^{-a} in the forward pass (some do, for low precision) says so with `multipliers=True` in every
function of this package and wraps the network once:

    apply = reparametrise(network.apply, multipliers(mup(), shapes))
"""

from collections.abc import Callable
from typing import Any

import jax

from jflat.core import tree
from jflat.width.factors import exponents_of, factors, in_use, multiply, power
from jflat.width.parametrisation import ABC, sp

__all__ = ["init_transform", "multipliers", "reparametrise"]

PyTree = Any


def init_transform(
    p: ABC, shapes: PyTree, *, relative_to: ABC | None = None, multipliers: bool = False
) -> Callable[[PyTree], PyTree]:
    """`transform(params)`: parameters initialised in one parametrisation, scaled to the initial sizes of another.

        w <- m^{-(b - b')} w,   b of p (without multipliers unless `multipliers`), b' of relative_to

    Args:
      p: the parametrisation wanted.
      shapes: from `infer_infshapes`.
      relative_to: what the initialiser follows; None is `sp()`, as the initialisers of flax, haiku and equinox do.
      multipliers: whether the network carries the multipliers of p (`reparametrise`).

    Returns:
      A pure function on parameters, for `jit` and `vmap`. At the base width, and with p = relative_to, it changes no
      bit. An initial value of zero stays zero.

    Raises:
      ValueError: for shapes that are not of `infer_infshapes`; at call time for parameters of another width.

    >>> from jflat.width.parametrisation import mup
    >>> from jflat.width.shapes import InfShape
    >>> shapes = {"readout": InfShape((16, 1), (4, None), (0,), (1,))}
    >>> init_transform(mup(), shapes)({"readout": jax.numpy.ones((16, 1))})["readout"][0]  # 4 times wider
    Array([0.5], dtype=float32)
    """
    where = "init_transform"
    wanted, given = in_use(p, multipliers), sp() if relative_to is None else relative_to
    numbers = factors(where, shapes, lambda s: power(s, exponents_of(wanted, s).b - exponents_of(given, s).b))
    return lambda params: multiply(where, "params", shapes, numbers, params)


def multipliers(p: ABC, shapes: PyTree) -> PyTree:
    """m^{-a} for each parameter, a pytree of Python numbers; all 1 for a folded p."""
    return factors("multipliers", shapes, lambda s: power(s, exponents_of(p, s).a))


def reparametrise(apply_fn: Callable[..., Any], numbers: PyTree) -> Callable[..., Any]:
    """`apply(params, *args) = apply_fn(numbers * params, *args)`: the network with multipliers in its forward pass.

    >>> apply = reparametrise(lambda params, x: params["w"] * x, {"w": 0.5})
    >>> apply({"w": jax.numpy.ones(2)}, 3.0)
    Array([1.5, 1.5], dtype=float32)
    """

    def apply(params: PyTree, *args: Any, **kwargs: Any) -> Any:
        scaled = jax.tree.map(lambda number, leaf: leaf if number == 1 else tree.scale(number, leaf), numbers, params)
        return apply_fn(scaled, *args, **kwargs)

    return apply

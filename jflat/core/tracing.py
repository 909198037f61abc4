"""What a call can know of how it will run: traced or not, on which platform, with a convolution inside."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["has_convolution", "is_slow_in_loops", "is_traced", "platform_of"]

PyTree = Any


def is_traced(*trees: PyTree) -> bool:
    """Whether a leaf is a tracer, or this runs inside `jit` (where even constants become tracers)."""
    is_tracer = lambda x: isinstance(x, jax.core.Tracer)  # noqa: E731
    return any(map(is_tracer, jax.tree.leaves(trees))) or is_tracer(jax.lax.add(jnp.int32(0), jnp.int32(0)))


def platform_of(*trees: PyTree) -> str:
    """The platform ("cpu", "gpu", "tpu") of the first array; without one, of the default device."""
    for leaf in jax.tree.leaves(trees):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
            return next(iter(leaf.devices())).platform
    return jax.default_backend()


def has_convolution(fn: Callable[..., Any], *args: PyTree) -> bool:
    """Whether the program of `fn(*args)` contains a `lax` convolution; `args` may be abstract."""
    return "conv_general_dilated" in _primitives(jax.make_jaxpr(fn)(*args).jaxpr)


def _primitives(jaxpr: Any) -> set[str]:
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(value, "eqns"):
                names |= _primitives(value)
    return names


def is_slow_in_loops(fn: Callable[..., Any], *args: PyTree) -> bool:
    """Whether loops around `fn` are best driven from the host: nothing traced, on CPU, and a convolution inside.

    XLA gives `lax.conv` its fast CPU kernel only outside loops: inside `scan`, `while_loop` and `lax.map` the gradient
    of a small convnet takes about thirty times as long (jax-ml/jax issue 12868).
    """
    return not is_traced(args) and platform_of(args) == "cpu" and has_convolution(fn, *args)

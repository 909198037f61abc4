"""One way to refuse bad input: the function, the argument, the rule and the value, in one sentence.

Only what is known while tracing is checked (Python and NumPy numbers, shapes, dtypes, tree structures); a traced value
passes, and an algorithm answers for it with a status (`jflat.core.status`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "require",
    "require_choice",
    "require_floating",
    "require_integer",
    "require_number",
    "require_same_structure",
    "require_scalar",
    "returning_scalar",
]


def require(condition: bool, where: str, argument: str, rule: str, value: Any) -> None:
    """Raise `ValueError("where: argument rule; got value.")` unless `condition` holds.

    >>> require(5 <= 3, "lanczos", "num_steps", "must lie in [1, 3], the size of the space", 5)
    Traceback (most recent call last):
        ...
    ValueError: lanczos: num_steps must lie in [1, 3], the size of the space; got 5.
    """
    if not condition:
        raise ValueError(f"{where}: {argument} {rule}; got {value}.")


def require_integer(where: str, argument: str, value: Any, minimum: int, maximum: int | None = None) -> None:
    """Refuse a host value that is not an integer in `[minimum, maximum]`; pass traced integers."""
    if isinstance(value, jax.Array):
        is_integer = jnp.issubdtype(value.dtype, jnp.integer) and value.ndim == 0
        require(is_integer, where, argument, "must be an integer scalar", f"{value.dtype}{list(value.shape)}")
        return
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    require(is_integer, where, argument, "must be an integer", repr(value))
    bounds = f"must be at least {minimum}" if maximum is None else f"must lie in [{minimum}, {maximum}]"
    require(minimum <= value and (maximum is None or value <= maximum), where, argument, bounds, value)


def require_number(
    where: str,
    argument: str,
    value: Any,
    minimum: float = -np.inf,
    maximum: float = np.inf,
    *,
    exclusive: bool = False,
    finite: bool = True,
) -> None:
    """Refuse a number outside `[minimum, maximum]` (open interval if `exclusive`), NaN, and infinity if `finite`.

    Traced scalars, arrays and schedules (callables) pass.
    """
    if callable(value) or (isinstance(value, jax.Array) and value.ndim > 0):
        return
    if isinstance(value, jax.Array):
        try:
            value = value.item()
        except jax.errors.ConcretizationTypeError:
            return
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    require(is_number, where, argument, "must be a number", repr(value))
    inside = minimum < value < maximum if exclusive else minimum <= value <= maximum
    left, right = ("(", ")") if exclusive else ("[", "]")
    rule = f"must {'be finite and ' if finite else ''}lie in {left}{minimum:g}, {maximum:g}{right}"
    require(inside and (not finite or bool(np.isfinite(value))), where, argument, rule, value)


def require_choice(where: str, argument: str, value: Any, choices: tuple[str, ...] | Mapping[str, Any]) -> None:
    """Refuse a value that is not among `choices`, naming them all."""
    require(value in choices, where, argument, "must be one of " + ", ".join(map(repr, choices)), repr(value))


def require_floating(where: str, argument: str, tree: Any) -> None:
    """Refuse an empty pytree, and leaves that are no arrays or have no derivative (integers, booleans, keys)."""
    leaves = jax.tree.leaves_with_path(tree)
    require(len(leaves) > 0, where, argument, "must have at least one array", "an empty tree")
    for path, leaf in leaves:
        name = f"{argument}{jax.tree_util.keystr(path)}"
        is_real = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        require(is_real, where, name, "must be a real floating-point array", getattr(leaf, "dtype", repr(leaf)))


def require_same_structure(where: str, argument: str, tree: Any, like: Any) -> None:
    """Refuse a pytree whose structure, shapes or dtypes differ from those of `like`, naming the first such leaf."""
    got: Any = jax.tree.structure(tree)
    want: Any = jax.tree.structure(like)
    require(got == want, where, argument, f"must have the tree structure {want}", got)
    for (path, leaf), reference in zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(like), strict=True):
        name = f"{argument}{jax.tree_util.keystr(path)}"
        shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
        rule = f"must have shape {tuple(reference.shape)} and dtype {reference.dtype}"
        require(shape == tuple(reference.shape) and dtype == reference.dtype, where, name, rule, f"{shape} {dtype}")


def require_scalar(where: str, argument: str, value: Any) -> None:
    """Refuse a function value that is not one real scalar (`value` may be abstract)."""
    shapes = jax.tree.map(jnp.shape, value)
    rule = "must return one scalar, the mean loss per sample"
    if isinstance(value, tuple | list) and len(value) == 2 and shapes[0] == ():
        rule += " (without a second value: give batch statistics and other model state at frozen values)"
    require(shapes == (), where, argument, rule, f"shapes {shapes}")
    dtype = jnp.result_type(value)
    require(jnp.issubdtype(dtype, jnp.floating), where, argument, "must return a real floating-point scalar", dtype)


def returning_scalar(where: str, argument: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, with each value refused that is not one real scalar: ahead of `jax.grad`, whose error names no argument."""

    def checked(*args: Any) -> Any:
        value = fn(*args)
        require_scalar(where, argument, value)
        return value

    return checked

"""The numbers of a parametrisation for each parameter, and how they meet a pytree.

With m_in and m_out, how many times wider than the base a parameter's fans are, n^{-e} becomes m^{-e}: m = m_out for
inputs and biases, m_in for hidden matrices and readouts, and 1 for what has no infinite axis. So at the base width all
factors are exactly 1, and a factor of 1 is not multiplied: the base network is left alone to the last bit.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax

from jflat.core import check, tree
from jflat.width.parametrisation import ABC, Exponents, fold
from jflat.width.shapes import InfShape, Role

__all__ = ["exponents_of", "factors", "in_use", "multiply", "power", "update_factor"]

PyTree = Any


def in_use(p: ABC, multipliers: bool) -> ABC:
    """`p` itself if the network carries its multipliers, else the member of its class that needs none."""
    return p if multipliers else fold(p)


def exponents_of(p: ABC, shape: InfShape) -> Exponents:
    """Of the role; zeros for a SCALAR."""
    if shape.role is Role.SCALAR:
        return Exponents(Fraction(0), Fraction(0), Fraction(0))
    return {Role.HIDDEN: p.hidden, Role.OUTPUT: p.output}.get(shape.role, p.input)


def power(shape: InfShape, exponent: Fraction) -> float:
    """m^{-exponent}, with the m of the role."""
    m = shape.n_out if shape.role in (Role.INPUT, Role.BIAS) else shape.n_in
    return float(m ** -float(exponent))


def update_factor(p: ABC, shape: InfShape, rectangular: bool) -> float:
    """m^{-c}, and for hidden matrices under SGD the ratio of their fans."""
    factor = power(shape, exponents_of(p, shape).c)
    if rectangular and shape.role is Role.HIDDEN and p.optimizer == "sgd":
        factor *= (shape.n_out / shape.n_in) ** float(2 * (p.output.a + p.output.b) - 1)
    return factor


def factors(where: str, shapes: PyTree, factor_fn: Callable[[InfShape], float]) -> PyTree:
    """A tree of numbers from a tree of `InfShape`s.

    Raises:
      ValueError: for leaves that are no `InfShape`.
    """
    for path, leaf in jax.tree.leaves_with_path(shapes):
        rule = "must be an InfShape (from infer_infshapes)"
        check.require(isinstance(leaf, InfShape), where, f"shapes{jax.tree_util.keystr(path)}", rule, repr(leaf))
    return jax.tree.map(factor_fn, shapes)


def multiply(where: str, argument: str, shapes: PyTree, numbers: PyTree, values: PyTree) -> PyTree:
    """numbers * values leaf by leaf, in the dtype of `values`; those of 1 are passed through.

    A leaf may have further axes in front (replicas, seeds), or be an empty tree (`optax.MaskedNode`, None).

    Raises:
      ValueError: if `values` has another structure than `shapes`, or is of another width.
    """

    def one(path: Any, shape: InfShape, number: float, part: PyTree) -> PyTree:
        def scaled(leaf: Any) -> Any:
            fits = tuple(leaf.shape)[leaf.ndim - len(shape.shape) :] == shape.shape
            rule = f"must have the shape {shape.shape} that `shapes` were inferred for"
            check.require(fits, where, f"{argument}{jax.tree_util.keystr(path)}", rule, tuple(leaf.shape))
            return leaf if number == 1 else tree.cast_like(number, leaf) * leaf

        return jax.tree.map(scaled, part)

    try:
        return jax.tree_util.tree_map_with_path(one, shapes, numbers, values, is_leaf=lambda x: x is None)
    except ValueError as error:
        if str(error).startswith(where):
            raise
        want, got = jax.tree.structure(shapes), jax.tree.structure(values)
        raise ValueError(f"{where}: {argument} must have the structure of `shapes`, {want}; got {got}.") from error

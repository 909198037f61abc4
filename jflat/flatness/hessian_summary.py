"""The Hessian of a loss in three numbers: the largest eigenvalue, the trace, and the trace per parameter.

    lambda_max = max_v v^T H v / |v|^2,      tr H = sum_i lambda_i,      tr H / P = the mean eigenvalue

A perturbation of length rho raises the loss at a minimum by at most rho^2 lambda_max / 2; Gaussian noise of standard
deviation sigma in each weight raises it by sigma^2 tr H / 2 on average. Through `jflat.curvature`, which has more of
the spectrum.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import Status, check, tree
from jflat.curvature import eigenpairs, hessian, trace
from jflat.data import Batches

__all__ = ["HessianSummary", "hessian_summary"]

PyTree = Any


class HessianSummary(NamedTuple):
    """The curvature of a loss at one point, in loss per squared weight; NaN on NON_FINITE."""

    top_eigenvalue: jax.Array
    """(): lambda_max, the algebraically largest."""
    top_residual: jax.Array
    """(): |H v - lambda_max v|, freshly computed: an eigenvalue lies within that distance."""
    trace: jax.Array
    """(): tr H."""
    trace_stderr: jax.Array
    """(): one standard error of `trace`."""
    trace_per_parameter: jax.Array
    """(): tr H / P, the mean eigenvalue; its standard error is trace_stderr / P."""
    num_matvecs: jax.Array
    """int32: products with the Hessian, each about 1.4 gradients (1.9 for `Batches`)."""
    status: jax.Array
    """int32: COMPLETED, or the larger of the codes of `jflat.curvature.eigenpairs` and `trace`."""


def hessian_summary(
    loss_fn: Callable[[PyTree, PyTree], jax.Array],
    params: PyTree,
    batches: PyTree | Batches,
    key: jax.Array,
    *,
    num_probes: int = 32,
    tolerance: float | jax.Array = 1e-3,
    max_restarts: int = 100,
) -> HessianSummary:
    """lambda_max by thick-restart Lanczos and tr H by Hutchinson's random signs, at `params`.

    Args:
      loss_fn: (params, batch) -> scalar, the mean per sample; twice differentiable.
      params: the point, a pytree of real floating-point arrays; P scalars.
      batches: one batch, or a `jflat.data.Batches`.
      key: typed PRNG key.
      num_probes: n probes of the trace, at least 2.
      tolerance: on the eigenpair's residual over |H|, positive. The eigenvalue is far better than that.
      max_restarts: of Lanczos, at least 0.

    Returns:
      A `HessianSummary`.

    Raises:
      ValueError: if an argument is out of range or the loss is not one real scalar.

    Accuracy: trace_stderr is sqrt(2 sum_{i != j} H_ij^2 / n) in expectation; 0 for a diagonal Hessian.

    Cost: n + 1 + min(P, 40) products at least, and the memory of 60 copies of the parameters for Lanczos.

    Example: L = 2 w_1^2 + w_2^2/2.

    >>> s = hessian_summary(lambda w, a: 0.5 * jnp.sum(a * w**2), jnp.ones(2), jnp.array([4.0, 1.0]), jax.random.key(0))
    >>> round(float(s.top_eigenvalue), 4), float(s.trace), float(s.trace_per_parameter)
    (4.0, 5.0, 2.5)
    """
    check.require_integer("hessian_summary", "num_probes", num_probes, 2)
    check.require_integer("hessian_summary", "max_restarts", max_restarts, 0)
    check.require_number("hessian_summary", "tolerance", tolerance, 0.0, exclusive=True)
    operator = hessian(loss_fn, params, batches)
    eigen_key, trace_key = jax.random.split(key)
    top = eigenpairs(operator, eigen_key, num=1, tolerance=tolerance, max_restarts=max_restarts)
    total = trace(operator, trace_key, num_probes=num_probes)
    status = jnp.where(tree.all_finite(params), jnp.maximum(top.status, total.status), Status.NON_FINITE)

    def known(number: jax.Array) -> jax.Array:
        return jnp.where(status == Status.NON_FINITE, jnp.nan, number)

    return HessianSummary(
        top_eigenvalue=known(top.values[0]),
        top_residual=known(top.residuals[0]),
        trace=known(total.value),
        trace_stderr=known(total.stderr),
        trace_per_parameter=known(total.value / operator.size),
        num_matvecs=top.num_matvecs + total.num_matvecs,
        status=status,
    )

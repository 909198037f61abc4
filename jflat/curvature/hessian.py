r"""The Hessian of a loss as a linear operator: products H v without the matrix.

H = d^2 L / d theta^2 with L(theta) = (1/M) sum_i l_i(theta). Forward-over-reverse: the gradient is linearised at theta,

    H v = d/de grad L(theta + e v) at e = 0,

which is exact to rounding (no finite difference) and needs no second tape.

Differs from PyHessian (reverse over reverse, one batch), spectral-density and pytorch-hessian-eigenthings (the mean of
batch means is not weighted by the sizes of the batches) and curvlinops (linearises anew in every product).
"""

from collections.abc import Callable
from typing import Any

import jax

from jflat.core import LinearOperator, check, tree
from jflat.curvature.mean_operator import Data, choose_leaves, mean_operator, one_batch

__all__ = ["hessian"]

PyTree = Any
LossFn = Callable[[PyTree, PyTree], jax.Array]


def hessian(loss_fn: LossFn, params: PyTree, batches: Data, *, mask: tree.Mask | None = None) -> LinearOperator:
    """The Hessian of a mean loss at `params`, as an operator: H v = d/de grad L(params + e v) at e = 0.

    Args:
      loss_fn: (params, batch) -> scalar, the mean per sample over the batch; twice differentiable in forward mode
        over reverse mode (no `custom_vjp`). Deterministic: dropout off, batch statistics fixed.
      params: the point, a pytree of real floating-point arrays (those that `mask` leaves out may be of any kind).
      batches: one batch (any pytree `loss_fn` takes), linearised here once; or a `jflat.data.Batches`, over which each
        product is accumulated with the weights B_b / M, correct for a short last batch; or a `jflat.data.Stream` from
        a loader, likewise, driven from the host.
      mask: the leaves that the operator acts on (a block, such as one layer): a tree of Python booleans, a prefix of
        one, or a function of the params that gives one (`jflat.core.tree.mask_by_path`). The others are held fixed;
        vectors have None in their places. None is all.

    Returns:
      A `LinearOperator` on trees like `params`, `.matvec(v)` -> H v in the dtypes of `params`. It is a pytree of arrays
      (the residuals of the linearisation): return it from `jit` or `vmap`, pass it on as an argument.

    Raises:
      ValueError: if chosen leaves have no derivative (integers), the loss is not a real scalar (batch statistics
        returned beside it, say), or, over several batches, is not a mean over samples: its value on a batch must be the
        mean of those on the halves (looked at once, where nothing is traced).

    Accuracy: relative error of a product about 2 ulp of the dtype, at highest matmul precision on every device. A kink
    (ReLU at 0) counts with the derivative JAX gives it; NaN in the parameters gives NaN products, which the algorithms
    report as `Status.NON_FINITE`.

    Cost: a product is 1.3 gradients for one batch (residuals held: the memory of one gradient), 1.5 to 1.8 gradients
    and the memory of one batch for `Batches`, as measured by `python -m benchmarks hvp`.

    Reference: B. A. Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6 (1994) 147.

    Example: L = (1/2) sum_i a_i w_i^2 has H = diag(a).

    >>> import jax.numpy as jnp
    >>> operator = hessian(lambda w, a: 0.5 * jnp.sum(a * w**2), jnp.ones(2), jnp.array([3.0, -1.0]))
    >>> operator.matvec(jnp.array([1.0, 2.0]))
    Array([ 3., -2.], dtype=float32)
    """
    point, frozen = choose_leaves("hessian", params, mask)
    check.require_scalar("hessian", "loss_fn", jax.eval_shape(loss_fn, params, one_batch(batches)))
    linearise = jax.tree_util.Partial(_linearise, jax.tree_util.Partial(loss_fn))
    return mean_operator("hessian", linearise, point, frozen, batches, loss_fn=loss_fn)


def _linearise(loss_fn: LossFn, point: PyTree, frozen: PyTree, batch: PyTree) -> Callable:
    return jax.linearize(jax.grad(lambda p: loss_fn(tree.merge(p, frozen), batch)), point)[1]

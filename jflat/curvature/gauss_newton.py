r"""The generalised Gauss-Newton matrix as a linear operator.

For a loss l(f(theta, x), t) on outputs f, with J_i = d f(theta, x_i) / d theta,

    G = (1/M) sum_i J_i^T (d^2 l_i / d f_i^2) J_i = H - (1/M) sum_i sum_k (d l_i / d f_ik) d^2 f_ik / d theta^2.

G is positive semidefinite where l is convex in the outputs, and equals the Hessian where the model is linear in its
parameters or the residuals dl/df vanish. For cross-entropy of logits and squared errors it is the Fisher matrix.
"""

from collections.abc import Callable
from typing import Any

import jax

from jflat.core import LinearOperator, check, tree
from jflat.curvature.mean_operator import Data, choose_leaves, mean_operator, one_batch

__all__ = ["check_model", "gauss_newton", "loss_of", "pull_back"]

PyTree = Any
ModelFn = Callable[[PyTree, PyTree], PyTree]
OutputLossFn = Callable[[PyTree, PyTree], jax.Array]


def gauss_newton(
    model_fn: ModelFn,
    output_loss_fn: OutputLossFn,
    params: PyTree,
    batches: tuple[PyTree, PyTree] | Data,
    *,
    mask: tree.Mask | None = None,
) -> LinearOperator:
    """The generalised Gauss-Newton matrix of a mean loss at `params`: G = (1/M) sum_i J_i^T (d^2 l_i / d f_i^2) J_i.

    Args:
      model_fn: (params, inputs) -> outputs, a pytree of real floating-point arrays.
      output_loss_fn: (outputs, targets) -> scalar, the mean per sample (`jflat.losses`).
      params: the point, a pytree of real floating-point arrays (those that `mask` leaves out may be of any kind).
      batches: one pair `(inputs, targets)`, linearised here once; or a `jflat.data.Batches` of such pairs, over which
        each product is accumulated with the weights B_b / M, correct for a short last batch; or a `jflat.data.Stream`
        of such pairs, likewise, driven from the host.
      mask: the leaves that the operator acts on, as for `hessian`.

    Returns:
      A `LinearOperator` on trees like `params` (a pytree of arrays, as for `hessian`).

    Raises:
      ValueError: if chosen leaves or the outputs have no derivative, a batch is not a pair, or the loss is not a real
        scalar or, over several batches, not a mean over samples (as for `hessian`).

    Cost: a product is one tangent and one cotangent pass through the model: about 1.5 gradients and the memory of one
    gradient for one batch; for `Batches` the linearisation comes on top, in the memory of one batch.

    Reference: N. N. Schraudolph, Neural Computation 14 (2002) 1723; J. Martens, 1412.1193, section 8.

    Example: f = w x with squared error has G = mean of x^2.

    >>> import jax.numpy as jnp
    >>> from jflat.losses import squared_error
    >>> data = (jnp.array([1.0, 3.0]), jnp.zeros(2))
    >>> gauss_newton(lambda w, x: w * x, squared_error, jnp.array([0.7]), data).matvec(jnp.ones(1))
    Array([5.], dtype=float32)
    """
    point, frozen = choose_leaves("gauss_newton", params, mask)
    outputs, targets = check_model("gauss_newton", model_fn, params, batches)
    check.require_scalar("gauss_newton", "output_loss_fn", jax.eval_shape(output_loss_fn, outputs, targets))
    linearise = jax.tree_util.Partial(
        _linearise, jax.tree_util.Partial(model_fn), jax.tree_util.Partial(output_loss_fn)
    )
    loss_fn = jax.tree_util.Partial(loss_of, jax.tree_util.Partial(model_fn), jax.tree_util.Partial(output_loss_fn))
    return mean_operator("gauss_newton", linearise, point, frozen, batches, loss_fn=loss_fn)


def check_model(where: str, model_fn: ModelFn, params: PyTree, batches: Data) -> tuple[PyTree, PyTree]:
    """Refuse outputs without derivatives and batches that are no pairs; return shapes of outputs, and their targets."""
    batch = one_batch(batches)
    is_pair = isinstance(batch, tuple | list) and len(batch) == 2
    check.require(is_pair, where, "batches", "must be a pair (inputs, targets), or Batches of pairs", type(batch))
    outputs = jax.eval_shape(model_fn, params, batch[0])
    check.require_floating(where, "model_fn(params, inputs)", outputs)
    return outputs, batch[1]


def pull_back(push: Callable[[PyTree], PyTree], curve: Callable[[PyTree], PyTree], v: PyTree) -> PyTree:
    """J^T C J v, for the linear functions `push` (J) and `curve` (C): the transpose reuses the residuals of `push`."""
    (product,) = jax.linear_transpose(push, v)(curve(push(v)))
    return product


def loss_of(model_fn: ModelFn, output_loss_fn: OutputLossFn, params: PyTree, batch: PyTree) -> jax.Array:
    """The loss of a batch `(inputs, targets)`."""
    return output_loss_fn(model_fn(params, batch[0]), batch[1])


def _linearise(
    model_fn: ModelFn, output_loss_fn: OutputLossFn, point: PyTree, frozen: PyTree, batch: PyTree
) -> Callable:
    inputs, targets = batch
    outputs, push = jax.linearize(lambda p: model_fn(tree.merge(p, frozen), inputs), point)
    _, curve = jax.linearize(lambda f: jax.grad(output_loss_fn)(f, targets), outputs)
    return jax.tree_util.Partial(pull_back, push, curve)

r"""The Fisher information matrix as a linear operator, exact in the outputs: no sampling of labels.

    F = (1/M) sum_i J_i^T F_i J_i,      J_i = d f(theta, x_i) / d theta,

with F_i the Fisher matrix of the distribution that the outputs f_i of sample i parametrise,

    categorical   F_i = sum_c p_c s_c s_c^T,  p = softmax(f_i),  s_c = d l(f_i, c) / d f_i,
    gaussian      F_i = identity  (mean f_i, unit variance),
    empirical     F_i = s s^T,  s = d l(f_i, t_i) / d f_i at the actual target t_i.

The first two expect the scores over the model's own distribution and are the natural metric of the model; the third is
the second moment of the actual gradients, which vanishes where every sample is fitted and is not the Fisher matrix.

Differs from `gauss_newton`: no second derivative of the loss is taken here. For cross-entropy and squared errors the
two are the same matrix by another computation. Other libraries sample labels ("MC Fisher"), which adds noise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jflat.core import LinearOperator, check, tree
from jflat.curvature.gauss_newton import ModelFn, OutputLossFn, check_model, loss_of, pull_back
from jflat.curvature.mean_operator import Data, choose_leaves, mean_operator
from jflat.data import num_samples

__all__ = ["fisher"]

PyTree = Any


def fisher(
    model_fn: ModelFn,
    output_loss_fn: OutputLossFn | None,
    params: PyTree,
    batches: tuple[PyTree, PyTree] | Data,
    *,
    distribution: str,
    mask: tree.Mask | None = None,
) -> LinearOperator:
    """The Fisher matrix of a model at `params`: F = (1/M) sum_i J_i^T F_i J_i, with F_i exact in the outputs.

    Args:
      model_fn: (params, inputs) -> outputs, sample by sample along the leading axis (no batch statistics).
      output_loss_fn: (outputs, targets) -> scalar, the mean per sample of the negative log-likelihood; its gradients
        are the scores. Not used, and may be None, for "gaussian".
      params: the point, a pytree of real floating-point arrays (those that `mask` leaves out may be of any kind).
      batches: one pair `(inputs, targets)`, linearised here once; or a `jflat.data.Batches` of such pairs, over which
        each product is accumulated with the weights B_b / M, correct for a short last batch; or a `jflat.data.Stream`
        of such pairs, likewise, driven from the host.
      distribution: "categorical" (outputs are logits (B, C), targets integers (B,); the values of the targets play no
        part), "gaussian" (any outputs, each of unit variance) or "empirical" (any outputs).
      mask: the leaves that the operator acts on, as for `hessian`.

    Returns:
      A positive semidefinite `LinearOperator` on trees like `params` (a pytree of arrays, as for `hessian`).

    Raises:
      ValueError: for an unknown distribution, outputs or targets of another shape or dtype than it needs, leaves
        without a derivative, batches that are no pairs, or a loss that is not a real scalar.

    Cost: a product is one tangent and one cotangent pass through the model (about 1.5 gradients), and for "categorical"
    C gradients of the output loss, taken one label after the other in the memory of one batch of outputs.

    Reference: S. Amari, Neural Computation 10 (1998) 251; for the three kinds J. Martens, 1412.1193, and F. Kunstner et
    al., 1905.12558.

    Example: f = w x of unit variance has F = mean of x^2.

    >>> data = (jnp.array([1.0, 3.0]), jnp.zeros(2))
    >>> operator = fisher(lambda w, x: w * x, None, jnp.array([0.7]), data, distribution="gaussian")
    >>> operator.matvec(jnp.ones(1))
    Array([5.], dtype=float32)
    """
    check.require_choice("fisher", "distribution", distribution, _CURVATURES)
    point, frozen = choose_leaves("fisher", params, mask)
    outputs, targets = check_model("fisher", model_fn, params, batches)
    if distribution == "categorical":
        _check_categorical(outputs, targets)
    if distribution != "gaussian":
        check.require(output_loss_fn is not None, "fisher", "output_loss_fn", "must be a function", output_loss_fn)
        assert output_loss_fn is not None
        check.require_scalar("fisher", "output_loss_fn", jax.eval_shape(output_loss_fn, outputs, targets))
    score_fn = None if output_loss_fn is None else jax.tree_util.Partial(output_loss_fn)
    prepare = jax.tree_util.Partial(_CURVATURES[distribution])
    model = jax.tree_util.Partial(model_fn)
    linearise = jax.tree_util.Partial(_linearise, model, prepare, score_fn)
    loss_fn = None if distribution == "gaussian" else jax.tree_util.Partial(loss_of, model, score_fn)
    return mean_operator("fisher", linearise, point, frozen, batches, loss_fn=loss_fn)


def _check_categorical(outputs: PyTree, targets: PyTree) -> None:
    shapes = [leaf.shape for leaf in jax.tree.leaves(outputs)]
    is_matrix = len(shapes) == 1 and len(shapes[0]) == 2 and isinstance(outputs, jax.ShapeDtypeStruct)
    check.require(is_matrix, "fisher", "model_fn", 'must return logits (B, C) for "categorical"', f"shapes {shapes}")
    kinds = [(jnp.shape(leaf), str(jnp.result_type(leaf))) for leaf in jax.tree.leaves(targets)]
    is_labels = len(kinds) == 1 and kinds[0][0] == shapes[0][:1] and "int" in kinds[0][1]
    check.require(is_labels, "fisher", "targets", 'must be integers (B,) for "categorical"', kinds)


def _linearise(
    model_fn: ModelFn, prepare: Callable, output_loss_fn: Any, point: PyTree, frozen: PyTree, batch: PyTree
) -> Callable:
    inputs, targets = batch
    outputs, push = jax.linearize(lambda p: model_fn(tree.merge(p, frozen), inputs), point)
    return jax.tree_util.Partial(pull_back, push, prepare(output_loss_fn, outputs, targets))


def _categorical(output_loss_fn: OutputLossFn, outputs: jax.Array, targets: jax.Array) -> Callable:
    return jax.tree_util.Partial(_sum_over_labels, output_loss_fn, outputs, jax.nn.softmax(outputs, axis=1), targets)


def _gaussian(output_loss_fn: None, outputs: PyTree, targets: PyTree) -> Callable:
    return jax.tree_util.Partial(tree.scale, 1 / num_samples(outputs))


def _empirical(output_loss_fn: OutputLossFn, outputs: PyTree, targets: PyTree) -> Callable:
    return jax.tree_util.Partial(_mean_outer, None, _scores(output_loss_fn, outputs, targets))


_CURVATURES = {"categorical": _categorical, "gaussian": _gaussian, "empirical": _empirical}


def _scores(output_loss_fn: OutputLossFn, outputs: PyTree, targets: PyTree) -> PyTree:
    """Row i: the gradient of sample i's own loss, which the mean over B samples divides by B."""
    return tree.scale(num_samples(outputs), jax.grad(output_loss_fn)(outputs, targets))


def _mean_outer(weights: jax.Array | None, scores: PyTree, u: PyTree) -> PyTree:
    """Row i: (1/B) w_i s_i <s_i, u_i>, with w_i = 1 for None."""
    along = jax.tree.reduce(jnp.add, jax.tree.map(lambda s, x: jnp.sum(s * x, axis=tuple(range(1, s.ndim))), scores, u))
    factors = along / num_samples(scores) if weights is None else weights * along / num_samples(scores)
    return jax.tree.map(lambda s: s * factors.reshape(-1, *[1] * (s.ndim - 1)), scores)


def _sum_over_labels(
    output_loss_fn: OutputLossFn, outputs: jax.Array, probabilities: jax.Array, targets: jax.Array, u: jax.Array
) -> jax.Array:
    def add_label(total: jax.Array, label: jax.Array) -> tuple[jax.Array, None]:
        scores = _scores(output_loss_fn, outputs, jnp.full_like(targets, label.astype(targets.dtype)))
        return total + _mean_outer(probabilities[:, label], scores, u), None

    with jax.default_matmul_precision("highest"):
        return jax.lax.scan(add_label, jnp.zeros_like(u), jnp.arange(outputs.shape[1]))[0]

"""Sharpness-aware minimisation: the gradient at the worst point of a small ball, handed to any optimiser.

    SAM  (Foret et al., 2010.01412):   eps = rho g/|g|
    ASAM (Kwon et al., 2102.11600):    eps = rho T^2 g/|T g|,   T = |w| + eta   (elementwise)

and the update is made from grad L(w + eps). ASAM (at eta = 0) is invariant to the rescaling of weights.

The norm is over all (unmasked) parameters. `grads` handed to `update` is g at `params`; the second gradient comes from
the extra argument `grad_fn(params, i)`, called once with i = 0, on the same minibatch.

Differs from optax.contrib.sam: no NaN at zero gradient (no perturbation there), all extra arguments are accepted and
passed on, rho = 0 is the base optimiser bit for bit, and the parameters are always the unperturbed ones. Differs from
Samsung's ASAM: every leaf is adaptive, not only those named "weight"; choose with `mask`.

**Budget: 2 gradient evaluations per step**: compare with SGD at equal gradient evaluations. Clipping placed before acts
on g, whose length does not matter; put it in `base` to clip the gradient that is used. Under data parallelism average
inside `grad_fn` as you average `grads`; average neither before the perturbation for one perturbation per device
(m-SAM). Batch-norm statistics: keep those of the clean pass. In bfloat16 w + eps rounds to w where
eps is below half a unit in the last place.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jflat.core import check, tree
from jflat.optim.hyperparameters import PyTree, ScalarOrSchedule, apply, is_number, require_grad_fn, value_at

__all__ = ["SharpnessAwareState", "adaptive_sam", "sam", "sharpness_aware_gradient"]


class SharpnessAwareState(NamedTuple):
    """State of `sharpness_aware_gradient`."""

    count: jax.Array  # type: ignore[assignment]
    """Calls so far, int32, (); indexes the schedules."""


def _sharpness_aware(
    where: str, rho: ScalarOrSchedule, eta: ScalarOrSchedule | None, mask: tree.Mask | None
) -> optax.GradientTransformationExtraArgs:
    check.require_number(where, "rho", rho, 0.0)
    if eta is not None:
        check.require_number(where, "eta", eta, 0.0)

    def perturbation(grads: PyTree, params: PyTree, count: jax.Array) -> PyTree:
        """rho g/|g|, or rho T (T g)/|T g|; zero where the gradient is."""
        scales = None
        if eta is not None:
            shift = value_at(eta, count, params)
            scales = jax.tree.map(lambda w: jnp.abs(w) + tree.cast_like(shift, w), params)
            grads = jax.tree.map(jnp.multiply, scales, grads)
        length = tree.norm(grads)
        is_zero = length == 0
        radius = value_at(rho, count, params).astype(length.dtype)
        factor = jnp.where(is_zero, 0, radius / jnp.where(is_zero, 1, length))  # may overflow float16: multiply wide
        direction = jax.tree.map(lambda g: (factor * g.astype(factor.dtype)).astype(g.dtype), grads)
        return direction if scales is None else jax.tree.map(jnp.multiply, scales, direction)

    def init(params: PyTree) -> SharpnessAwareState:
        del params
        return SharpnessAwareState(jnp.zeros((), jnp.int32))

    def update(
        grads: PyTree,
        state: SharpnessAwareState,
        params: PyTree | None = None,
        *,
        grad_fn: Any = None,
        **extra_args: Any,
    ) -> tuple[PyTree, SharpnessAwareState]:
        del extra_args
        require_grad_fn(where, grad_fn, params)
        following = SharpnessAwareState(optax.safe_increment(state.count))
        if is_number(rho, 0):
            return grads, following
        cast = jax.tree.map(lambda g, w: g.astype(w.dtype), grads, params)
        if mask is not None:
            mask_tree = mask(params) if callable(mask) else mask
            keep = lambda m, g: g if m else tree.zeros_like(g)  # noqa: E731
            cast = jax.tree.map(keep, mask_tree, cast)
        perturbed = grad_fn(apply(params, perturbation(cast, params, state.count)), jnp.zeros((), jnp.int32))
        perturbed = jax.tree.map(lambda g, like: g.astype(like.dtype), perturbed, grads)
        return tree.where(value_at(rho, state.count, params) == 0, grads, perturbed), following

    return optax.GradientTransformationExtraArgs(init, update)


def sharpness_aware_gradient(
    *,
    rho: ScalarOrSchedule = 0.05,
    is_adaptive: bool = False,
    eta: ScalarOrSchedule = 0.01,
    mask: tree.Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """grad L(w) -> grad L(w + eps): the shared transformation of `sam` and `adaptive_sam`, for use in your own chain.

    `update(grads, state, params, grad_fn=..., **extra_args)`, with `grad_fn(params, i)` called at w + eps with i = 0.

    Args:
      rho: radius, at least 0, in units of |w| (SAM) or dimensionless (adaptive); a schedule counts calls.
      is_adaptive: eps = rho T^2 g/|T g| with T = |w| + eta instead of rho g/|g|.
      eta: the floor of T, at least 0; used by the adaptive form.
      mask: tree of Python booleans (a prefix, or a function of the parameters): leaves that are False are not perturbed
        and do not enter the norm; all gradients are taken at the perturbed point. Use it in place of `optax.masked`.

    Returns:
      A transformation with state `SharpnessAwareState`.

    Raises:
      ValueError: if a Python number is negative, `grad_fn` is missing, or it stands inside `optax.masked`.

    Cost: one further gradient per call; memory two parameter copies during the call.

    >>> tx = sharpness_aware_gradient(rho=0.5)
    >>> params = jnp.array([3.0, 4.0])  # L = |w|^2/2: grad at w + 0.5 w/|w| is 1.1 w
    >>> tx.update(params, tx.init(params), params, grad_fn=lambda w, i: w)[0]
    Array([3.3, 4.4], dtype=float32)
    """
    return _sharpness_aware("sharpness_aware_gradient", rho, eta if is_adaptive else None, mask)


def sam(
    base: optax.GradientTransformation, *, rho: ScalarOrSchedule = 0.05, mask: tree.Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    """SAM: w <- w + base(grad L(w + rho g/|g|)). Arguments: `sharpness_aware_gradient`; `base` any optax optimiser.

    Reference: Foret et al. 2010.01412, Algorithm 1 (p = 2). 2 gradients per step.

    >>> tx = sam(optax.sgd(1.0), rho=0.5)
    >>> params = jnp.array([3.0, 4.0])
    >>> tx.update(params, tx.init(params), params, grad_fn=lambda w, i: w)[0]
    Array([-3.3, -4.4], dtype=float32)
    """
    return optax.chain(_sharpness_aware("sam", rho, None, mask), optax.with_extra_args_support(base))


def adaptive_sam(
    base: optax.GradientTransformation,
    *,
    rho: ScalarOrSchedule = 0.5,
    eta: ScalarOrSchedule = 0.01,
    mask: tree.Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """ASAM: w <- w + base(grad L(w + rho T^2 g/|T g|)), T = |w| + eta. Arguments: `sharpness_aware_gradient`.

    Reference: Kwon et al. 2102.11600, equation 7 (p = 2, elementwise). 2 gradients per step.

    >>> tx = adaptive_sam(optax.sgd(1.0), rho=0.5, eta=0.0)
    >>> params = jnp.array([2.0])  # T^2 g/|T g| = 4 * 2/4 = 2, so the gradient is taken at 3
    >>> tx.update(params, tx.init(params), params, grad_fn=lambda w, i: w)[0]
    Array([-3.], dtype=float32)
    """
    return optax.chain(_sharpness_aware("adaptive_sam", rho, eta, mask), optax.with_extra_args_support(base))

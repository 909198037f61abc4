"""The optimiser side: learning rates per layer, and what else must follow the width, as optax transformations.

    tx = abc_optimizer(optax.sgd(0.1, momentum=0.9), mup(), shapes)
    tx = abc_optimizer(optax.adam(1e-3), mup("adam"), shapes, weight_decay=1e-4)

makes of an optimiser tuned at the base width one for the width of `shapes`. It is the chain, also for use in parts,

    clip_by_abc_norm      of a global norm that means the same at every width
    prescale_by_abc       (Adam) gradients of size 1 whatever the width, so that eps means the same
    the optimiser
    scale_by_abc          the update of each parameter times m^{-c}
    decay                 w <- (1 - weight_decay) w, the same for all parameters

The optimiser must fit the parametrisation's: for "sgd" anything linear in the gradients (momentum, schedules), for
"adam" anything entrywise that divides by the gradient's size (Adam, RMSProp, Lion, sign). Factorised and spectral
optimisers (Adafactor, Shampoo, Muon) have other exponents, and are not in this table.

Exponents are those without multipliers (`fold`), unless `multipliers=True`; see `jflat.width.initialiser`.
All parts but the optimiser are stateless, take any extra arguments, pass masked leaves on, and
leave every bit alone at the base width.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jflat.core import check, tree
from jflat.width.factors import PyTree, exponents_of, factors, in_use, multiply, power, update_factor
from jflat.width.parametrisation import ABC
from jflat.width.shapes import InfShape, Role

__all__ = [
    "abc_optimizer",
    "abc_squared_norm",
    "add_decayed_weights_abc",
    "clip_by_abc_norm",
    "prescale_by_abc",
    "scale_by_abc",
]


def scale_by_abc(
    p: ABC, shapes: PyTree, *, rectangular: bool = True, multipliers: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Multiply each update by m^{-c}: place it behind the optimiser.

    Args:
      p: the parametrisation; p.optimizer says what is in front.
      shapes: from `infer_infshapes`.
      rectangular: for SGD, multiply the updates of hidden matrices whose two fans grow differently by
        (m_out / m_in)^{2 (a + b) - 1}, a and b of the readout: m_out / m_in for muP, as `mup.MuSGD` does, and nothing
        for the standard and the tangent parametrisation. (The exponent in between is our choice.)
      multipliers: whether the network carries the multipliers of p.

    Raises:
      ValueError: for shapes that are not of `infer_infshapes`; at update for updates of another width or structure.

    >>> from jflat.width.parametrisation import mup
    >>> tx = scale_by_abc(mup(), [InfShape((16, 1), (4, None), (0,), (1,))])
    >>> tx.update([jnp.ones((16, 1))], tx.init(None))[0][0][0]  # a readout four times wider: 1/4
    Array([0.25], dtype=float32)
    """
    where = "scale_by_abc"
    used = in_use(p, multipliers)
    numbers = factors(where, shapes, lambda s: update_factor(used, s, rectangular))
    return _stateless(lambda updates, _: multiply(where, "updates", shapes, numbers, updates))


def prescale_by_abc(p: ABC, shapes: PyTree, *, multipliers: bool = False) -> optax.GradientTransformationExtraArgs:
    """Multiply each gradient by n^d so that its entries are of size 1 at any width: place it in front of Adam.

        d_l = a_l + a_{L+1} + b_{L+1}  (l <= L),   d_{L+1} = a_{L+1}

    (Yang & Littwin, lemma 2.8.11.) Adam's update is then the same function of width-independent numbers, eps included;
    without it a fixed eps freezes wide networks (Everett et al. 2024, arXiv:2407.05872).

    Raises:
      ValueError: for a parametrisation for SGD, which is not free of the gradient's scale.
    """
    where = "prescale_by_abc"
    adam = p.optimizer == "adam"
    check.require(adam, where, "p.optimizer", "must be 'adam': SGD sees the scale of gradients", repr(p.optimizer))
    used = in_use(p, multipliers)
    numbers = factors(where, shapes, lambda s: _prescale(used, s))
    return _stateless(lambda updates, _: multiply(where, "updates", shapes, numbers, updates))


def _prescale(p: ABC, shape: InfShape) -> float:
    """n^d: the multiplier counts the fan-in of a hidden matrix, the gradient behind it the fan-out."""
    k = p.output.a + p.output.b
    behind = shape.n_out ** float(k) if shape.role in (Role.INPUT, Role.BIAS, Role.HIDDEN) else 1.0
    return behind * power(shape, -exponents_of(p, shape).a)


def abc_squared_norm(
    gradients: PyTree, p: ABC, shapes: PyTree, *, rectangular: bool = True, multipliers: bool = False
) -> jax.Array:
    """|g|^2_abc = sum_l s_l |g_l|^2, a squared norm of gradients that is the same throughout a class of `shift`.

    For SGD s_l is the factor of the learning rate, so the norm is the plain one of `canonical(p)`, in which all layers
    have one learning rate, and |g|^2_abc is the speed at which the loss falls. For Adam it is the mean square over the
    infinite axes of the prescaled gradients, s_l = n^{2 d_l} / (m_in m_out).

    Returns:
      A scalar; its size does not depend on the width in muP.
    """
    used = in_use(p, multipliers)

    def weight(shape: InfShape) -> float:
        if used.optimizer == "sgd":
            return update_factor(used, shape, rectangular) ** 0.5
        return _prescale(used, shape) / (shape.n_in * shape.n_out) ** 0.5

    where = "abc_squared_norm"
    return tree.squared_norm(multiply(where, "gradients", shapes, factors(where, shapes, weight), gradients))


def clip_by_abc_norm(
    max_norm: float | jax.Array, p: ABC, shapes: PyTree, *, rectangular: bool = True, multipliers: bool = False
) -> optax.GradientTransformationExtraArgs:
    """g <- g min(1, max_norm / |g|_abc): clipping that is the same in every form of a parametrisation.

    The plain global norm is not: two forms of muP that are one network, clipped plainly, become two.

    Args:
      max_norm: positive; at the base width that of `optax.clip_by_global_norm`, to which it is equal there.
      p, shapes, rectangular, multipliers: as in `abc_squared_norm`.
    """
    check.require_number("clip_by_abc_norm", "max_norm", max_norm, 0.0, exclusive=True)
    clip = optax.clip_by_global_norm(max_norm)

    def clipped(updates: PyTree, _: PyTree) -> PyTree:
        square = abc_squared_norm(updates, p, shapes, rectangular=rectangular, multipliers=multipliers)
        is_long = square > jnp.asarray(max_norm).astype(square.dtype) ** 2
        norm = jnp.sqrt(jnp.where(is_long, square, 1))
        return jax.tree.map(
            lambda leaf: jnp.where(is_long, leaf / norm.astype(leaf.dtype) * tree.cast_like(max_norm, leaf), leaf),
            updates,
        )

    if all(leaf.n_in == leaf.n_out == 1 for leaf in jax.tree.leaves(shapes)):
        return _stateless(lambda updates, _: clip.update(updates, optax.EmptyState())[0])
    return _stateless(clipped)


def add_decayed_weights_abc(
    weight_decay: float | jax.Array,
    p: ABC,
    shapes: PyTree,
    *,
    mask: tree.Mask | None = None,
    rectangular: bool = True,
    multipliers: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Add weight_decay / f_l w to each update, f_l the factor of `scale_by_abc`: decay that no width changes.

    The place of `optax.add_decayed_weights` in a chain by hand:

        optax.chain(scale_by_adam(), add_decayed_weights_abc(wd, p, shapes), optax.scale(-lr), scale_by_abc(p, shapes))

    decays every weight by 1 - lr wd per step. (A plain one there decays hidden matrices by 1 - lr wd / m under muP.)

    Args:
      weight_decay: at least 0, a number or a traced scalar.
      p, shapes, rectangular, multipliers: as in `scale_by_abc`.
      mask: which parameters decay, as `optax` has it; None is all.

    Raises:
      ValueError: for a negative decay; at update without parameters.
    """
    where = "add_decayed_weights_abc"
    check.require_number(where, "weight_decay", weight_decay, 0.0)
    used = in_use(p, multipliers)
    numbers = factors(where, shapes, lambda s: 1 / update_factor(used, s, rectangular))

    def decayed(updates: PyTree, params: PyTree) -> PyTree:
        return _add(where, updates, weight_decay, multiply(where, "params", shapes, numbers, params), mask)

    return _stateless(decayed)


def abc_optimizer(
    base: optax.GradientTransformation,
    p: ABC,
    shapes: PyTree,
    *,
    clip: float | jax.Array | None = None,
    weight_decay: float | jax.Array = 0.0,
    mask: tree.Mask | None = None,
    rectangular: bool = True,
    multipliers: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """An optimiser tuned at the base width, made fit for the width of `shapes`.

    Args:
      base: the whole optimiser, learning rate and sign included; of the kind p.optimizer.
      p: the parametrisation that `init_transform` got too.
      shapes: from `infer_infshapes`.
      clip: the largest norm |g|_abc of gradients, or None.
      weight_decay: the fraction that every step takes from each parameter, learning rate included: w <- (1 - decay) w
        before the update is added. Decay inside of `base` (as in `optax.adamw`) would be scaled with the updates and
        weaken with the width.
      mask: which parameters decay.
      rectangular, multipliers: as in `scale_by_abc`.

    Returns:
      The chain of the module's docstring. At the base width it is `base`, bit by bit (with clip and decay if given).

    >>> from jflat.width.parametrisation import mup
    >>> tx = abc_optimizer(optax.sgd(0.5), mup(), {"kernel": InfShape((3, 16), (None, 4), (0,), (1,))})
    >>> params = {"kernel": jnp.zeros((3, 16))}
    >>> tx.update({"kernel": jnp.ones((3, 16))}, tx.init(params), params)[0]["kernel"][0, 0]  # -0.5 * 4
    Array(-2., dtype=float32)
    """
    where = "abc_optimizer"
    check.require_number(where, "weight_decay", weight_decay, 0.0, 1.0)
    options: Any = {"multipliers": multipliers}
    parts: list[optax.GradientTransformation] = []
    if clip is not None:
        parts.append(clip_by_abc_norm(clip, p, shapes, rectangular=rectangular, **options))
    if p.optimizer == "adam":
        parts.append(prescale_by_abc(p, shapes, **options))
    parts += [base, scale_by_abc(p, shapes, rectangular=rectangular, **options)]
    if not (isinstance(weight_decay, int | float) and weight_decay == 0):
        parts.append(_stateless(lambda updates, params: _add(where, updates, -weight_decay, params, mask)))
    chain: Any = optax.chain(*parts)
    return optax.with_extra_args_support(chain)


def _add(where: str, updates: PyTree, factor: Any, params: PyTree, mask: tree.Mask | None) -> PyTree:
    check.require(params is not None, where, "params", "must be given to update, for the decay", None)
    flags = tree.resolve_mask(where, mask, params)
    return jax.tree.map(lambda f, u, w: tree.add_scaled(u, factor, w) if f else u, flags, updates, params)


def _stateless(update_fn: Any) -> optax.GradientTransformationExtraArgs:
    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any) -> tuple[PyTree, Any]:
        del extra_args
        return update_fn(updates, params), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

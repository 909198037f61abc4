"""Entropy-SGD, interleaved: one gradient and one fresh minibatch per update, inside an ordinary training loop.

Entropy-SGD (Chaudhari et al., 1611.01838) descends the local-entropy loss

    L_LE(w) = -(1/beta) log Int dw' exp(-beta L(w') - beta gamma |w' - w|^2 / 2),   grad L_LE(w) = gamma (w - <w'>)

with the mean <w'> estimated by L steps of an inner loop (`jflat.optim.entropic_step`). Here a call of `update` is one
inner step: the parameters carry the inner point w', the state keeps the anchor w, and each L-th call moves the anchor
by one step of the outer optimiser. In the code's convention (noise eps sqrt(2 eta')) beta = 1/eps^2; with eps = 1e-4
on a mean loss beta = 1e8, and Entropy-SGD is in practice the gradient of the Moreau envelope,
gamma (w - prox_{L/gamma}(w)), plus minibatch noise.

**Budget: always count gradient evaluations.** One call = one gradient; one outer step = `num_inner` gradients. Compare
with SGD at equal calls, never at equal outer steps.

Differs from the public codes. Outer step: "gamma" is the paper's and sacreddnn's, "none" that of
ucla-vision/entropy-sgd (gamma absorbed in the learning rate). `mean_decay` weighs the OLD mean, as in both codes; the
printed algorithm's alpha is 1 - mean_decay. The elastic force enters before the momentum (sacreddnn), not after (ucla).
gamma multiplies the outer gradient before the outer momentum, not after; for sacreddnn's update to the letter (tested)
take `outer_scale="none"` and

    outer = chain(add_decayed_weights(wd), trace(0.9, nesterov=True), scale_by_schedule(lambda t: -lr * gamma(t)))
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jflat.core import check, tree
from jflat.core.branch import rarely
from jflat.optim.entropic_step import EntropicConfig, InnerCarry, configure, inner_step, outer_gradient, start_key
from jflat.optim.hyperparameters import (
    AxisName,
    PyTree,
    ScalarOrSchedule,
    apply,
    copy,
    is_key,
    is_number,
    require_params,
)

__all__ = ["EntropySGDState", "entropy_eval_params", "entropy_is_boundary", "entropy_sgd"]


class EntropySGDState(NamedTuple):
    """State of `entropy_sgd`."""

    mini_step: jax.Array
    """Inner steps done in this cycle, int32, (); 0 at a boundary, where the parameters are the anchor."""
    cycle: jax.Array
    """Outer steps done, int32, (); indexes the schedules."""
    anchor: PyTree
    """w, like the parameters."""
    mean: PyTree
    """mu, like the parameters."""
    inner_state: Any
    """State of the inner optimiser."""
    outer_state: Any
    """State of the outer optimiser, which counts outer steps."""
    key: jax.Array | tuple[()]
    """The key of the next noise, or () where the noise is statically zero."""


def _reset(is_first: jax.Array, fresh: PyTree, running: PyTree) -> PyTree:
    """The fresh state on the first call of a cycle; keys go on, or each cycle would have the same noise."""
    return jax.tree.map(lambda x, y: y if is_key(y) else jnp.where(is_first, x, y), fresh, running)


def entropy_sgd(
    outer: optax.GradientTransformation,
    inner: optax.GradientTransformation,
    *,
    num_inner: int | jax.Array,
    gamma: ScalarOrSchedule,
    mean_decay: ScalarOrSchedule = 0.75,
    debias: bool = False,
    noise_scale: ScalarOrSchedule = 0.0,
    inner_learning_rate: ScalarOrSchedule = 0.1,
    elastic: Literal["gradient", "proximal"] = "gradient",
    outer_scale: Literal["gamma", "none"] = "gamma",
    reset_inner_state: bool = True,
    key: jax.Array | int = 0,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Entropy-SGD as a gradient transformation: w <- outer(gamma (w - mu)) after L = `num_inner` inner steps.

    Args:
      outer: optimiser of the anchor, one step per cycle; its schedules count outer steps. `optax.sgd(lr, 0.9)`.
      inner: optimiser of the inner point, one step per call, for example `optax.sgd(0.1, 0.9)`.
      num_inner: L, gradients per outer step, at least 1; may be traced.
      gamma: force constant (not the energy prefactor), at least 0; a schedule counts outer steps.
      mean_decay: weight of the OLD mean, in [0, 1); a schedule counts outer steps.
      debias: remove the weight mean_decay^L of the anchor from the mean.
      noise_scale: eps >= 0, temperature eps^2. A Python 0 removes the random numbers from the program.
      inner_learning_rate: eta', used only by the noise and by the proximal step; give it the inner optimiser's value.
      elastic: "gradient" adds gamma (w' - w) to the gradient, before the inner momentum; "proximal" solves for it
        implicitly after the step, stable for every gamma.
      outer_scale: factor of w - mu in the outer gradient, "gamma" or "none" (1).
      reset_inner_state: start each cycle with the inner optimiser's initial state (its keys go on). Its own schedules
        then start again too: for a rate that decays over the run use False, or `optax.inject_hyperparams` outside.
      key: typed key or integer seed of the noise.
      axis_name: axis (or axes) of replicas whose index is folded into the key; nothing else is done with it.

    Returns:
      A transformation with state `EntropySGDState`; `update` needs `params` and hands `**extra_args` to both
      optimisers. Evaluate, save and average at boundaries, or through `entropy_eval_params`.

    Raises:
      ValueError: if a Python number is out of its range or a choice is unknown.

    It must be the last transformation that touches the update (the rule of `optax.lookahead`): put clipping before it,
    where it acts on each inner gradient, or inside `inner` and `outer`. The anchor is captured from `params` at the
    start of each cycle, so projections or edits at a boundary are safe. Leaves outside an `optax.masked` get their raw
    gradient: use `optax.partition`. Schedules given to `optax.inject_hyperparams` count calls: give it
    `lambda n: schedule(n // L)`.

    Cost: 1 gradient per call; memory 2 parameter copies (anchor, mean) and the two optimiser states.
    Reference: 1611.01838, Algorithm 1; 2006.07897, section 3.

    >>> tx = entropy_sgd(optax.sgd(1.0), optax.sgd(0.5), num_inner=2, gamma=0.0, mean_decay=0.0, outer_scale="none")
    >>> params = jnp.array([4.0])  # with these numbers the outer step jumps to w' of plain SGD on |w|^2/2: 4, 2, 1
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(params, state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> params, bool(entropy_is_boundary(state))
    (Array([1.], dtype=float32), True)
    """
    config = configure(
        "entropy_sgd",
        EntropicConfig(
            optax.with_extra_args_support(inner),
            num_inner,
            gamma,
            mean_decay,
            debias,
            noise_scale,
            inner_learning_rate,
            elastic,
            outer_scale,
            axis_name,
        ),
    )
    first_key = start_key("entropy_sgd", config, key)
    outer_tx = optax.with_extra_args_support(outer)

    def init(params: PyTree) -> EntropySGDState:
        zero = jnp.zeros((), jnp.int32)
        inner_state, outer_state = config.inner.init(params), outer_tx.init(params)
        start = jax.tree.map(jnp.copy, first_key)
        return EntropySGDState(zero, jnp.copy(zero), copy(params), copy(params), inner_state, outer_state, start)

    def update(
        grads: PyTree, state: EntropySGDState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, EntropySGDState]:
        require_params("entropy_sgd", params)
        is_first = state.mini_step == 0
        anchor = tree.where(is_first, params, state.anchor)
        mean = tree.where(is_first, params, state.mean)
        inner_state = state.inner_state
        if reset_inner_state:
            inner_state = _reset(is_first, config.inner.init(params), inner_state)
        now, following = state.key, state.key
        if not isinstance(state.key, tuple):
            following, now = jax.random.split(state.key)
        carry = InnerCarry(params, mean, inner_state)
        carry = inner_step(config, carry, grads, anchor, state.cycle, now, **extra_args)
        num_done = state.mini_step + 1
        is_last = num_done >= num_inner

        def move_anchor(_: PyTree) -> tuple[PyTree, Any]:
            gradient = outer_gradient(config, anchor, carry.mean, state.cycle, num_done)
            updates, outer_state = outer_tx.update(gradient, state.outer_state, anchor, **extra_args)
            return apply(anchor, updates), outer_state

        is_move = is_number(num_inner, 1) or is_last
        target, outer_state = rarely(is_move, move_anchor, (carry.point, state.outer_state))
        return tree.subtract(target, params), EntropySGDState(
            jnp.where(is_last, 0, num_done),
            jnp.where(is_last, optax.safe_increment(state.cycle), state.cycle),
            anchor,
            carry.mean,
            carry.inner_state,
            outer_state,
            following,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _states_in(where: str, opt_state: Any) -> list[EntropySGDState]:
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, EntropySGDState))
    states = [leaf for leaf in leaves if isinstance(leaf, EntropySGDState)]
    rule = "must contain an EntropySGDState"
    check.require(len(states) > 0, where, "opt_state", rule, type(opt_state).__name__)
    return states


def entropy_eval_params(opt_state: Any, params: PyTree) -> PyTree:
    """The weights to evaluate: the anchor within a cycle, `params` itself at a boundary.

    Args:
      opt_state: any optimiser state with one or more `EntropySGDState`s in it: of `chain`, `masked`, `partition`,
        `MultiSteps`, `inject_hyperparams`, `replicate`, or a batch of states (leading axes of `mini_step`).
      params: the current parameters.

    Returns:
      A tree like `params`; masked leaves are the current ones. Batch-norm statistics are not parameters: they follow
      w', so re-estimate them before evaluation.

    Raises:
      ValueError: if there is no `EntropySGDState`.

    >>> tx = optax.chain(optax.clip(1.0), entropy_sgd(optax.sgd(1.0), optax.sgd(0.5), num_inner=2, gamma=0.1))
    >>> params, grads = jnp.array([4.0]), jnp.array([1.0])
    >>> updates, state = tx.update(grads, tx.init(params), params)
    >>> optax.apply_updates(params, updates), entropy_eval_params(state, optax.apply_updates(params, updates))
    (Array([3.5], dtype=float32), Array([4.], dtype=float32))
    """

    def choose(state: EntropySGDState, anchor: Any, leaf: PyTree) -> PyTree:
        if isinstance(anchor, optax.MaskedNode):
            return leaf
        is_boundary = state.mini_step == 0
        shape = is_boundary.shape + (1,) * (jnp.ndim(leaf) - is_boundary.ndim)
        return jnp.where(is_boundary.reshape(shape), leaf, anchor)

    for state in _states_in("entropy_eval_params", opt_state):
        is_masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
        params = jax.tree.map(lambda a, p, s=state: choose(s, a, p), state.anchor, params, is_leaf=is_masked)
    return params


def entropy_is_boundary(opt_state: Any) -> jax.Array:
    """Whether the parameters are the anchor, that is no cycle is under way: bool, () (or (R,) with `replicate`).

    Raises:
      ValueError: if there is no `EntropySGDState` in `opt_state`.
    """
    flags = [state.mini_step == 0 for state in _states_in("entropy_is_boundary", opt_state)]
    return jnp.all(jnp.stack(flags), axis=0)

r"""Does an optimiser see the basis of the hidden layer? The test that decides whether an exact linear limit exists.

An algorithm has the linear network of width m as its limit if it commutes with every isometry Q (n, m), Q^T Q = I, of
the hidden space:

    update(Q A, B Q^T, Q b; Q g_A, g_B Q^T, Q g_b) = Q update(A, B, b; g_A, g_B, g_b)

for all gradients and along its whole history. Gradient descent, momentum, weight decay, schedules, clipping of a tensor
or of all by its Euclidean norm do. What works entry by entry (Adam, RMSProp, sign, clipping of entries) does not, nor
do factored moments, noise in the hidden layer, or scalings by a tensor's shape.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jflat.core import check
from jflat.width.linear_limit import LinearState

__all__ = ["assert_rotation_equivariant"]

_SIZES = (3, 2, 5, 11)  # d, do, m, n
_SCALES = (1.0, 1e-2, 1e2, 1.0)  # of the gradients of successive steps, so that thresholds are met from both sides


def assert_rotation_equivariant(
    tx: optax.GradientTransformation, key: jax.Array, *, bias: bool = True, tolerance: float | None = None
) -> None:
    """Raise unless an optimiser has the exact linear limit: one random isometry, four steps of random gradients.

    Args:
      tx: the transformation, applied to a `LinearState`.
      key: of the isometry and the gradients.
      bias: whether the network has one.
      tolerance: allowed difference of the updates, relative to their norm; None is sqrt(eps).

    Raises:
      ValueError: if an update differs; the message names the step, the parameter and the difference.

    A transformation that passes is equivariant on these four steps with probability one; what it would start to do
    later (a schedule that switches on clipping of entries) is not seen.

    Example: SGD with momentum has the limit, Adam has not.

    >>> assert_rotation_equivariant(optax.sgd(0.1, momentum=0.9), jax.random.key(0))
    >>> assert_rotation_equivariant(optax.sign_sgd(0.1), jax.random.key(0))
    Traceback (most recent call last):
        ...
    ValueError: assert_rotation_equivariant: tx must give the same updates in every orthonormal basis of the hidden ...
    """
    where = "assert_rotation_equivariant"
    eps = float(jnp.finfo(jnp.zeros(()).dtype).eps)
    tolerance = eps**0.5 if tolerance is None else tolerance
    check.require_number(where, "tolerance", tolerance, 0.0, exclusive=True)
    d, do, m, n = _SIZES
    sizes = (m * d, do * m, m if bias else 0)
    normal = np.asarray(jax.random.normal(key, (n * m + (len(_SCALES) + 1) * sum(sizes),)))
    isometry = np.linalg.qr(normal[: n * m].reshape(n, m))[0]

    def embedded(state: LinearState) -> LinearState:
        embed, readout, b = jax.tree.map(np.asarray, tuple(state))
        make: Any = LinearState  # of NumPy arrays
        return make(isometry @ embed, readout @ isometry.T, None if b is None else isometry @ b)

    def both(row: np.ndarray) -> tuple[LinearState, LinearState]:
        embed, readout, b = np.split(row, np.cumsum(sizes)[:-1])
        make: Any = LinearState
        state = make(embed.reshape(m, d), readout.reshape(do, m), b if bias else None)
        return jax.tree.map(jnp.asarray, (state, embedded(state)))

    @jax.jit
    def step_both(histories: Any, gradients: Any) -> tuple[Any, list[LinearState]]:
        results, updates = [], []
        for (params, opt_state), gradient in zip(histories, gradients, strict=True):
            update, opt_state = tx.update(gradient, opt_state, params)
            results.append((optax.apply_updates(params, update), opt_state))
            updates.append(update)
        return results, updates

    rows = normal[n * m :].reshape(len(_SCALES) + 1, -1)
    histories = [(params, tx.init(params)) for params in both(rows[0])]
    for step, (scale, row) in enumerate(zip(_SCALES, rows[1:], strict=True)):
        histories, updates = step_both(histories, both(np.asarray(scale, row.dtype) * row))
        want: Any = embedded(updates[0])
        for name in LinearState._fields[: 3 if bias else 2]:
            expected, got = getattr(want, name), getattr(updates[1], name)
            difference = float(np.linalg.norm(got - expected)) / max(float(np.linalg.norm(expected)), 1e-30)
            rule = (
                "must give the same updates in every orthonormal basis of the hidden layer, to have an exact linear "
                "limit (SGD, momentum, weight decay, clipping by a norm do; Adam, sign, RMSProp, Adafactor do not)"
            )
            seen = f"updates of {name} that differ by {difference:.2g} of their norm at step {step + 1}"
            check.require(difference <= tolerance, where, "tx", rule, seen)

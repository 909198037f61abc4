r"""Local entropy: how many solutions lie at distance d from a configuration, by belief propagation in a field along it.

    exp(N phi(g)) = sum over solutions w of exp(g w . r),     S(g) = <w . r> / N = phi'(g),
    d = (1 - S) / 2,     local entropy Sigma(d) = phi(g) - g S      (the Legendre transform of phi)

for the configuration r. The field g is swept from large (only w near r count) to small, each fixed point started from
the one before. Sigma is at most the entropy of all configurations at distance d, h(d) = -d log d - (1 - d) log(1 - d).

Differs from the sampling estimate of Entropy-SGD and `jflat.flatness.local_entropy`: this one counts zero-error
configurations, deterministically, without a loss.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check
from jflat.core.loop import compiled
from jflat.messages.iteration import Iteration, converge
from jflat.messages.problem import signed_patterns, weights_shape
from jflat.messages.sweep import Messages, bethe_free_entropy, initial_messages

__all__ = ["LocalEntropyResult", "local_entropy"]


class LocalEntropyResult(NamedTuple):
    """The curve of one configuration, one point for each of T fields."""

    distances: jax.Array
    """(T,): d, the mean fraction of weights that differ, in [0, 1]."""
    entropies: jax.Array
    """(T,): Sigma(d) in nats per weight."""
    free_entropies: jax.Array
    """(T,): phi(g) in nats per weight."""
    fields: jax.Array
    """(T,): g."""
    residuals: jax.Array
    """(T,): the largest change of a magnetisation in the last sweep."""
    steps: jax.Array
    """(T,) int32: sweeps."""
    status: jax.Array
    """(T,) int32: CONVERGED, OSCILLATING, MAX_STEPS or NON_FINITE; leave out the points that did not converge."""


def local_entropy(
    patterns: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    *,
    fields: Sequence[float] | np.ndarray | jax.Array,
    num_units: int = 1,
    is_tree: bool = False,
    margin: Any = 0.0,
    damping: Any = 0.5,
    tolerance: Any = 1e-4,
    max_steps: Any = 1000,
) -> LocalEntropyResult:
    """The local entropy Sigma(d) = phi(g) - g S around a configuration, along a list of fields.

    Args:
      patterns: (M, N) inputs, +-1 or real; `jax.vmap` over instances, or over configurations of one instance.
      labels: (M,) +-1.
      weights: r, the reference +-1 of a configuration's shape: (N,), (K, N) or (K, N / K). It need not be a solution.
      fields: (T,) g >= 0, descending: the first near atanh(1 - 2 d) of the smallest distance wanted.
      num_units: K, odd; 1 is a perceptron.
      is_tree: whether each unit sees N / K inputs of its own.
      margin: kappa of the solutions counted, in units of sqrt(n).
      damping: share of the old message kept, in [0, 1).
      tolerance: of the residual.
      max_steps: sweeps at most, for each field.

    Returns:
      `LocalEntropyResult`. A point that does not converge has a status that says so, and the next one starts from the
      last that did.

    Raises:
      ValueError: if shapes do not fit, fields do not descend, or an argument is out of range.

    Accuracy: that of belief propagation, O(1 / N) in Sigma at moderate d. Below d of some 1 / N the number of
    configurations is not extensive and the curve means nothing. At small d around an isolated solution there may be
    no solutions: then Sigma < 0, or no convergence.

    Cost: the sweeps of all points, some tens each; memory as `belief_propagation`.

    Reference: the estimate of 1905.07833, local entropy of algorithmic solutions.

    Example: without patterns every configuration counts and Sigma(d) = h(d); g = atanh(1 - 2 d) gives d.

    >>> import numpy as np
    >>> curve = local_entropy(jnp.zeros((0, 9)), jnp.zeros(0), jnp.ones(9), fields=np.arctanh([0.8, 0.5]))
    >>> print(*(f"{d:.2f} {entropy:.4f}" for d, entropy in zip(curve.distances, curve.entropies)))
    0.10 0.3251 0.25 0.5623
    """
    where = "local_entropy"
    signed = signed_patterns(where, patterns, labels, num_units, is_tree)
    check.require_number(where, "margin", margin)
    check.require_number(where, "damping", damping, 0.0, 0.999)
    check.require_number(where, "tolerance", tolerance, 0.0)
    check.require_integer(where, "max_steps", max_steps, 1)
    shape = weights_shape(patterns.shape, num_units, is_tree)
    check.require(jnp.shape(weights) == shape, where, "weights", f"must have shape {shape}", jnp.shape(weights))
    is_list = np.ndim(fields) == 1 and np.shape(fields)[0] > 0
    check.require(is_list, where, "fields", "must be a non-empty vector", f"shape {np.shape(fields)}")
    if not isinstance(fields, jax.Array):
        host = np.asarray(fields)
        descends = bool(np.all(np.isfinite(host)) and np.all(host >= 0) and np.all(np.diff(host) < 0))
        check.require(descends, where, "fields", "must be finite, at least 0 and descend", fields)
    dtype = patterns.dtype
    reference = jnp.asarray(weights).astype(dtype).reshape(num_units, -1)
    numbers = [jnp.asarray(x, dtype) for x in (fields, margin, damping, tolerance)]
    return compiled(_run)(signed, reference, *numbers, max_steps)


def _run(
    signed: jax.Array,
    reference: jax.Array,
    fields: jax.Array,
    margin: jax.Array,
    damping: jax.Array,
    tolerance: jax.Array,
    max_steps: Any,
) -> LocalEntropyResult:
    size = reference.size
    unused = jax.random.key(0)  # sweeps are parallel and start from zero messages: nothing is drawn from it
    shape = (signed.shape[0], *reference.shape)

    def point(messages: Messages, field: jax.Array) -> tuple[Messages, LocalEntropyResult]:
        external = field * reference
        end: Iteration = converge(
            signed,
            messages,
            external,
            unused,
            margin=margin,
            damping=damping,
            tolerance=tolerance,
            max_steps=max_steps,
        )
        phi = bethe_free_entropy(signed, end.messages, external, margin) / size
        overlap = jnp.sum(jnp.tanh(end.messages.total + external) * reference) / size
        entropy = phi - field * overlap
        status = jnp.where(jnp.isfinite(entropy), end.status, Status.NON_FINITE).astype(jnp.int32)
        good = status == Status.CONVERGED
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), end.messages, messages)
        return kept, LocalEntropyResult((1 - overlap) / 2, entropy, phi, field, end.residual, end.step, status)

    start = initial_messages(unused, shape, 0.0, signed.dtype)
    return jax.lax.scan(point, start, fields)[1]

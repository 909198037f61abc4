r"""Message passing for the spherical perceptron: how much of the sphere |w|^2 = N gets every pattern right.

The uniform measure over the sphere, restricted to stabilities sigma xi . w / sqrt N >= kappa, in the Gaussian (relaxed)
form of belief propagation, with cavity messages expanded about the marginals (TAP, or approximate message passing, as
used at fixed points): N + M numbers instead of M N messages. With means m_i, the variance s of each weight,
c = |xi|^2 / N and h = G / H the Gaussian hazard,

    omega = xi . m / sqrt N - V g,   V = c s,   a = (kappa - omega) / sqrt V,   g = h(a) / sqrt V     each pattern
    B = sum_mu g xi / sqrt N + A m,  A = (1 / N) sum_mu c h'(a) / V,  m = s B       each weight
    s = 2 / (1 + sqrt(1 + 4 |B|^2 / N))                                      from |m|^2 / N + s = 1, the sphere

At the fixed point q = |m|^2 / N = 1 - s, and the Bethe free entropy, the logarithm of the fraction of the sphere, is

    N phi = (N / 2) log(1 - q) + sum_mu (log H(a) + V g^2 / 2),

whose mean over random patterns is Gardner's volume, `jflat.replica.entropy(spherical_perceptron(), alpha)`.

Differs from `belief_propagation`, which does weights +-1, one message for each pattern and weight.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check
from jflat.core.branch import any_member
from jflat.core.loop import compiled
from jflat.core.special import gaussian_hazard, log_H
from jflat.messages.iteration import RUNNING, judge
from jflat.messages.problem import signed_patterns

__all__ = ["SphericalResult", "spherical_belief_propagation"]

_SMALLEST = 1e-12  # of V: far below the variance of any weight at a fixed point


class SphericalResult(NamedTuple):
    """The fixed point for one instance."""

    means: jax.Array
    """(N,) the mean of each weight over the solutions: their centre of mass."""
    variance: jax.Array
    """s = 1 - q, the variance of each weight."""
    overlap: jax.Array
    """q = |means|^2 / N, the overlap of two solutions."""
    free_entropy: jax.Array
    """phi in nats per weight, at most 0: (1 / N) log of the fraction of the sphere."""
    residual: jax.Array
    """The largest change of a mean in the last step, undamped."""
    steps: jax.Array
    """int32."""
    status: jax.Array
    """int32: CONVERGED, OSCILLATING, MAX_STEPS, NON_FINITE. Without convergence the values are the last ones."""


class _State(NamedTuple):
    means: jax.Array
    variance: jax.Array
    slopes: jax.Array
    residual: jax.Array
    best: jax.Array
    last_progress: jax.Array
    step: jax.Array
    status: jax.Array


def spherical_belief_propagation(
    patterns: jax.Array,
    labels: jax.Array,
    *,
    margin: Any = 0.0,
    damping: Any = 0.0,
    tolerance: Any = 1e-5,
    max_steps: Any = 1000,
) -> SphericalResult:
    """Belief propagation for weights on the sphere |w|^2 = N, for one instance; `jax.vmap` it over a batch.

    Args:
      patterns: (M, N) inputs, +-1 or real: independent entries of variance about 1 (for correlated inputs the expansion
        is not right, and may diverge).
      labels: (M,) +-1.
      margin: kappa, in units of sqrt(N): sigma xi . w >= kappa sqrt(N).
      damping: share of the old means, variance and slopes kept, in [0, 1).
      tolerance: of the residual.
      max_steps: at most.

    Returns:
      `SphericalResult`.

    Raises:
      ValueError: if shapes do not fit, or an argument is out of range.

    Accuracy: errors of phi are O(1 / N) below capacity; float32 gives phi to about 1e-6. Above capacity (alpha = 2 for
    kappa = 0) there is no fixed point with q < 1. The problem is convex for kappa >= 0, and replica symmetric.

    Cost: two products with the patterns per step, some tens of steps; memory N + M numbers besides them.

    Reference: Gardner 1988 for the volume; Mezard 1989 for the cavity equations; Donoho, Maleki, Montanari 0907.3574
    for the form with its memory term.

    Example: one pattern halves the sphere.

    >>> result = spherical_belief_propagation(jnp.ones((1, 101)), jnp.ones(1))
    >>> print(f"{101 * result.free_entropy:.2f} {-jnp.log(2):.2f}")
    -0.69 -0.69
    """
    where = "spherical_belief_propagation"
    signed = signed_patterns(where, patterns, labels)
    check.require_number(where, "margin", margin)
    check.require_number(where, "damping", damping, 0.0, 0.999)
    check.require_number(where, "tolerance", tolerance, 0.0)
    check.require_integer(where, "max_steps", max_steps, 1)
    numbers = [jnp.asarray(x, patterns.dtype) for x in (margin, damping, tolerance)]
    return compiled(_run)(signed[:, 0], *numbers, max_steps)


def _run(
    signed: jax.Array, margin: jax.Array, damping: jax.Array, tolerance: jax.Array, max_steps: Any
) -> SphericalResult:
    number, size = signed.shape
    dtype = signed.dtype
    scaled = signed / np.sqrt(size).astype(dtype)
    squares = jnp.sum(scaled * scaled, axis=1)  # c
    highest = jax.lax.Precision.HIGHEST

    def places(means: jax.Array, variance: jax.Array, slopes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(V, a) of each pattern."""
        width = jnp.maximum(squares * variance, _SMALLEST)
        omega = jnp.matmul(scaled, means, precision=highest) - width * slopes
        return width, (margin - omega) * jax.lax.rsqrt(width)

    def step(state: _State) -> _State:
        width, place = places(state.means, state.variance, state.slopes)
        hazard, rate = jax.jvp(gaussian_hazard, (place,), (jnp.ones_like(place),))
        slopes = hazard * jax.lax.rsqrt(width)
        precision = jnp.sum(squares * rate / width) / size
        bias = jnp.matmul(slopes, scaled, precision=highest) + precision * state.means
        variance = 2 / (1 + jnp.sqrt(1 + 4 * jnp.mean(bias * bias)))
        means = variance * bias
        residual = jnp.max(jnp.abs(means - state.means))
        count = state.step + 1
        verdict = judge(residual, state.best, state.last_progress, count, tolerance, max_steps)
        keep = jnp.where(state.step == 0, 0, damping)
        means, variance, slopes = (
            new + keep * (old - new)
            for new, old in ((means, state.means), (variance, state.variance), (slopes, state.slopes))
        )
        new = _State(means, variance, slopes, residual, verdict[0], verdict[1], count, verdict[2])
        return jax.tree.map(lambda a, b: jnp.where(state.status == RUNNING, a, b), new, state)

    infinity, zero = jnp.asarray(jnp.inf, dtype), jnp.int32(0)
    start = _State(
        jnp.zeros(size, dtype), jnp.ones((), dtype), jnp.zeros(number, dtype), infinity, infinity, zero, zero,
        jnp.int32(RUNNING),
    )  # fmt: skip
    end = jax.lax.while_loop(lambda state: any_member(state.status == RUNNING), step, start)
    width, place = places(end.means, end.variance, end.slopes)
    pattern_terms = log_H(place) + width * end.slopes**2 / 2
    phi = jnp.log(end.variance) / 2 + jnp.sum(pattern_terms) / size
    overlap = jnp.mean(end.means * end.means)
    status = jnp.where(jnp.isfinite(phi), end.status, Status.NON_FINITE).astype(jnp.int32)
    return SphericalResult(end.means, end.variance, overlap, phi, end.residual, end.step, status)

"""What is measured of a linear classifier of two Gaussian clouds, all of it without sampling.

test error       rho H((m + b) / sqrt(Delta q)) + (1 - rho) H((m - b) / sqrt(Delta q))
local energy     (1/M) sum_i H(t_i / (eta sqrt(q) |x_i| / sqrt N)),  the mean training error of w + eta sqrt(q) g
increment        local energy - training error, the measure of flatness
"""

import jax
import jax.numpy as jnp

from jflat.core.special import log_H
from jflat.data import MixtureSamples, mixture_error

__all__ = ["classifier_observables"]


def classifier_observables(
    weights: jax.Array, bias: jax.Array, data: MixtureSamples, delta: float, rho: jax.Array, noise: float
) -> dict[str, jax.Array]:
    """Errors, flatness and overlaps of sign(w . x / sqrt(N) + b) on its training samples; scalars."""
    size = weights.size
    q = jnp.vdot(weights, weights, precision=jax.lax.Precision.HIGHEST) / size
    m = jnp.vdot(weights, data.center, precision=jax.lax.Precision.HIGHEST) / size
    root = jnp.sqrt(jnp.asarray(size, weights.dtype))
    fields = jnp.matmul(data.inputs, weights, precision=jax.lax.Precision.HIGHEST) / root + bias
    margins = data.labels * fields
    spread = noise * jnp.sqrt(q) * jnp.linalg.norm(data.inputs, axis=1) / root
    train = jnp.mean(margins <= 0, dtype=weights.dtype)
    local = jnp.mean(jnp.exp(log_H(margins / spread)))
    return {
        "generalisation_error": mixture_error(weights, bias, data.center, delta=delta, rho=rho),
        "training_error": train,
        "local_energy": local,
        "increment": local - train,
        "m": m,
        "q": q,
        "b": bias,
    }

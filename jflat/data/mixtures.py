"""Two Gaussian clouds: the simplest classification problem whose best possible error is known.

    x = sigma v / sqrt(N) + sqrt(Delta) z,    z_i ~ N(0, 1),  v_i ~ N(0, 1),  sigma = +1 with probability rho, else -1

A linear classifier sign(w . x / sqrt(N) + b) (`jflat.models.perceptron` with a bias) errs with probability

    eps = rho H((m + b) / sqrt(Delta q)) + (1 - rho) H((m - b) / sqrt(Delta q)),    m = w . v / N,  q = |w|^2 / N

with H the Gaussian tail: exact, no test set is needed (`mixture_error`). `jflat.replica.mixture` and `bayes_error` are
the theory for N to infinity. Reference: Baldassi et al. 2010.14761.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import check

__all__ = ["MixtureSamples", "gaussian_mixture", "mixture_error"]


class MixtureSamples(NamedTuple):
    """M samples of two clouds."""

    inputs: jax.Array
    """(M, N)."""
    labels: jax.Array
    """(M,) the cloud of each sample, +1 or -1, in the dtype of the inputs."""
    center: jax.Array
    """(N,) v; the clouds lie at +-v / sqrt(N)."""


def gaussian_mixture(
    key: jax.Array,
    num_samples: int,
    num_inputs: int,
    *,
    delta: float | jax.Array = 1.0,
    rho: float | jax.Array = 0.5,
    center: jax.Array | None = None,
    dtype: Any = jnp.float32,
) -> MixtureSamples:
    """Draw M samples of two Gaussian clouds.

    Args:
      key: typed PRNG key; `jax.vmap` over keys draws a batch of instances.
      num_samples: M, at least 0; the load is alpha = M / N.
      num_inputs: N, at least 1.
      delta: Delta, the variance of a cloud, at least 0.
      rho: probability of the label +1, in [0, 1]; 1/2 is the balanced mixture.
      center: (N,) v of an earlier draw, for further samples of the same clouds; None draws a new one.
      dtype: of everything, if `center` is not given.

    Returns:
      `MixtureSamples`.

    Raises:
      ValueError: for arguments out of range, or a centre of another shape.

    >>> data = gaussian_mixture(jax.random.key(0), 5, 3, delta=0.0)
    >>> bool(jnp.allclose(data.inputs * data.labels[:, None], data.center / 3**0.5))
    True
    """
    where = "gaussian_mixture"
    check.require_integer(where, "num_samples", num_samples, 0)
    check.require_integer(where, "num_inputs", num_inputs, 1)
    check.require_number(where, "delta", delta, 0.0)
    check.require_number(where, "rho", rho, 0.0, 1.0)
    if center is not None:
        check.require_floating(where, "center", center)
        shape = jnp.shape(center)
        check.require(shape == (num_inputs,), where, "center", f"must have shape ({num_inputs},)", shape)
        dtype = center.dtype
    check.require(jnp.issubdtype(dtype, jnp.floating), where, "dtype", "must be a real floating-point dtype", dtype)
    # one draw for all: the generator dominates the compile time
    draws = jax.random.normal(key, (num_samples + 1, num_inputs + 1), dtype)
    center = draws[0, 1:] if center is None else center
    noise, chance = draws[1:, 1:], jax.scipy.special.ndtr(draws[1:, 0])
    labels = jnp.where(chance < jnp.asarray(rho, dtype), 1, -1).astype(dtype)
    scaled = center / jnp.sqrt(jnp.asarray(num_inputs, dtype))
    return MixtureSamples(labels[:, None] * scaled + jnp.sqrt(jnp.asarray(delta, dtype)) * noise, labels, center)


def mixture_error(
    weights: jax.Array, bias: jax.Array, center: jax.Array, *, delta: float | jax.Array, rho: float | jax.Array
) -> jax.Array:
    """The exact test error eps of sign(w . x / sqrt(N) + b) for given clouds: the equation of the module.

    Args:
      weights: (N,) w.
      bias: () b.
      center: (N,) v.
      delta, rho: of the clouds, Delta positive.

    Returns:
      () in [0, 1]; at w = 0 all samples get the class of the bias (half of them if b = 0).

    >>> float(mixture_error(jnp.ones(4), jnp.float32(0.0), jnp.ones(4), delta=1.0, rho=0.5))  # H(1)
    0.1586...
    """
    check.require_number("mixture_error", "delta", delta, 0.0, exclusive=True)
    check.require_number("mixture_error", "rho", rho, 0.0, 1.0)
    highest, dtype = jax.lax.Precision.HIGHEST, weights.dtype
    m = jnp.vdot(weights, center, precision=highest) / weights.size
    q = jnp.vdot(weights, weights, precision=highest) / weights.size
    spread = jnp.sqrt(2 * jnp.asarray(delta, dtype) * q)
    tails = []
    for distance in (m + bias, m - bias):
        far = jnp.sign(distance) * jnp.asarray(jnp.inf, dtype)
        ratio = jnp.where(spread > 0, distance / jnp.where(spread > 0, spread, 1), jnp.where(distance == 0, 0, far))
        tails.append(jax.lax.erfc(ratio) / 2)
    share = jnp.asarray(rho, dtype)
    return share * tails[0] + (1 - share) * tails[1]

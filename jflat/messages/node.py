r"""Messages of one sign unit to its weights, and of a majority of units to each of them, in the log domain.

A unit of n weights w_i = +-1 sees x_i w_i with means m_i and variances x_i^2 (1 - m_i^2). By the central limit theorem
its stability, given w_i, is Gaussian with mean mu_i + x_i w_i and variance s_i^2, mu_i = mu - x_i m_i and s_i^2 = s^2 -
x_i^2 (1 - m_i^2), where mu and s^2 are the sums over all weights (less the margin). Let the rest of the network hold
the field H on the unit's sign (H = inf for a perceptron, which must be right). The message to w_i, as a field, is

    u_i = (L(a_i + e_i) - L(a_i - e_i)) / 2,    a_i = mu_i / s_i,    e_i = x_i / s_i,
    L(a) = log(e^H Phi(a) + e^-H Phi(-a))  (H = inf: log Phi(a)).

Two forms of the same number:

- `exact_messages`: the two logarithms. Correct at any field; two logarithms and more per message.
- `series_messages`: the Taylor series of L about mu / s, the same for all weights of the unit, to fifth order. L' = R
  obeys R' = -R (a + R) for every H, so five coefficients per unit follow from R, and a message costs some 30
  multiply-adds and no transcendental function. `series_limit` says where it is as good as float32 needs.

Differs from the usual implementations (erf differences and atanh, or the first-order "TAP" form): those saturate or
lose their digits once |mu| / s exceeds about 5, where wrong patterns weigh most.
"""

import jax
import jax.numpy as jnp

from jflat.core.special import gaussian_hazard, log_H

__all__ = ["exact_messages", "majority", "series_coefficients", "series_limit", "series_messages"]

SERIES_LIMIT = 0.2


def series_limit(stability: jax.Array, field: jax.Array | None) -> jax.Array:
    """The largest |x_i| / s at which `series_messages` is within 3e-5 (|e_i| + |u_i|), 7e-6 for infinite H.

    For finite H the function L bends from a parabola to a constant near a = -2 sqrt(H), the more sharply the larger H.

    Args:
      stability: a = mu / s, any shape.
      field: H, same shape, or None for infinite.
    """
    if field is None:
        return jnp.full_like(stability, SERIES_LIMIT)
    return jnp.where(stability > 1, SERIES_LIMIT, SERIES_LIMIT / (1 + field / 2))


def majority(stability: jax.Array) -> tuple[jax.Array | None, jax.Array]:
    """The fields that a majority of K units, which must be right, puts on each unit, and its log normalisation.

    Args:
      stability: (..., K) mu / s of each unit; its sign is right with probability Phi(mu / s), independently. K odd.

    Returns:
      (H, log Z): H (..., K) = (log P(right | unit l right) - log P(right | unit l wrong)) / 2, at least 0, or None for
      K = 1 where it is infinite; log Z (...) = log P(more than K / 2 units right).

    Cost: K^2 log-additions: forward sums of the number of right units before l, backward probabilities after l.
    """
    units = stability.shape[-1]
    if units == 1:
        return None, log_H(-stability[..., 0])
    right, wrong = jnp.moveaxis(log_H(-stability), -1, 0), jnp.moveaxis(log_H(stability), -1, 0)
    impossible = jnp.full_like(right[:1], -jnp.inf)
    # after[l][j]: log probability that the vote is won, given j right units among the first l.
    counts = jnp.arange(units + 1, dtype=jnp.int32).reshape(-1, *(1,) * (right.ndim - 1))
    after = [jnp.where(2 * counts > units, jnp.zeros_like(right[:1]), impossible)]
    for unit in reversed(range(units)):
        after.append(jnp.logaddexp(right[unit] + after[-1][1 : unit + 2], wrong[unit] + after[-1][: unit + 1]))
    after.reverse()
    fields, before = [], jnp.zeros_like(right[:1])
    for unit in range(units):
        won = jax.nn.logsumexp(before + after[unit + 1][1 : unit + 2], axis=0)
        lost = jax.nn.logsumexp(before + after[unit + 1][: unit + 1], axis=0)
        fields.append((won - lost) / 2)
        before = jnp.logaddexp(
            jnp.concatenate([before + wrong[unit], impossible]), jnp.concatenate([impossible, before + right[unit]])
        )
    return jnp.stack(fields, axis=-1), after[0][0]


def series_coefficients(stability: jax.Array, field: jax.Array | None) -> list[jax.Array]:
    """L^(k)(a) / k! for k = 1 to 5 at a = `stability`, with H = `field` (None: infinite); same shapes.

    With D = a + R and Q = 1 - R D all further derivatives are polynomials; where a is very negative D and Q come from
    the continued fraction of R, because the differences have no digits left.
    """
    hazard = gaussian_hazard(-stability)
    t = jnp.maximum(-stability, 4.0)
    rest = 2 / (t + 3 / (t + 4 / (t + 5 / (t + 6 / t))))
    is_tail = stability < -4
    D = jnp.where(is_tail, 1 / (t + rest), stability + hazard)
    Q = jnp.where(is_tail, D * (rest - D), 1 - hazard * D)
    R = hazard
    if field is not None:
        balance = log_H(stability) - log_H(-stability) - 2 * field
        lost = jnp.exp(-2 * field) * jax.nn.sigmoid(-balance) + jax.nn.sigmoid(balance)
        R = -jnp.expm1(-2 * field) * jax.nn.sigmoid(-balance) * hazard
        Q = Q + lost * hazard * D + lost * R * hazard
        D = D - lost * hazard
    third = R * (D * D - Q)
    fourth = 2 * R * D * Q - (R + D) * third
    fifth = 2 * R * (Q * Q - D * D * Q + D * third) - (Q - R * D) * third - (R + D) * fourth
    return [R, -R * D / 2, third / 6, fourth / 24, fifth / 120]


def series_messages(
    patterns: jax.Array,
    means: jax.Array,
    variances: jax.Array,
    stability: jax.Array,
    inverse_width: jax.Array,
    coefficients: list[jax.Array],
) -> jax.Array:
    """u_i by the series, for |x_i| / s up to `series_limit`.

    Args:
      patterns: (..., n) x.
      means: (..., n) m.
      variances: (..., n) 1 - m^2.
      stability: (..., 1) mu / s.
      inverse_width: (..., 1) 1 / s.
      coefficients: five of (..., 1), of `series_coefficients`.
    """
    c1, c2, c3, c4, c5 = coefficients
    scaled = patterns * inverse_width
    share = scaled * scaled * variances  # 1 - s_i^2 / s^2
    excess = share * (1 / 2 + share * (3 / 8 + share * (5 / 16 + share * (35 / 128))))  # s / s_i - 1
    step = scaled + scaled * excess
    shift = stability * excess - means * step
    step2, shift2 = step * step, shift * shift
    odd = c1 + step2 * (c3 + c5 * step2) + shift2 * (3 * c3 + c5 * (5 * shift2 + 10 * step2))
    return step * (odd + shift * (2 * c2 + 4 * c4 * (shift2 + step2)))


def exact_messages(
    patterns: jax.Array,
    means: jax.Array,
    variances: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    field: jax.Array | None,
) -> jax.Array:
    """u_i by the logarithms, at any mean, variance and field.

    Args:
      patterns: (..., n) x.
      means: (..., n) m.
      variances: (..., n) 1 - m^2.
      mean: (..., 1) mu, the sum of x m less the margin.
      variance: (..., 1) s^2, the sum of x^2 (1 - m^2).
      field: (..., 1) H, or None for infinite.

    A unit whose other weights are all certain has s_i = 0 up to rounding; s_i^2 is kept above that rounding (1e-6 of
    s^2 in float32), and the message is a large finite field.
    """
    spread = variance - patterns * patterns * variances
    floor = 8 * jnp.finfo(variance.dtype).eps * variance + 1e-20
    inverse = jax.lax.rsqrt(jnp.maximum(spread, floor))
    place, step = (mean - patterns * means) * inverse, patterns * inverse
    if field is None:
        return (_log_phi(place + step) - _log_phi(place - step)) / 2

    def value(x: jax.Array) -> jax.Array:
        right, wrong = _log_phi(x), _log_phi(-x)
        return jnp.logaddexp(field + right, wrong - field)

    return (value(place + step) - value(place - step)) / 2


def _log_phi(x: jax.Array) -> jax.Array:
    """log Phi(x); in float32 by W. J. Cody's form erfc(z) = t exp(-z^2 + P(t)), t = 1 / (1 + z / 2).

    The nine coefficients (Numerical Recipes, `erfcc`) have a relative error of 1.2e-7 in Phi(-|x|), at any x.
    """
    if x.dtype != jnp.float32:
        return log_H(-x)
    z = jnp.abs(x) * 0.7071067811865476
    t = 1 / (1 + z / 2)
    polynomial = jnp.full_like(t, 0.17087277)
    for c in (-0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368):
        polynomial = c + t * polynomial
    tail = jnp.log(t / 2) - 1.26551223 + t * polynomial - z * z
    return jnp.where(x < 0, tail, jnp.log1p(-jnp.exp(tail)))

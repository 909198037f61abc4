r"""Linear classification of two Gaussian clouds: order parameters of a ridge estimator with bias.

alpha N samples xi = sigma v / sqrt(N) + sqrt(Delta) z with v_i, z_i standard normal, sigma = +1 with probability rho,
are classified by sign(w . xi / sqrt(N) + b), where (w, b) minimise

    sum_mu l(t_mu) + (lambda / 2) |w|^2,        t = sigma (w . xi / sqrt(N) + b)

with l(t) = (1 - t)^2 / 2, log(1 + exp(-t)) or max(0, 1 - t). The minimum per weight is, replica symmetric (and exact,
the problem being convex),

    f = extr_{m, q, chi, b}  lambda q / 2 - (q - m^2) / (2 chi) + alpha E M_V(om)
    om = m + sigma b + sqrt(Delta q) z,   V = Delta chi,   M_V(om) = min_t [l(t) + (t - om)^2 / (2 V)]

with m = w . v / N, q = |w|^2 / N, chi the response of w. The conjugates of the literature are eliminated: mh = m / chi,
qh = (q - m^2) / chi^2, xh = 1 / chi - lambda; the stationarity conditions are those of the fixed point

    mh = alpha E g,  qh = alpha Delta E g^2,  xh = -alpha Delta E dg/dom,  E sigma g = 0,     g = (t* - om) / V,
    m = mh / (lambda + xh),  q = (mh^2 + qh) / (lambda + xh)^2,  chi = 1 / (lambda + xh).

Observables: generalisation error rho H((m + b) / sqrt(Delta q)) + (1 - rho) H((m - b) / sqrt(Delta q)); training error
P(t* < 0); local energy, the training error of w + eta sqrt(q) g with g_i standard normal,
E H(t* / (eta sqrt(Delta q))). The estimator w ~ sum_mu sigma xi with the right bias is Bayes
optimal: m = alpha, q = alpha^2 + alpha Delta, b = (Delta q / (2 m)) log(rho / (1 - rho)) (`bayes_error`). A bias
trained together with a large ridge is not: the majority takes all.

References: F. Mignacco et al., 2002.11544; C. Baldassi et al., 2010.14761.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import check
from jflat.core.special import log_H
from jflat.replica.quadrature import Rule, gaussian_panels, legendre
from jflat.replica.saddle import Certificate, follow, in_chunks

__all__ = ["Clouds", "MixtureOrder", "MixtureResult", "bayes_error", "mixture", "mixture_phi"]

LOSSES = ("squared", "logistic", "hinge")
ORDER = 10
_CHUNK = 16
_NEWTON = 30


class Clouds(NamedTuple):
    """The control parameters of two Gaussian clouds and of the training."""

    alpha: Any
    """Samples per weight."""
    delta: Any
    """Variance of a cloud, Delta."""
    rho: Any
    """Fraction of the cloud with label +1."""
    ridge: Any
    """lambda."""


class MixtureOrder(NamedTuple):
    """Order parameters of the estimator."""

    m: Any
    """Overlap with the centre of the clouds, w . v / N."""
    q: Any
    """|w|^2 / N."""
    chi: Any
    """Response: d w / d field, per weight."""
    b: Any
    """Bias."""


class MixtureResult(NamedTuple):
    """Errors of the estimator; each array has the shape of `ridge`."""

    value: np.ndarray
    """f, the minimum of the regularised loss per weight."""
    generalisation_error: np.ndarray
    training_error: np.ndarray
    """Fraction of samples on the wrong side."""
    local_energy: np.ndarray
    """Training error after noise eta; `local_energy - training_error` is the increment, the measure of flatness."""
    order: MixtureOrder
    certificate: Certificate
    status: np.ndarray
    """int32: CONVERGED, MAX_STEPS or NON_FINITE."""


def mixture_phi(order: MixtureOrder, control: Clouds, rule: Rule, *, loss: str) -> jax.Array:
    """The free energy f of the module, a pure function of scalars, stationary in `order`."""
    m, q, chi, _ = order
    energy = jnp.sum(jnp.stack([w @ envelope for _, envelope, w in _sides(order, control, rule, loss)]))
    return control.ridge * q / 2 - (q - m**2) / (2 * chi) + control.alpha * energy


def _sides(order: MixtureOrder, control: Clouds, rule: Rule, loss: str) -> list[tuple]:
    """For each label: the margins t* on the nodes, the envelopes M, and the weights times the label's probability."""
    spread, v = jnp.sqrt(control.delta * order.q), control.delta * order.chi
    sides = []
    for sigma, share in ((1.0, control.rho), (-1.0, 1 - control.rho)):
        mean = order.m + sigma * order.b
        places = (*kinks(v, loss), proximal_inverse(jnp.zeros_like(v), v, loss))
        z, weight = gaussian_panels(rule, [((place - mean) / spread, 1 / spread) for place in places])
        t, envelope = proximal(mean + spread * z, v, loss)
        sides.append((t, envelope, weight * share))
    return sides


def kinks(v: jax.Array, loss: str) -> tuple:
    """Where t*(om) has a kink or bends."""
    return {"hinge": (1.0, 1 - v), "logistic": (0.0,)}.get(loss, ())


def proximal_inverse(t: jax.Array, v: jax.Array, loss: str) -> jax.Array:
    """The field om at which t* = t: om = t + V l'(t)."""
    if loss == "logistic":
        return t - v * jax.nn.sigmoid(-t)
    return t - v * {"squared": 1 - t, "hinge": jnp.where(t < 1, 1.0, 0.0), "pointwise": jnp.ones_like(t)}[loss]


def proximal(field: jax.Array, v: jax.Array, loss: str) -> tuple[jax.Array, jax.Array]:
    """t* = argmin l(t) + (t - om)^2 / (2 V), and the minimum M_V(om); "pointwise" is l = -t."""
    if loss == "pointwise":
        return field + v, -field - v / 2
    if loss == "squared":
        return (field + v) / (1 + v), (1 - field) ** 2 / (2 * (1 + v))
    if loss == "hinge":
        t = jnp.where(field >= 1, field, jnp.minimum(field + v, 1.0))
        return t, jnp.maximum(1 - t, 0.0) + (t - field) ** 2 / (2 * v)

    def newton(t: jax.Array) -> jax.Array:  # of a rising function, convex on t < 0, concave on t > 0: from 0, monotone
        p = jax.nn.sigmoid(-t)
        return t - (t - field - v * p) / (1 + v * p * (1 - p))

    t = jax.lax.fori_loop(0, _NEWTON, lambda _, t: jax.lax.stop_gradient(newton(t)), jnp.zeros_like(field))
    t = newton(t)  # one step with derivatives
    return t, jnp.logaddexp(0.0, -t) + (t - field) ** 2 / (2 * v)


def _from_coordinates(u: jax.Array, control: Clouds) -> MixtureOrder:
    """u = (m, log(q - m^2), log chi, b)."""
    return MixtureOrder(u[0], u[0] ** 2 + jnp.exp(u[1]), jnp.exp(u[2]), u[3])


@functools.partial(jax.jit, static_argnames="loss")
def _follow(loss: str, controls: Clouds, abscissae: jax.Array, start: jax.Array, noise: jax.Array) -> tuple:
    rule, finer = legendre(ORDER), legendre(2 * ORDER)
    phi = functools.partial(mixture_phi, loss=loss)
    curve = follow(phi, _from_coordinates, start, controls, abscissae, rule, finer, active=MixtureOrder._fields)

    def observe(point: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
        order, control = point
        spread = jnp.sqrt(control.delta * order.q)
        tails = jnp.exp(log_H(jnp.stack([order.m + order.b, order.m - order.b]) / spread))
        wrong = control.rho * tails[0] + (1 - control.rho) * tails[1]
        sides = _sides(order, control, finer, loss)
        train = jnp.asarray(sum(jnp.sum(jnp.where(t < 0, w, 0)) for t, _, w in sides))
        local = jnp.asarray(sum(jnp.sum(w * jnp.exp(log_H(t / (noise * spread)))) for t, _, w in sides))
        return wrong, train, local

    return curve, *jax.lax.map(observe, (curve.order, controls))


def mixture(
    loss: str, alpha: float, delta: float, rho: float, ridge: float | np.ndarray, *, noise: float = 0.5
) -> MixtureResult:
    """Order parameters and errors of the ridge estimator for two Gaussian clouds: the equations of the module.

    Args:
      loss: "squared", "logistic" or "hinge", summed over samples.
      alpha: samples per weight, positive.
      delta: variance of a cloud, positive.
      rho: fraction of the cloud with label +1, in (0, 1).
      ridge: lambda, positive; a number or an array of any shape.
      noise: eta of the local energy, relative to the norm of the weights.

    Returns:
      A `MixtureResult`, NumPy float64.

    Raises:
      ValueError: if an argument is out of range.

    Accuracy: `certificate.error`. The bias is that of the minimum; for a balanced mixture it is zero.

    Cost: the curve is followed from lambda = 1e3 (hinge: 4 alpha) downward, 4 unknowns; a fraction of a
    second after compilation.

    References: see the module.

    >>> from jflat.replica import mixture
    >>> float(mixture("squared", 2.0, 1.0, 0.5, 1.0).generalisation_error.round(4))
    0.2287
    """
    check.require_choice("mixture", "loss", loss, LOSSES)
    for name, number in {"alpha": alpha, "delta": delta, "noise": noise}.items():
        check.require_number("mixture", name, number, 0.0, exclusive=True)
    check.require_number("mixture", "rho", rho, 0.0, 1.0, exclusive=True)
    ridge = np.asarray(ridge, np.float64)
    check.require(bool(np.all((ridge > 0) & np.isfinite(ridge))), "mixture", "ridge", "must be positive, finite", ridge)
    falling = np.unique(ridge)[::-1]
    # with the hinge and a large ridge all samples are inside the margin, and nothing fixes the bias
    path = [max(4 * alpha if loss == "hinge" else 1e3, falling[0])]
    for value in falling:
        steps = max(1, math.ceil(math.log(path[-1] / value) / 0.35))
        path.extend(path[-1] * (value / path[-1]) ** (np.arange(1, steps + 1) / steps))
    lam = np.asarray(path)
    slope = {"squared": 1.0, "logistic": 0.5, "hinge": 1.0}[loss]  # -l'(0): the weights at large lambda
    m, rest = alpha * slope / lam[0], alpha * delta * (slope / lam[0]) ** 2
    start = np.asarray([m, math.log(rest), -math.log(lam[0]), 0.0])
    with jax.enable_x64(True):
        run = lambda controls, abscissae, start: _follow(loss, controls, abscissae, start, noise)  # noqa: E731
        controls = Clouds(np.full_like(lam, alpha), np.full_like(lam, delta), np.full_like(lam, rho), lam)
        curve, *observed = in_chunks(run, controls, -np.log(lam), start, _CHUNK)
    chosen = np.argmin(np.abs(lam / ridge[..., None] - 1), axis=-1)
    curve, observed = jax.tree.map(lambda x: x[chosen], (curve, observed))
    wrong, train, local = observed
    return MixtureResult(curve.value, wrong, train, local, curve.order, curve.certificate, curve.status)


def bayes_error(alpha: float, delta: float, rho: float) -> float:
    """The smallest generalisation error any estimator can have from alpha N samples: closed form, see the module.

    >>> round(bayes_error(2.0, 1.0, 0.5), 6)
    0.207108
    """
    m, q = alpha, alpha**2 + alpha * delta
    b = delta * q / (2 * m) * math.log(rho / (1 - rho))
    spread = math.sqrt(2 * delta * q)
    return rho * math.erfc((m + b) / spread) / 2 + (1 - rho) * math.erfc((m - b) / spread) / 2

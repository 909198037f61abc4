r"""Weights that minimise a cross-entropy: the Gibbs measure of the loss, replica symmetric.

The loss of a pattern of stability Delta = sigma w . xi / sqrt(N), with a robustness gamma (the norm of the weights), is

    f_gamma(Delta) = -Delta / 2 + log(2cosh(gamma Delta)) / (2 gamma) = log(1 + exp(-2 gamma Delta)) / (2 gamma).

Weights are drawn with probability proportional to exp(-beta sum_mu f_gamma(Delta_mu)); beta -> infinity is the minimum.
The free entropy per weight is that of `entropy` with another channel,

    phi = extr_q  G_S + alpha \int Dz log Z(sqrt(Q) z, sqrt(1 - Q)),    Z(om, s) = \int Du exp(-beta f_gamma(om + s u)),

and with the mean loss of a pattern e = -(d phi / d beta) / alpha the entropy of the weights so drawn is
phi + alpha beta e. The measure freezes where that is zero: beyond, the replica symmetric state does not exist for
binary weights. `error_rate` is the fraction of patterns with Delta < 0.

A moderate gamma and a large beta select wide flat minima of the number of errors (`franz_parisi` around such a
reference), a large gamma gives back typical solutions. Reference: C. Baldassi, F. Pittorino, R. Zecchina, 1905.07833.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check
from jflat.replica.entropy import BinaryOrder, SphericalOrder, along_alpha, entropic, volume_coordinates
from jflat.replica.models import Model
from jflat.replica.quadrature import Rule, gaussian_panels, legendre, log_gaussian_average
from jflat.replica.saddle import Certificate, follow, in_chunks

__all__ = ["CrossEntropy", "GibbsResult", "Thermal", "gibbs", "gibbs_phi", "log_partition", "tabulated_log_partition"]

ORDER = 8
_CHUNK = 16
_BISECTIONS = 30
_PANELS = 32  # of the table of log Z
_FARTHEST = 12.0  # fields are standard normal


class CrossEntropy(NamedTuple):
    """The weight exp(-beta f_gamma(Delta)) of a pattern."""

    gamma: Any
    """Robustness, positive: f_gamma falls over stabilities of order 1 / gamma."""
    beta: Any
    """Inverse temperature, positive."""

    def log_weight(self, stability: jax.Array) -> jax.Array:
        """-beta f_gamma(Delta), elementwise.

        >>> CrossEntropy(1.0, 2.0).log_weight(jnp.float32(0.0))  # -log 2
        Array(-0.6931472, dtype=float32)
        """
        return -(self.beta / (2 * self.gamma)) * jax.nn.softplus(-2 * self.gamma * stability)

    def wall(self) -> tuple[Any, Any]:
        """(place, width): where the weight is 1 / e, and over what stabilities it rises."""
        return -jnp.log(jnp.expm1(2 * self.gamma / self.beta)) / (2 * self.gamma), 1 / (2 * self.gamma)


class Thermal(NamedTuple):
    """The control parameters of a Gibbs measure."""

    alpha: Any
    """Patterns per weight."""
    loss: CrossEntropy


class GibbsResult(NamedTuple):
    """A Gibbs measure; each array has the shape of `alpha`."""

    value: np.ndarray
    """phi, nats per weight."""
    entropy: np.ndarray
    """phi + alpha beta energy, nats per weight: the logarithm of the number of weights drawn from."""
    energy: np.ndarray
    """Mean of f_gamma over patterns."""
    error_rate: np.ndarray
    """Fraction of patterns with the wrong label."""
    order: BinaryOrder | SphericalOrder
    certificate: Certificate
    status: np.ndarray
    """int32: CONVERGED, UNPHYSICAL (negative entropy of binary weights), MAX_STEPS or NON_FINITE."""


def gibbs_phi(order: BinaryOrder | SphericalOrder, control: Thermal, rule: Rule, *, model: Model) -> jax.Array:
    """The free entropy of the module, nats per weight: a pure function of scalars, stationary in `order`."""
    return entropic(order, rule) + control.alpha * _energetic(order.q, control, rule, model)


def _energetic(q: jax.Array, control: Thermal, rule: Rule, model: Model) -> jax.Array:
    fields, width, weight = _fields(q, control.loss, rule, model)
    return jnp.sum(weight * log_partition(fields, width, control.loss, rule))


def _fields(q: jax.Array, loss: CrossEntropy, rule: Rule, model: Model) -> tuple[jax.Array, jax.Array, jax.Array]:
    Q = model.kernel(q)
    root, width = jnp.sqrt(Q), jnp.sqrt(1 - Q)
    z, weight = gaussian_panels(rule, [(loss.wall()[0] / root, width / root)])
    return root * z, width, weight


def log_partition(field: jax.Array, width: jax.Array, loss: CrossEntropy, rule: Rule, below: Any = None) -> jax.Array:
    """log Z(om, s) for an array of fields; with `below`, the part of the integral where the stability is below that."""
    centre = _most_likely(field, width, loss)
    steep = [(centre, jnp.full_like(centre, 0.25))]
    if below is not None:
        steep.append(((below - field) / width, jnp.full_like(centre, 0.25)))

    def exponent(u: jax.Array) -> jax.Array:
        stability = field[..., None] + width * u
        value = loss.log_weight(stability)
        return value if below is None else jnp.where(stability < below, value, -jnp.inf)

    return log_gaussian_average(exponent, rule, centre, steep)


def _most_likely(field: jax.Array, width: jax.Array, loss: CrossEntropy) -> jax.Array:
    """The u at which -beta f_gamma(om + s u) - u^2 / 2 is largest, in (0, s beta); its slope falls, so by bisection."""

    def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        rising = width * loss.beta * jax.nn.sigmoid(-2 * loss.gamma * (field + width * middle)) > middle
        return jnp.where(rising, middle, low), jnp.where(rising, high, middle)

    low = jnp.zeros_like(field)
    field, width, loss = jax.lax.stop_gradient((field, width, loss))
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, low + width * loss.beta))
    return (low + high) / 2


def tabulated_log_partition(width: jax.Array, loss: CrossEntropy, rule: Rule) -> Any:
    """log Z(., s) for a fixed s as a function of many fields: Chebyshev interpolation on panels.

    Panels are graded like the distance to the nearest singularity of f_gamma, i pi / (2 gamma); their degree, twelve
    with eight points of the rule, grows with the rule, so that doubling its order also certifies the table. Fields are
    cut at +-12, where a normal variable is not.
    """
    degree = len(rule.nodes) + 4
    angles = (np.arange(degree) + 0.5) * (math.pi / degree)
    transform = np.cos(np.outer(np.arange(degree), angles)) * np.where(np.arange(degree) == 0, 1, 2)[:, None] / degree
    reach = jnp.arcsinh(loss.gamma * _FARTHEST)
    middles = (np.arange(_PANELS) + 0.5) * (2 / _PANELS) - 1
    nodes = jnp.sinh(reach * jnp.asarray(middles[:, None] + np.cos(angles) / _PANELS, width.dtype)) / loss.gamma
    table = log_partition(nodes.reshape(-1), width, loss, rule).reshape(nodes.shape)
    coefficients = jnp.asarray(transform, width.dtype) @ table.T

    def evaluate(field: jax.Array) -> jax.Array:
        place = jnp.arcsinh(loss.gamma * jnp.clip(field, -_FARTHEST, _FARTHEST)) / reach  # in [-1, 1]
        panel = jnp.clip(jnp.floor((place + 1) * (_PANELS / 2)), 0, _PANELS - 1)
        local = (place + 1) * _PANELS - 2 * panel - 1
        c = coefficients[:, panel.astype(jnp.int32)]
        step = lambda b, c: ((c + 2 * local * b[0] - b[1], b[0]), None)  # noqa: E731
        zero = jnp.zeros_like(local)
        (b1, b2), _ = jax.lax.scan(step, (zero, zero), c[1:], reverse=True)  # Clenshaw's recurrence
        return c[0] + local * b1 - b2

    return evaluate


@functools.partial(jax.jit, static_argnames="model")
def _follow(model: Model, start: jax.Array, controls: Thermal, abscissae: jax.Array) -> tuple:
    rule, finer = legendre(ORDER), legendre(2 * ORDER)
    phi = functools.partial(gibbs_phi, model=model)
    coordinates = volume_coordinates(model, lambda q, control: _energetic(q, control, rule, model))
    active = ("qh",) if model.weights == "binary" else ("q",)
    curve = follow(phi, coordinates, start, controls, abscissae, rule, finer, active=active)

    def observe(point: tuple) -> tuple[jax.Array, jax.Array]:
        order, control = point
        loss = control.loss
        energy = -jax.grad(lambda b: _energetic(order.q, control._replace(loss=loss._replace(beta=b)), finer, model))(
            loss.beta
        )
        fields, width, weight = _fields(order.q, loss, finer, model)
        log_wrong = log_partition(fields, width, loss, finer, below=0.0) - log_partition(fields, width, loss, finer)
        return energy, jnp.sum(weight * jnp.exp(log_wrong))

    return curve, *jax.lax.map(observe, (curve.order, controls))


def gibbs(model: Model, alpha: float | np.ndarray, loss: CrossEntropy) -> GibbsResult:
    """Entropy, energy and error rate of weights drawn with probability prop. to exp(-beta sum f_gamma(Delta)).

    Args:
      model: a perceptron, or a committee with infinitely many hidden units.
      alpha: patterns per weight, positive, a number or an array of any shape.
      loss: `CrossEntropy(gamma, beta)`, both positive and finite.

    Returns:
      A `GibbsResult` with the shape of `alpha`, NumPy float64.

    Raises:
      ValueError: if an argument is out of range, or the field of the device not Gaussian.

    Accuracy: `certificate.error`, about 1e-9. Where beta is so large that the entropy of binary weights is negative
    (the measure freezes at smaller beta) the status is UNPHYSICAL and the values are the analytic continuation.

    Cost: as `entropy`, with a second integral: a second or two after compilation.

    References: see the module.

    Example: at a large beta few errors are left.

    >>> from jflat.replica import CrossEntropy, binary_perceptron, gibbs
    >>> result = gibbs(binary_perceptron(), 0.4, CrossEntropy(gamma=2.0, beta=40.0))
    >>> float(result.entropy.round(3)), float(result.error_rate.round(5))
    (0.246, 0.00034)
    """
    alpha = np.asarray(alpha, np.float64)
    is_right = bool(np.all(np.isfinite(alpha) & (alpha > 0)))
    check.require(is_right, "gibbs", "alpha", "must be positive and finite", alpha)
    check.require(model.is_gaussian, "gibbs", "model", "must have a Gaussian output field", model)
    require_loss("gibbs", "loss", loss)

    def along(path: np.ndarray) -> Any:
        controls = Thermal(path, CrossEntropy(*(np.full_like(path, x) for x in loss)))
        start = np.sqrt(path[:1])
        run = lambda controls, abscissae, start: _follow(model, start, controls, abscissae)  # noqa: E731
        return in_chunks(run, controls, np.log(path), start, _CHUNK)

    curve, energy, error_rate = along_alpha(along, alpha)
    entropy = curve.value + alpha * loss.beta * energy
    frozen = (curve.status == Status.CONVERGED) & (entropy < 0) & (model.weights == "binary")
    status = np.where(frozen, Status.UNPHYSICAL, curve.status).astype(np.int32)
    return GibbsResult(curve.value, entropy, energy, error_rate, curve.order, curve.certificate, status)


def require_loss(where: str, argument: str, loss: CrossEntropy) -> None:
    """Refuse a loss without positive finite numbers gamma and beta."""
    check.require(isinstance(loss, CrossEntropy), where, argument, "must be a CrossEntropy", loss)
    for name, number in loss._asdict().items():
        check.require_number(where, f"{argument}.{name}", number, 0.0, exclusive=True)

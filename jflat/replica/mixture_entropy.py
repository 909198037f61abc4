r"""Local entropy around an estimator for two Gaussian clouds, in the landscape of the number of errors.

The data are those of `mixture`, the reference w~ is its ridge estimator, or the pointwise one w~ ~ sum_mu sigma xi,
which with the right bias is Bayes optimal (`bayes_error`). Weights w of norm |w|^2 = N with a given bias b, at overlap
w . w~ / (|w~| sqrt(N)) = t, that is distance d = (1 - t) / 2, are drawn with probability proportional to
exp(-beta number of training errors). Their free entropy, relative to the sphere, per weight and replica symmetric, is

    phi(t) = extr_{q, m, r}  [log(1 - q) + (q - m^2 - c) / (1 - q)] / 2 + alpha E log[e^-beta + (1 - e^-beta) H(x)]
    c = 2 r (t - m m~) - r^2 (1 - m~^2)
    x = -(m + sigma b + sqrt(Delta) A) / sqrt(Delta (1 - q))
    A = t z + r (t*(om) - om) / sqrt(Delta q~) + sqrt(q - t^2) y

with q the overlap of two such w, m = w . v / N, r the response of w to a change of w~, m~ the overlap of w~ / |w~| with
v, z and y standard normal, om = m~ sqrt(q~) + sigma b~ + sqrt(Delta q~) z the cavity field of the estimator and t* its
proximal map: the estimator has seen the pattern, and w follows it. The training error of these weights is
e = -(d phi / d beta) / alpha and their entropy phi + alpha beta e.

As d -> 0 phi is that of the sphere less alpha beta times the training error of the estimator itself, which grows with
the ridge. Flatness is what happens next, so compare increments, the entropy that is lost with the distance,

    loss(d) = log(1 - t^2) / 2 - phi(t) - alpha beta e~,      e~ the training error of the estimator at bias b

The maximum of phi over t is the free entropy of the whole landscape. For beta -> 0 phi is the sphere's less alpha beta
times the local energy of `mixture`.

Reference: C. Baldassi, E. Malatesta, M. Negri, R. Zecchina, 2010.14761 (there with a squared loss and a norm in place
of the ridge).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check
from jflat.core.special import log_H
from jflat.replica.entropy import path_through
from jflat.replica.mixture import LOSSES, Clouds, MixtureOrder, kinks, mixture, proximal, proximal_inverse
from jflat.replica.quadrature import Rule, gaussian_panels, legendre
from jflat.replica.saddle import Certificate, both_ways, follow, in_chunks

__all__ = [
    "EstimatorNeighbourhood",
    "MixtureEntropyResult",
    "MixtureLocalOrder",
    "mixture_local_entropy",
    "mixture_local_phi",
]

ORDER = 8
_CHUNK = 24
_FIRST = 0.002
_RATIO = 1.3


class EstimatorNeighbourhood(NamedTuple):
    """The control parameters of a neighbourhood of an estimator."""

    clouds: Clouds
    estimator: MixtureOrder
    """Order parameters of the reference, of `mixture`."""
    t: Any
    """Overlap with the reference, 1 - 2 d."""
    beta: Any
    """Inverse temperature of an error."""
    bias: Any
    """b, of the weights that are counted, at |w|^2 = N."""


class MixtureLocalOrder(NamedTuple):
    """Order parameters of the weights near an estimator."""

    q: Any
    """Overlap of two of them."""
    m: Any
    """Overlap with the centre of the clouds."""
    r: Any
    """Response to a change of the estimator."""


class MixtureEntropyResult(NamedTuple):
    """A local entropy curve around an estimator; each array has the shape of `distances`."""

    value: np.ndarray
    """phi(d), nats per weight relative to the sphere; NaN where the status is UNPHYSICAL."""
    slope: np.ndarray
    """d phi / d d."""
    training_error: np.ndarray
    """e, the mean training error of the weights drawn."""
    entropy: np.ndarray
    """phi + alpha beta e: the logarithm of the volume of weights with training error e."""
    loss: np.ndarray
    """Of entropy against the sphere and the errors of the reference itself: the measure of flatness, small if flat."""
    reference_error: np.ndarray
    """(): e~, the training error of the estimator with bias b."""
    bias: np.ndarray
    """(): b."""
    order: MixtureLocalOrder
    certificate: Certificate
    status: np.ndarray
    """int32: CONVERGED, UNPHYSICAL (distance outside (0, 1)), MAX_STEPS or NON_FINITE."""


def mixture_local_phi(
    order: MixtureLocalOrder, control: EstimatorNeighbourhood, rule: Rule, *, estimator: str
) -> jax.Array:
    """The free entropy of the module, nats per weight: a pure function of scalars, stationary in `order`."""
    q, m, r = order
    reference, t = control.estimator.m / jnp.sqrt(control.estimator.q), control.t
    c = 2 * r * (t - m * reference) - r**2 * (1 - reference**2)
    volume = (jnp.log1p(-q) + (q - m**2 - c) / (1 - q)) / 2
    return volume + control.clouds.alpha * _energetic(order, control, rule, estimator)


def _energetic(order: MixtureLocalOrder, control: EstimatorNeighbourhood, rule: Rule, estimator: str) -> jax.Array:
    (q, m, r), t, delta = order, control.t, control.clouds.delta
    spread, width, scale = jnp.sqrt(q - t**2), jnp.sqrt(1 - q), jnp.sqrt(delta)
    total = jnp.zeros_like(q)
    for sigma, share in ((1.0, control.clouds.rho), (-1.0, 1 - control.clouds.rho)):
        z, displacement, weight_z = _reference_fields(control, rule, estimator, sigma)
        mean = (m + sigma * control.bias) / scale + t * z + r * displacement
        y, weight_y = gaussian_panels(rule, [(-mean / spread, width / spread)])
        log_right = log_H(-(mean[:, None] + spread * y) / width)
        log_weight = jnp.logaddexp(-control.beta, jnp.log(-jnp.expm1(-control.beta)) + log_right)
        total += share * jnp.sum(weight_z[:, None] * weight_y * log_weight)
    return total


def _reference_fields(control: EstimatorNeighbourhood, rule: Rule, estimator: str, sigma: float) -> tuple:
    """Nodes z, the displacement (t* - om) / sqrt(Delta q~) of the estimator's field by the pattern, weights."""
    delta, (m, q, chi, b) = control.clouds.delta, control.estimator
    v, spread, mean = delta * chi, jnp.sqrt(delta * q), m + sigma * b
    zero = proximal_inverse(sigma * (b - jnp.sqrt(q) * control.bias), v, estimator)  # where the margin with b is zero
    steep = [((place - mean) / spread, 1 / spread) for place in kinks(v, estimator)]
    steep.append(((zero - mean) / spread, (1 + v) * jnp.sqrt(1 - control.t**2)))
    z, weight = gaussian_panels(rule, steep)
    field = mean + spread * z
    return z, (proximal(field, v, estimator)[0] - field) / spread, weight


def _reference_error(control: EstimatorNeighbourhood, rule: Rule, estimator: str) -> jax.Array:
    """Training error of the estimator itself, its bias replaced by b: P(m~ + sigma b + sqrt(Delta)(z + shift) < 0)."""
    total = jnp.zeros_like(control.t)
    reference = control.estimator.m / jnp.sqrt(control.estimator.q)
    for sigma, share in ((1.0, control.clouds.rho), (-1.0, 1 - control.clouds.rho)):
        z, displacement, weight = _reference_fields(control, rule, estimator, sigma)
        margin = reference + sigma * control.bias + jnp.sqrt(control.clouds.delta) * (z + displacement)
        total += share * jnp.sum(jnp.where(margin < 0, weight, 0))
    return total


def _from_coordinates(u: jax.Array, control: EstimatorNeighbourhood) -> MixtureLocalOrder:
    """u = (x, m, r), q = t^2 + (1 - t^2) x^2 / (1 + x^2)."""
    return MixtureLocalOrder(1 - (1 - control.t**2) / (1 + u[0] ** 2), u[1], u[2])


@functools.partial(jax.jit, static_argnames="estimator")
def _follow(estimator: str, controls: EstimatorNeighbourhood, abscissae: jax.Array, start: jax.Array) -> tuple:
    rule, finer = legendre(ORDER), legendre(2 * ORDER)
    phi = functools.partial(mixture_local_phi, estimator=estimator)
    curve = follow(phi, _from_coordinates, start, controls, abscissae, rule, finer, active=("q", "m", "r"))

    def observe(point: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
        order, control = point
        slopes = jax.grad(phi, argnums=1)(order, control, finer)
        return -2 * slopes.t, -slopes.beta / control.clouds.alpha, _reference_error(control, finer, estimator)

    return curve, *jax.lax.map(observe, (curve.order, controls))


def mixture_local_entropy(
    estimator: str,
    alpha: float,
    delta: float,
    rho: float,
    ridge: float,
    distances: np.ndarray,
    *,
    beta: float,
    bias: float | None = None,
) -> MixtureEntropyResult:
    """The local entropy of the number of training errors around an estimator: phi(d) of the module.

    Args:
      estimator: "squared", "logistic", "hinge" (of `mixture`) or "pointwise" (w~ ~ sum sigma xi).
      alpha: samples per weight, positive.
      delta: variance of a cloud, positive.
      rho: fraction of the cloud with label +1, in (0, 1).
      ridge: lambda of the estimator, positive; `math.inf` for "pointwise".
      distances: (n,) distances d = (1 - overlap) / 2 from the estimator, in (0, 1).
      beta: inverse temperature of an error, positive.
      bias: b of the weights that are counted, for |w|^2 = N; by default that of the estimator, for "pointwise" the
        Bayes-optimal one.

    Returns:
      A `MixtureEntropyResult`, NumPy float64, in the order of `distances`. A distance outside (0, 1) is UNPHYSICAL.

    Raises:
      ValueError: if an argument is out of range.

    Accuracy: `certificate.error`, about 1e-8. Replica symmetric: counting errors is not convex, and at large beta and
      small d replica symmetry may be broken.

    Cost: the curve is followed from d = 0.002, 3 unknowns; some seconds, of which compilation is most.

    References: see the module.

    Example: at a small beta nothing is lost but the sphere's own entropy.

    >>> import math
    >>> import numpy as np
    >>> from jflat.replica import mixture_local_entropy
    >>> around = mixture_local_entropy("pointwise", 2.0, 1.0, 0.5, math.inf, np.array([0.1]), beta=1e-4)
    >>> float(around.value[0].round(3)), round(math.log(1 - 0.8**2) / 2, 3)
    (-0.511, -0.511)
    """
    where = "mixture_local_entropy"
    check.require_choice(where, "estimator", estimator, (*LOSSES, "pointwise"))
    for name, number in {"alpha": alpha, "delta": delta, "beta": beta}.items():
        check.require_number(where, name, number, 0.0, exclusive=True)
    check.require_number(where, "rho", rho, 0.0, 1.0, exclusive=True)
    distances = np.asarray(distances, np.float64)
    is_list = distances.ndim == 1 and distances.size > 0 and bool(np.isfinite(distances).all())
    check.require(is_list, where, "distances", "must be finite, of shape (n,)", distances)
    if estimator == "pointwise":
        check.require(ridge == math.inf, where, "ridge", "must be infinite for 'pointwise'", ridge)
        m, q = alpha, alpha**2 + alpha * delta
        order = MixtureOrder(m, q, 1.0, delta * q / (2 * m) * math.log(rho / (1 - rho)))
        reached = Status.CONVERGED
    else:
        check.require_number(where, "ridge", ridge, 0.0, exclusive=True)
        trained = mixture(estimator, alpha, delta, rho, ridge)
        order, reached = MixtureOrder(*map(float, trained.order)), Status(int(trained.status))
    if bias is None:
        bias = order.b / math.sqrt(order.q)
    check.require_number(where, "bias", bias)
    inside = (distances > 0) & (distances < 1)
    wanted = np.unique(distances[inside]) if inside.any() else np.asarray([0.1])
    path = path_through(wanted / (1 - wanted), _FIRST, _RATIO)
    path = path / (1 + path)
    control = EstimatorNeighbourhood(Clouds(alpha, delta, rho, ridge), order, 0.0, beta, bias)

    def run(path: np.ndarray, start: np.ndarray, direction: int) -> Any:
        controls = jax.tree.map(lambda x: np.full(path.shape, x, np.float64), control)._replace(t=1 - 2 * path)
        compiled = lambda controls, abscissae, start: _follow(estimator, controls, abscissae, start)  # noqa: E731
        return in_chunks(compiled, controls, direction * np.log(path / (1 - path)), start, _CHUNK)

    first = 1 - 2 * path[0]
    with jax.enable_x64(True):
        curve, slope, error, reference_error = both_ways(
            run, path, np.asarray([0.3, first * order.m / math.sqrt(order.q), first])
        )
    reference_error = np.asarray(reference_error[0])
    chosen = np.argmin(np.abs(path - np.where(inside, distances, wanted[0])[:, None]), axis=1)
    curve, slope, error = jax.tree.map(lambda x: x[chosen], (curve, slope, error))
    status = np.where(curve.status == Status.CONVERGED, reached, curve.status)
    status = np.where(inside, status, Status.UNPHYSICAL).astype(np.int32)
    value, slope, error = (np.where(inside, x, np.nan) for x in (curve.value, slope, error))
    sphere = np.log1p(-((1 - 2 * np.where(inside, distances, 0.5)) ** 2)) / 2
    return MixtureEntropyResult(
        value,
        slope,
        error,
        value + alpha * beta * error,
        sphere - value - alpha * beta * reference_error,
        reference_error,
        np.asarray(bias, np.float64),
        curve.order,
        curve.certificate,
        status,
    )

r"""Dense regions seen by a finite number y of replicas, with and without a centre.

y solutions with overlap q1 between any two (`large_deviation` takes y -> infinity too) have the free entropy, per
weight and replica,

    phi(q1) = extr  -qh1 (1 - q1) / 2 - (y / 2) (qh1 q1 - qh0 q0) + G_S + alpha G_E
    G_S = (1 / y) \int Dz0 log \int Dz1 [2cosh(sqrt(qh0) z0 + sqrt(qh1 - qh0) z1)]^y                (binary weights)
    G_E = (1 / y) \int Dz0 log \int Dz1 H^y((kappa - sqrt(Q0) z0 - sqrt(Q1 - Q0) z1) / sqrt(1 - Q1))

with Q the kernel of the device; for spherical weights the entropic terms together are
[log(1 - q1) + log(1 + y (q1 - q0) / (1 - q1)) / y + q0 / (1 - q1 + y (q1 - q0))] / 2. In the robust ensemble q1 is free
(stationary too) and the replicas are coupled by gamma sum_a w~ . w^a to a binary centre w~, summed over:

    G_S = (1 / y) \int Dz0 log sum_w~ \int Dz1 [2cosh(sqrt(qh0) z0 + sqrt(qh1 - qh0) z1 + gamma w~)]^y,

S = d phi / d gamma is the overlap of a replica with the centre. The number of y-tuples divides into regions and
solutions of one region:

    internal entropy  S_int = d (y phi) / d y - gamma S        external entropy  S_ext = -y^2 d phi / d y

S_ext is the logarithm of the number of regions (of centres) and has to be positive. The state q1 = q0, in which the
replicas do not see each other, is stationary too but describes typical solutions: S_int is then that of all solutions.

Both inner integrals have their mass at z1 of order sqrt(y); they are shifted there (`quadrature.log_gaussian_average`),
so that no grid has to reach so far, for any y.

References: C. Baldassi et al., Phys. Rev. Lett. 115, 128101 (2015); PNAS 113, E7655 (2016), 1605.06444.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check
from jflat.core.special import gaussian_hazard, log_2cosh, log_H
from jflat.replica.entropy import entropy
from jflat.replica.models import Model
from jflat.replica.quadrature import Rule, gaussian_panels, legendre, log_gaussian_average
from jflat.replica.saddle import Certificate, Curve, follow, in_chunks

__all__ = [
    "CentredOrder",
    "CentredReplicas",
    "FixedReplicas",
    "ReplicaOrder",
    "RobustEnsembleResult",
    "SphericalReplicaOrder",
    "fixed_overlap_curve",
    "robust_ensemble",
    "robust_ensemble_phi",
]

ORDER = 8
_CHUNK = 16
_NEWTON = 12
_NOTHING = 1e5  # exp(-1e5) is zero, but its logarithm has derivatives


class FixedReplicas(NamedTuple):
    """The control parameters of y replicas with fixed overlap."""

    alpha: Any
    """Patterns per weight."""
    margin: Any
    """kappa of the solutions."""
    num_replicas: Any
    """y, a real number, at least 1."""
    q1: Any
    """Overlap of two of the replicas."""


class CentredReplicas(NamedTuple):
    """The control parameters of y replicas around a centre."""

    alpha: Any
    margin: Any
    num_replicas: Any
    """y."""
    coupling: Any
    """gamma, positive."""


class ReplicaOrder(NamedTuple):
    """Order parameters at fixed q1, binary weights."""

    q0: Any
    """Overlap of replicas of different regions, below q1."""
    qh0: Any
    qh1: Any
    """Conjugates."""


class SphericalReplicaOrder(NamedTuple):
    """Order parameter at fixed q1, spherical weights."""

    q0: Any


class CentredOrder(NamedTuple):
    """Order parameters of the robust ensemble."""

    q0: Any
    """Overlap of replicas of different regions."""
    q1: Any
    """Overlap of replicas of one region."""
    qh0: Any
    qh1: Any


class RobustEnsembleResult(NamedTuple):
    """The robust ensemble; each array has the shape of `couplings`."""

    value: np.ndarray
    """S_int, the local entropy at `distance` from a centre, nats per weight; NaN where the status is UNPHYSICAL."""
    external_entropy: np.ndarray
    """S_ext, nats per weight: of the centres."""
    distance: np.ndarray
    """Hamming distance of a replica from the centre, (1 - S) / 2."""
    order: CentredOrder
    certificate: Certificate
    """Of phi, which is S_int + S_ext / y + gamma S."""
    status: np.ndarray
    """int32: CONVERGED, UNPHYSICAL (S_ext < 0, S_int above the entropy of all solutions, above capacity), ..."""


def robust_ensemble_phi(
    order: ReplicaOrder | SphericalReplicaOrder | CentredOrder,
    control: FixedReplicas | CentredReplicas,
    rule: Rule,
    *,
    model: Model,
) -> jax.Array:
    """The free entropy of the module, nats per weight and replica: pure, of scalars, stationary in `order`."""
    y, q0 = control.num_replicas, order.q0
    q1 = control.q1 if isinstance(control, FixedReplicas) else order.q1  # type: ignore[union-attr]
    energetic = control.alpha * _energetic(q0, q1, control, rule, model)
    if isinstance(order, SphericalReplicaOrder):
        wide = 1 - q1 + y * (q1 - q0)
        return (jnp.log1p(-q1) + jnp.log(wide / (1 - q1)) / y + q0 / wide) / 2 + energetic
    linear = order.qh1 * (1 - q1) + y * (order.qh1 * q1 - order.qh0 * q0)
    return _entropic(order, control, rule) - linear / 2 + energetic


def _entropic(order: ReplicaOrder | CentredOrder, control: FixedReplicas | CentredReplicas, rule: Rule) -> jax.Array:
    y, root, spread = control.num_replicas, jnp.sqrt(order.qh0), jnp.sqrt(order.qh1 - order.qh0)
    z0, weight = gaussian_panels(rule, [(jnp.zeros_like(root), 2 / (y * root))], positive=True)  # about y |root z0|

    def log_integral(field: jax.Array) -> jax.Array:
        """Over z1, in two halves h > 0 and h < 0: each is a Gaussian around +-y spread times something bounded."""
        zero = -field / spread

        def half(sign: int) -> jax.Array:
            def exponent(z: jax.Array) -> jax.Array:
                h = field[:, None] + spread * z
                return y * log_2cosh(h) - jnp.where(sign * h > 0, 0.0, _NOTHING)

            centre = jnp.broadcast_to(sign * y * spread, field.shape)
            return log_gaussian_average(exponent, rule, centre, [(zero, jnp.full_like(zero, 0.5))])

        return jnp.logaddexp(half(1), half(-1))

    if isinstance(control, FixedReplicas):
        total = log_integral(root * z0)
    else:
        g = control.coupling
        total = jnp.logaddexp(log_integral(root * z0 + g), log_integral(root * z0 - g))
    return 2 * jnp.sum(weight * total) / y


def _energetic(q0: jax.Array, q1: jax.Array, control: Any, rule: Rule, model: Model) -> jax.Array:
    Q0, Q1, y, k = model.kernel(q0), model.kernel(q1), control.num_replicas, control.margin
    root, spread, width = jnp.sqrt(Q0), jnp.sqrt(Q1 - Q0), jnp.sqrt(1 - Q1)
    z0, weight = gaussian_panels(rule, [(k / root, width / root)])
    field = root * z0

    def newton(z: jax.Array) -> tuple[jax.Array, jax.Array]:  # rises and is concave: from the left, monotone
        b = (k - field - spread * z) / width
        hazard = gaussian_hazard(b)
        curvature = 1 + y * hazard * (hazard - b) * (spread / width) ** 2
        return z - (z - y * spread / width * hazard) / curvature, curvature

    likely = jax.lax.fori_loop(
        0, _NEWTON, lambda _, z: jax.lax.stop_gradient(newton(z)[0]), jnp.zeros_like(jax.lax.stop_gradient(field))
    )
    steep = [(likely, 1 / jnp.sqrt(newton(likely)[1])), ((k - field) / spread, jnp.full_like(field, width / spread))]

    def exponent(z: jax.Array) -> jax.Array:
        return y * log_H((k - field[:, None] - spread * z) / width)

    return jnp.sum(weight * log_gaussian_average(exponent, rule, likely, steep)) / y


def _fixed_coordinates(model: Model, rule: Rule) -> Any:
    """u = (logit of q0 / q1, log(qh1 - qh0)); qh0 from d phi / d q0 = 0."""

    def from_coordinates(u: jax.Array, control: FixedReplicas) -> ReplicaOrder | SphericalReplicaOrder:
        q0 = control.q1 * jax.nn.sigmoid(u[0])
        if model.weights == "spherical":
            return SphericalReplicaOrder(q0)
        slope = jax.grad(_energetic)(q0, control.q1, control, rule, model)
        qh0 = jnp.maximum(-2 * control.alpha * slope / control.num_replicas, 1e-30)
        return ReplicaOrder(q0, qh0, qh0 + jnp.exp(u[1]))

    return from_coordinates


def _centred_coordinates(model: Model, rule: Rule) -> Any:
    """u = logits of q0 / q1 and q1; the conjugates from d phi / d (q0, q1) = 0."""

    def from_coordinates(u: jax.Array, control: CentredReplicas) -> CentredOrder:
        q1 = jax.nn.sigmoid(u[1])
        q0 = q1 * jax.nn.sigmoid(u[0])
        y = control.num_replicas
        by_q0, by_q1 = jax.grad(_energetic, argnums=(0, 1))(q0, q1, control, rule, model)
        qh0 = jnp.maximum(-2 * control.alpha * by_q0 / y, 1e-30)
        qh1 = 2 * control.alpha * by_q1 / (y - 1)
        return CentredOrder(q0, q1, qh0, jnp.maximum(qh1, qh0 * (1 + 1e-12)))

    return from_coordinates


@functools.partial(jax.jit, static_argnames="model")
def _follow(model: Model, controls: FixedReplicas | CentredReplicas, abscissae: jax.Array, start: jax.Array) -> tuple:
    """The curve, and d phi by y and by the last control: q1 or gamma."""
    rule, finer = legendre(ORDER), legendre(2 * ORDER)
    phi = functools.partial(robust_ensemble_phi, model=model)
    fixed = isinstance(controls, FixedReplicas)
    coordinates = (_fixed_coordinates if fixed else _centred_coordinates)(model, rule)
    active = ("q0",) if model.weights == "spherical" else ("qh0", "qh1")
    curve = follow(phi, coordinates, start, controls, abscissae, rule, finer, active=active)

    def observe(point: tuple) -> tuple[jax.Array, jax.Array]:
        order, control = point
        slopes = jax.grad(phi, argnums=1)(order, control, finer)  # y^2 multiplies the error of d phi / d y
        return slopes[2], slopes[3]

    return curve, *jax.lax.map(observe, (curve.order, controls))


def _path(first: float, last: float, step: float) -> np.ndarray:
    """From first to last, without the first."""
    count = max(1, int(np.ceil(abs(last - first) / step)))
    return first + (last - first) * np.arange(1, count + 1) / count


def fixed_overlap_curve(
    model: Model, alpha: float, margin: float, num_replicas: float, path: np.ndarray
) -> tuple[Curve, np.ndarray, np.ndarray]:
    """Along an ascending path of overlaps, whose first is reached from y = 2; the curve, d phi / d y, d phi / d q1."""
    ramp = np.exp(_path(np.log(2.0), np.log(num_replicas), 0.3))
    y = np.concatenate([[2.0], ramp, np.full(len(path) - 1, num_replicas)])
    q1 = np.concatenate([np.full(len(ramp) + 1, path[0]), path[1:]])
    q0 = float(np.clip(np.asarray(entropy(model, alpha, margin=margin).order.q), 0.01, 0.95 * path[0]))
    start = np.asarray([np.log(q0 / (path[0] - q0)), -0.7][: 1 if model.weights == "spherical" else 2])
    with jax.enable_x64(True):
        controls = FixedReplicas(np.full_like(y, alpha), np.full_like(y, margin), y, q1)
        run = lambda controls, abscissae, start: _follow(model, controls, abscissae, start)  # noqa: E731
        curve, by_y, by_q1 = in_chunks(run, controls, np.abs(np.log(y / 2)) - np.log(1 - q1), start, _CHUNK)
    return jax.tree.map(lambda x: x[len(ramp) :], (curve, by_y, by_q1))


def robust_ensemble(
    model: Model, alpha: float, couplings: np.ndarray, *, num_replicas: float, margin: float = 0.0
) -> RobustEnsembleResult:
    """Local entropy around the centres that y coupled replicas choose: the robust ensemble of the module.

    Args:
      model: binary weights, a perceptron or a committee with infinitely many hidden units.
      alpha: patterns per weight, positive.
      couplings: (n,) gamma of replicas to the centre, in [0.1, 5].
      num_replicas: y, a number in [2, 1000].
      margin: kappa of the solutions.

    Returns:
      A `RobustEnsembleResult`, NumPy float64, in the order of `couplings`.

    Raises:
      ValueError: if an argument is out of range, the weights are spherical, or the field not Gaussian.

    Accuracy: `certificate.error`, that of phi, about 1e-9; the entropies, its derivatives, have about the same.

    Cost: the branch is followed from gamma = 0.5, y = 2: 20 to 40 points of 2 unknowns, a few seconds.

    References: see the module. The values at y of order 10 are what focusing belief propagation approximates
    (`jflat.messages.focusing`), to about 0.02.

    >>> import numpy as np
    >>> from jflat.replica import binary_perceptron, robust_ensemble
    >>> result = robust_ensemble(binary_perceptron(), 0.4, np.array([0.5]), num_replicas=5)
    >>> result.distance.round(4), result.value.round(4), result.external_entropy.round(4)
    (array([0.1719]), array([0.3198]), array([0.4149]))
    """
    where = "robust_ensemble"
    is_right = model.weights == "binary" and model.is_gaussian
    check.require(is_right, where, "model", "must have binary weights and a Gaussian output field", model)
    check.require_number(where, "alpha", alpha, 0.0, exclusive=True)
    check.require_number(where, "margin", margin)
    check.require_number(where, "num_replicas", num_replicas, 2.0, 1000.0)
    couplings = np.asarray(couplings, np.float64)
    is_list = couplings.ndim == 1 and couplings.size > 0 and bool(np.all((couplings >= 0.1) & (couplings <= 5.0)))
    check.require(is_list, where, "couplings", "must lie in [0.1, 5], of shape (n,)", couplings)
    everything = entropy(model, alpha, margin=margin)
    wanted = np.unique(np.append(couplings, 0.5))
    rising, falling = wanted[wanted >= 0.5], wanted[wanted <= 0.5][::-1]
    q = float(np.clip(np.asarray(everything.order.q), 0.01, 0.9))
    points: dict[float, Any] = {}
    for side in (rising, falling):
        g = np.concatenate([[0.5], *(_path(a, b, 0.1) for a, b in itertools.pairwise(side))])
        ramp = np.exp(_path(np.log(2.0), np.log(num_replicas), 0.25))
        y = np.concatenate([[2.0], ramp, np.full(len(g) - 1, num_replicas)])
        g = np.concatenate([np.full(len(ramp) + 1, 0.5), g[1:]])
        start = np.asarray([1.5, np.log(q / (1 - q)) + 0.6])
        with jax.enable_x64(True):
            controls = CentredReplicas(np.full_like(y, alpha), np.full_like(y, margin), y, g)
            run = lambda controls, abscissae, start: _follow(model, controls, abscissae, start)  # noqa: E731
            found = in_chunks(run, controls, np.log(y) + np.abs(g - 0.5), start, _CHUNK)
        for value in side:
            index = int(np.argmin(np.abs(g - value) + np.abs(y - num_replicas)))
            points[float(value)] = jax.tree.map(lambda x, index=index: x[index], found)
    curve, by_y, overlap = jax.tree.map(lambda *x: np.stack(x), *(points[float(g)] for g in couplings))
    internal = curve.value + num_replicas * by_y - couplings * overlap
    external = -(num_replicas**2) * by_y
    impossible = (internal > everything.value + 1e-6) | (everything.status == Status.UNPHYSICAL) | (external < 0)
    status = np.where(impossible, Status.UNPHYSICAL, curve.status).astype(np.int32)
    internal, distance = (np.where(impossible, np.nan, x) for x in (internal, (1 - overlap) / 2))
    return RobustEnsembleResult(internal, external, distance, curve.order, curve.certificate, status)

r"""The densest regions of solutions: local entropy of y replicas, above all in the limit of many, y -> infinity.

y solutions are drawn with overlap q1 between any two (the large deviation measure, formally one step of replica
symmetry breaking with parameter y). For y -> infinity with q1 - q0 = dq / y and qh1 - qh0 = dqh / y their free entropy
per weight and per replica, the entropy of solutions in the widest flat region of that size, is

    phi(q1) = extr_{qh0, dqh, dq}  -qh0 (1 - q1) / 2 - (dqh q1 + qh0 dq) / 2 + G_S + alpha G_E
    G_S = \int Dz max_h  [ -(h - sqrt(qh0) z)^2 / (2 dqh) + log 2cosh h ]                              (binary weights)
    G_E = \int Dz max_A  [ -(A - sqrt(Q1) z)^2 / (2 dQ) + log H((kappa - A) / sqrt(1 - Q1)) ]

with Q1 = Q(q1), dQ = Q'(q1) dq, and Q the kernel of the device. For spherical weights the entropic terms together are
log(1 - q1) / 2 + q1 / (2 (1 - q1 + dq)).

The maxima are found by Newton's method from a side where it converges monotonically (log H and, on z > 0, -log 2cosh
after the shift are concave), and differentiated through one more Newton step, which makes first and second derivatives
of phi exact. The region breaks up where phi ceases to fall with q1: where d phi / d q1 = 0 first happens as alpha
grows, wide flat minima vanish (`wide_minima_threshold`).

The distance of a replica from the barycentre's sign is d = (1 - E |tanh h|) / 2. The free entropy at finite y, and the
same with an explicit centre, are in `robust_ensemble`; it tends to phi(q1) like 1 / y.

References: C. Baldassi et al., Phys. Rev. Lett. 115, 128101 (2015), 1511.05634; 1907.07578; 1605.06444.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check
from jflat.core.special import gaussian_hazard, log_2cosh, log_H
from jflat.replica.entropy import CapacityResult, capacity, entropy
from jflat.replica.models import Model
from jflat.replica.quadrature import Rule, gaussian_panels, legendre
from jflat.replica.robust_ensemble import ReplicaOrder, SphericalReplicaOrder, fixed_overlap_curve
from jflat.replica.saddle import Certificate, Curve, follow, in_chunks

__all__ = [
    "DenseOrder",
    "DenseRegion",
    "LargeDeviationResult",
    "SphericalDenseOrder",
    "large_deviation",
    "large_deviation_phi",
    "wide_minima_threshold",
]

ORDER = 8
_CHUNK = 24
_NEWTON = 12  # steps of the inner maximisations; convergence is quadratic
_FIRST = 0.6  # the overlap from which a curve is followed
_LOAD = 0.4  # patterns per weight from which that overlap is solved for fewer


class DenseRegion(NamedTuple):
    """The control parameters of a dense region."""

    alpha: Any
    """Patterns per weight."""
    margin: Any
    """kappa of the solutions."""
    q1: Any
    """Overlap of two of the replicas."""


class DenseOrder(NamedTuple):
    """Order parameters of y -> infinity, binary weights."""

    dq: Any
    """y (q1 - q0), q0 the overlap of replicas of different regions."""
    qh0: Any
    dqh: Any
    """Conjugates."""


class SphericalDenseOrder(NamedTuple):
    """Order parameter of y -> infinity, spherical weights."""

    dq: Any


class LargeDeviationResult(NamedTuple):
    """Entropies of the densest regions; each array has the shape of `overlaps`."""

    value: np.ndarray
    """phi(q1), nats per weight; NaN where the status is UNPHYSICAL."""
    slope: np.ndarray
    """d phi / d q1: negative where the region is one piece."""
    distance: np.ndarray
    """Hamming distance of a replica from the sign of the barycentre (binary weights, y -> infinity; NaN else)."""
    external_entropy: np.ndarray
    """S_ext = -y^2 d phi / d y, of the regions, nats per weight: negative where there are none; NaN for infinite y."""
    order: DenseOrder | SphericalDenseOrder | ReplicaOrder | SphericalReplicaOrder
    certificate: Certificate
    status: np.ndarray
    """int32: CONVERGED, UNPHYSICAL (no such overlaps, above capacity, more than all solutions, S_ext < 0), ..."""


def large_deviation_phi(
    order: DenseOrder | SphericalDenseOrder, control: DenseRegion, rule: Rule, *, model: Model
) -> jax.Array:
    """The free entropy of the module, nats per weight and replica: pure, of scalars, stationary in `order`."""
    return _entropic(order, control, rule)[0] + control.alpha * _energetic(order.dq, control, rule, model)


def _entropic(order: DenseOrder | SphericalDenseOrder, control: DenseRegion, rule: Rule) -> tuple[jax.Array, jax.Array]:
    """The entropic part, and the overlap of a replica with the sign of the barycentre."""
    q1 = control.q1
    if isinstance(order, SphericalDenseOrder):
        return jnp.log1p(-q1) / 2 + q1 / (1 - q1 + order.dq) / 2, jnp.full_like(q1, jnp.nan)
    root = jnp.sqrt(order.qh0)
    z, weight = gaussian_panels(rule, [(jnp.zeros_like(root), 1 / root)], positive=True)
    field, dqh = root * z, order.dqh

    def newton(h: jax.Array) -> jax.Array:  # h - field - dqh tanh h is convex on h > 0: from the right, monotone
        tanh = jnp.tanh(h)
        return h - (h - field - dqh * tanh) / (1 - dqh * (1 - tanh**2))

    h = jax.lax.fori_loop(0, _NEWTON, lambda _, h: jax.lax.stop_gradient(newton(h)), jax.lax.stop_gradient(field + dqh))
    h = newton(h)
    local = log_2cosh(h) - (h - field) ** 2 / (2 * dqh)
    linear = order.qh0 * (1 - q1) + dqh * q1 + order.qh0 * order.dq
    return 2 * jnp.sum(weight * local) - linear / 2, 2 * jnp.sum(weight * jnp.tanh(h))


def _energetic(dq: jax.Array, control: DenseRegion, rule: Rule, model: Model) -> jax.Array:
    Q, slope = jax.jvp(model.kernel, (control.q1,), (jnp.ones_like(control.q1),))
    dQ, root, width = slope * dq, jnp.sqrt(Q), jnp.sqrt(1 - Q)
    z, weight = gaussian_panels(rule, [(control.margin / root, width / root)])
    field = root * z

    def newton(A: jax.Array) -> jax.Array:  # A - field - dQ h((k - A) / width) / width rises and is concave
        b = (control.margin - A) / width
        hazard = gaussian_hazard(b)
        residual = A - field - dQ * hazard / width
        return A - residual / (1 + dQ * hazard * (hazard - b) / width**2)

    A = jax.lax.fori_loop(0, _NEWTON, lambda _, A: jax.lax.stop_gradient(newton(A)), jax.lax.stop_gradient(field))
    A = newton(A)
    return jnp.sum(weight * (log_H((control.margin - A) / width) - (A - field) ** 2 / (2 * dQ)))


def _from_coordinates(model: Model, rule: Rule) -> Any:
    """u = (log dq, log dqh); qh0 from d phi / d dq = 0."""

    def from_coordinates(u: jax.Array, control: DenseRegion) -> DenseOrder | SphericalDenseOrder:
        dq = jnp.exp(u[0])
        if model.weights == "spherical":
            return SphericalDenseOrder(dq)
        slope = jax.grad(_energetic)(dq, control, rule, model)
        return DenseOrder(dq, jnp.maximum(2 * control.alpha * slope, 1e-30), jnp.exp(u[1]))

    return from_coordinates


@functools.partial(jax.jit, static_argnames="model")
def _follow(model: Model, controls: DenseRegion, abscissae: jax.Array, start: jax.Array) -> tuple:
    rule, finer = legendre(ORDER), legendre(2 * ORDER)
    phi = functools.partial(large_deviation_phi, model=model)
    active = ("dq",) if model.weights == "spherical" else ("qh0", "dqh")
    curve = follow(phi, _from_coordinates(model, rule), start, controls, abscissae, rule, finer, active=active)

    def observe(point: tuple) -> tuple[jax.Array, jax.Array]:
        order, control = point
        slope = jax.grad(lambda q1: phi(order, control._replace(q1=q1), rule))(control.q1)
        return slope, (1 - _entropic(order, control, rule)[1]) / 2

    return curve, *jax.lax.map(observe, (curve.order, controls))


def _curve(model: Model, alpha: float, margin: float, path: np.ndarray) -> tuple[Curve, np.ndarray, np.ndarray]:
    controls = DenseRegion(np.full_like(path, alpha), np.full_like(path, margin), path)
    start = np.asarray([0.0] if model.weights == "spherical" else [0.0, 0.5])
    run = lambda controls, abscissae, start: _follow(model, controls, abscissae, start)  # noqa: E731
    with jax.enable_x64(True):
        if alpha < _LOAD:  # dq grows as patterns become fewer: too far from `start` for Newton's method
            fewer = np.geomspace(_LOAD, alpha, _CHUNK)
            level = jax.tree.map(lambda x: np.full(_CHUNK, x), DenseRegion(0.0, margin, path[0]))
            lowered = in_chunks(run, level._replace(alpha=fewer), -np.log(fewer), start, _CHUNK)[0]
            start = lowered.coordinates[-1]
        return in_chunks(run, controls, -np.log(1 - path), start, _CHUNK)


def large_deviation(
    model: Model, alpha: float, overlaps: np.ndarray, *, num_replicas: float = math.inf, margin: float = 0.0
) -> LargeDeviationResult:
    """The entropy of y solutions with mutual overlap q1, by default y -> infinity, the densest regions: phi(q1).

    Args:
      model: a perceptron, or a committee with infinitely many hidden units.
      alpha: patterns per weight, positive.
      overlaps: (n,) mutual overlaps q1 of the replicas, from 0.6 (where the curve starts) to 0.999.
      num_replicas: y, a number in [2, 1000], or infinity.
      margin: kappa of the solutions.

    Returns:
      A `LargeDeviationResult`, NumPy float64, in the order of `overlaps`. UNPHYSICAL, with NaN, are an overlap of 1 and
      more, or so negative that the matrix of the overlaps has a negative eigenvalue, q1 < -1 / (y - 1); an alpha above
      capacity; an internal entropy phi + y d phi / d y above the entropy of all solutions (a false branch). A negative
      external entropy is UNPHYSICAL, the value being the analytic continuation.

    Raises:
      ValueError: if `alpha` is not positive, `overlaps` not finite and (n,), a possible overlap not in [0.6, 0.999], or
        `num_replicas` out of range.

    Accuracy: `certificate.error`, 1e-6 nats or less. As q1 -> 1, dq grows without bound and the constraint ceases to
    matter; from dq = 1e4 on, where the equations have no digits left, the value is that of the free sphere,
    h2((1 - sqrt(q1)) / 2), with the difference of the two at the last solved point as error. Below alpha = 0.05 the
    first point is already there, and the status is MAX_STEPS.

    Cost: the curve is followed from q1 = 0.6, 1 - q1 falling by 4 percent a point, 2 unknowns each; 0.1 s for 24 points
    after compilation.

    References: see the module.

    >>> import numpy as np
    >>> from jflat.replica import binary_perceptron, large_deviation
    >>> large_deviation(binary_perceptron(), 0.4, np.array([0.6, 0.9])).value.round(4)
    array([0.2972, 0.1177])
    """
    where = "large_deviation"
    check.require_number(where, "alpha", alpha, 0.0, exclusive=True)
    check.require_number(where, "margin", margin)
    check.require(model.is_gaussian, where, "model", "must have a Gaussian output field", model)
    if num_replicas != math.inf:
        check.require_number(where, "num_replicas", num_replicas, 2.0, 1000.0)
    overlaps = np.asarray(overlaps, np.float64)
    is_list = overlaps.ndim == 1 and overlaps.size > 0 and bool(np.isfinite(overlaps).all())
    check.require(is_list, where, "overlaps", "must be finite, of shape (n,)", overlaps)
    inside = (overlaps >= -1 / (num_replicas - 1)) & (overlaps < 1)
    reachable = ~inside | ((overlaps >= _FIRST) & (overlaps <= 0.999))
    check.require(bool(reachable.all()), where, "overlaps", "that can exist must lie in [0.6, 0.999]", overlaps)
    everything = entropy(model, alpha, margin=margin)
    inside &= bool(everything.status != Status.UNPHYSICAL)
    wanted = np.unique(np.append(overlaps[inside], _FIRST))
    path = [_FIRST]
    for q1 in wanted[1:]:
        steps = math.ceil(math.log((1 - path[-1]) / (1 - q1)) / 0.043)
        path.extend(1 - (1 - path[-1]) * ((1 - q1) / (1 - path[-1])) ** (np.arange(1, steps + 1) / steps))
    distance = by_y = np.full(len(path), np.nan)
    if num_replicas != math.inf:
        curve, by_y, slope = fixed_overlap_curve(model, alpha, margin, num_replicas, np.asarray(path))
        external, internal = -(num_replicas**2) * by_y, curve.value + num_replicas * by_y
    else:
        curve, slope, distance = _curve(model, alpha, margin, np.asarray(path))
        if model.weights == "binary":
            curve, slope, distance = _free_at_the_end(np.asarray(path), curve, slope, distance)
        external, internal = by_y, curve.value
    chosen = np.argmin(np.abs(np.asarray(path) - np.where(inside, overlaps, _FIRST)[:, None]), axis=1)
    curve, slope, distance, external, internal = jax.tree.map(
        lambda x: x[chosen], (curve, slope, distance, external, internal)
    )
    possible = inside & ~(internal > everything.value + 1e-6)
    status = np.where(possible & ~(external < 0), curve.status, Status.UNPHYSICAL).astype(np.int32)
    value, slope, distance, external = (np.where(possible, x, np.nan) for x in (curve.value, slope, distance, external))
    return LargeDeviationResult(value, slope, distance, external, curve.order, curve.certificate, status)


def _free_at_the_end(path: np.ndarray, curve: Curve, slope: np.ndarray, distance: np.ndarray) -> tuple:
    """Fill in what comes after the last solved point where dq -> infinity, if the curve has come that far."""
    solved = np.flatnonzero(curve.status == Status.CONVERGED)
    if not solved.size or solved[-1] + 1 == len(path) or curve.order.dq[solved[-1]] < 1e4:
        return curve, slope, distance
    root = np.sqrt(path)
    d = (1 - root) / 2
    free = -d * np.log(d) - (1 - d) * np.log1p(-d)
    last, end = solved[-1], np.arange(len(path)) > solved[-1]
    order = DenseOrder(
        *(np.where(end, x, y) for x, y in zip((np.inf, 0.0, np.arctanh(root) / root), curve.order, strict=True))
    )
    certificate = Certificate(
        np.where(end, 0.0, curve.certificate.gradient_norm),
        np.where(end, abs(free[last] - curve.value[last]), curve.certificate.error),
        curve.certificate.orientation,
    )
    status = np.where(end, Status.CONVERGED, curve.status).astype(np.int32)
    curve = curve._replace(value=np.where(end, free, curve.value), order=order, certificate=certificate, status=status)
    return curve, np.where(end, -np.arctanh(root) / root / 2, slope), np.where(end, d, distance)


def wide_minima_threshold(model: Model, *, margin: float = 0.0) -> CapacityResult:
    """The alpha above which the densest regions break up: d phi / d q1 = 0 for some q1, y -> infinity.

    Args:
      model: binary weights, a perceptron or a committee with infinitely many hidden units.
      margin: kappa of the solutions.

    Returns:
      A `CapacityResult`, NumPy float64: the threshold, with the order parameters where the slope vanishes. The error is
      that of the interpolation in q1 and alpha.

    Raises:
      ValueError: if the weights are spherical or the field is not Gaussian.

    Cost: 12 curves of 72 points. References: 1511.05634, 1907.07578 (the definition differs: here y -> infinity).

    Example: 0.755 for the binary perceptron, below its capacity of 0.833.
    """
    where = "wide_minima_threshold"
    is_right = model.weights == "binary" and model.is_gaussian
    check.require(is_right, where, "model", "must have binary weights and a Gaussian output field", model)
    limit = float(capacity(model, margin=margin).value)
    path = 1 - (1 - _FIRST) * np.exp(-np.arange(3 * _CHUNK) * 0.0322)

    def steepest(alpha: float) -> tuple[float, Curve]:
        curve, slope, _ = _curve(model, alpha, margin, path)
        slope = np.where(curve.status == Status.CONVERGED, slope, -np.inf)
        i = int(np.clip(np.argmax(slope), 1, len(path) - 2))
        left, middle, right = slope[i - 1 : i + 2]  # the vertex of the parabola through the three
        bend = left - 2 * middle + right
        top = middle - (right - left) ** 2 / (8 * bend) if np.isfinite(bend) and bend < 0 else middle
        return float(top), jax.tree.map(lambda x: x[i], curve)

    low, high = 0.6 * limit, 0.97 * limit
    (below, _), (above, point) = steepest(low), steepest(high)
    if not below < 0 < above:
        return CapacityResult(
            np.asarray(np.nan), point.order, point.certificate, np.asarray(np.int32(Status.MAX_STEPS))
        )
    while high - low > 1e-4:
        alpha = (low + high) / 2
        value, point = steepest(alpha)
        low, high, below, above = (alpha, high, value, above) if value < 0 else (low, alpha, below, value)
    threshold = low - below * (high - low) / (above - below)
    certificate = point.certificate._replace(error=np.asarray((high - low) / 2))
    return CapacityResult(np.asarray(threshold), point.order, certificate, point.status)

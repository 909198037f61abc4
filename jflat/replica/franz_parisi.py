r"""Local entropy around a reference configuration by the method of Franz and Parisi.

A reference w~ is drawn among the typical solutions at margin k~ (`entropy`), with overlap q~ between two of them. The
number of solutions w at margin k and at overlap w . w~ / N = t1, that is at Hamming distance d = (1 - t1) / 2, has the
typical logarithm, per weight and replica symmetric,

    phi(t1) = extr  G_S + alpha G_E
    binary     G_S = -qh (1 - q) / 2 - th1 t1 + th0 t0
                     + E_x sum_w~ P(w~ | x) E_y log 2cosh(th0 x / sqrt(qh~) + sqrt(qh - th0^2 / qh~) y + (th1 - th0) w~)
    spherical  G_S = (log(1 - q) + (q - c) / (1 - q)) / 2,  c = (t1^2 - t0^2 - q~ (t1 - t0)^2 / (1 - q~)) / (1 - q~)
    G_E = E_x E_y [H((k~ - mu) / s) / H((k~ - sqrt(q~) x) / sqrt(1 - q~))] log H((k - A) / sqrt(1 - q))
          A = t0 x / sqrt(q~) + sqrt(D) y,  D = q - t0^2 / q~,
          mu = sqrt(q~) x + (t1 - t0) y / sqrt(D),  s^2 = 1 - q~ - (t1 - t0)^2 / D

with q the overlap of two such w, t0 that of w with another reference, P(w~ | x) = exp(sqrt(qh~) x w~) / 2cosh(...), x
and y standard normal. In a wide committee each overlap of G_E is replaced by its kernel Q (`models`). For a reference
drawn from the Gibbs measure of a cross-entropy (`gibbs`) the ratio in square brackets becomes Z(mu, s) / Z(sqrt(q~) x,
sqrt(1 - q~)), and q~ and qh~ are those of that measure. Integrating what remains of the reference's field at fixed w
first leaves two dimensions where the formula has three.

Read it so: phi near log-binomial, h2(d) = -d log d - (1 - d) log(1 - d), means a wide flat minimum, phi < 0 that no
other solution is near (typical solutions of the binary perceptron are isolated), phi not growing in d that the region
breaks up.

Differs from the damped fixed-point iterations of the literature: Newton steps with continuation in d, so the cost of a
curve does not depend on how steep it is; panels of quadrature that shrink onto the two steep places of G_E as d -> 0.

References: S. Franz and G. Parisi, J. Phys. I 5, 1401 (1995); H. Huang and Y. Kabashima, Phys. Rev. E 90, 052813
(2014); C. Baldassi et al., 2107.01163.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check
from jflat.core.special import log_2cosh, log_H
from jflat.replica.entropy import entropy, max_margin, path_through
from jflat.replica.gibbs import CrossEntropy, gibbs, log_partition, require_loss, tabulated_log_partition
from jflat.replica.models import Model
from jflat.replica.planted import PlantedOrder, planted_curve
from jflat.replica.quadrature import Rule, gaussian_panels, legendre
from jflat.replica.saddle import Certificate, Curve, both_ways, follow, in_chunks

__all__ = [
    "FranzParisiResult",
    "LocalOrder",
    "Neighbourhood",
    "SphericalLocalOrder",
    "franz_parisi",
    "franz_parisi_phi",
]

ORDER = 8
_CHUNK = 16
_MIDDLE = 0.1  # the distance from which a curve is followed both ways
_RATIO = 1.16  # between neighbouring d / (1 - d)


class Neighbourhood(NamedTuple):
    """The control parameters of a local entropy: the reference and the place."""

    alpha: Any
    """Patterns per weight."""
    margin: Any
    """k, of the solutions that are counted."""
    t1: Any
    """Overlap with the reference, 1 - 2 d."""
    reference: Any
    """k~, or the `CrossEntropy` of the Gibbs measure from which the reference is drawn."""
    reference_q: Any
    """q~, of `entropy` at k~ or of `gibbs`."""
    reference_qh: Any
    """Its conjugate (unused for spherical weights)."""


class LocalOrder(NamedTuple):
    """Order parameters of binary weights near a reference."""

    q: Any
    """Overlap of two solutions at distance d from the same reference."""
    t0: Any
    """Overlap of such a solution with another reference."""
    qh: Any
    th0: Any
    th1: Any
    """Conjugates of q, t0 and t1; th1 is minus the slope of the entropic part in t1."""


class SphericalLocalOrder(NamedTuple):
    """Order parameters of spherical weights near a reference; the conjugates are eliminated."""

    q: Any
    t0: Any


class FranzParisiResult(NamedTuple):
    """A local entropy curve; each array has the shape of `distances`."""

    value: np.ndarray
    """phi(d), nats per weight; negative where no other solution is near. NaN where the status is UNPHYSICAL."""
    slope: np.ndarray
    """d phi / d d: the local entropy is monotonic where it is positive."""
    order: LocalOrder | SphericalLocalOrder | PlantedOrder
    certificate: Certificate
    status: np.ndarray
    """int32: CONVERGED, UNPHYSICAL (distance outside (0, 1), reference above its capacity), MAX_STEPS, NON_FINITE."""


def franz_parisi_phi(
    order: LocalOrder | SphericalLocalOrder, control: Neighbourhood, rule: Rule, *, model: Model
) -> jax.Array:
    """The free entropy of the module, nats per weight: a pure function of scalars, stationary in `order`."""
    return _entropic(order, control, rule) + control.alpha * _energetic(order.q, order.t0, control, rule, model)


def _entropic(order: LocalOrder | SphericalLocalOrder, control: Neighbourhood, rule: Rule) -> jax.Array:
    q, t0, t1, qr = order.q, order.t0, control.t1, control.reference_q
    if isinstance(order, SphericalLocalOrder):
        c = (t1**2 - t0**2 - qr * (t1 - t0) ** 2 / (1 - qr)) / (1 - qr)
        return (jnp.log1p(-q) + (q - c) / (1 - q)) / 2
    root = jnp.sqrt(control.reference_qh)
    spread = jnp.sqrt(order.qh - order.th0**2 / control.reference_qh)
    x, weight_x = gaussian_panels(rule, [(jnp.zeros_like(root), 1 / root)])
    mean = order.th0 / root * x + order.th1 - order.th0  # w~ = -1 gives the same with -x, -y
    y, weight_y = gaussian_panels(rule, [(-mean / spread, 1 / spread)])
    local = jnp.sum(weight_y * log_2cosh(mean[:, None] + spread * y), axis=1)
    average = jnp.sum(weight_x * (1 + jnp.tanh(root * x)) * local)
    return average - order.qh * (1 - q) / 2 - order.th1 * t1 + order.th0 * t0


def _energetic(q: jax.Array, t0: jax.Array, control: Neighbourhood, rule: Rule, model: Model) -> jax.Array:
    qr, q, t0, t1 = (model.kernel(overlap) for overlap in (control.reference_q, q, t0, control.t1))
    k, width = control.margin, jnp.sqrt(1 - qr)
    root, spread = jnp.sqrt(qr), jnp.sqrt(q - t0**2 / qr)
    slope = (t1 - t0) / spread
    slope = jnp.where(jnp.abs(slope) < 1e-9, 1e-9, slope)
    wall = jnp.sqrt(1 - qr - slope**2)
    steep = []
    if isinstance(control.reference, CrossEntropy):
        kr, softness = control.reference.wall()
        log_z = tabulated_log_partition(wall, control.reference, rule)
        log_z0 = lambda field: log_partition(field, width, control.reference, rule)  # noqa: E731
    else:
        kr, softness = control.reference, 0.0
        steep = [(kr / root, width / root)]
        log_z = lambda field: log_H((kr - field) / wall)  # noqa: E731
        log_z0 = lambda field: log_H((kr - field) / width)  # noqa: E731
    x, weight_x = gaussian_panels(rule, steep, dtype=q.dtype)
    search = (k - t0 / root * x) / spread, jnp.sqrt(1 - q) / spread
    y, weight_y = gaussian_panels(rule, [search, ((kr - root * x) / slope, (wall + softness) / jnp.abs(slope))])
    x, log_reference = x[:, None], log_z0(root * x)[:, None]
    # where the reference is very unlikely a weight may overflow before the density of y, far smaller, multiplies it
    log_weight = jnp.minimum(log_z(root * x + slope * y) - log_reference, 600.0)
    log_p = log_H((k - t0 / root * x - spread * y) / jnp.sqrt(1 - q))
    return jnp.sum(weight_x[:, None] * weight_y * jnp.exp(log_weight) * log_p)


def _from_coordinates(model: Model, rule: Rule) -> Any:
    """u[:2] to overlaps whose matrix is positive, u[2] = th1 - th0; the other conjugates make d phi / d (q, t0) vanish.

    They satisfy th0^2 <= qh qh~ by the inequality of Cauchy and Schwarz.
    """

    def from_coordinates(u: jax.Array, control: Neighbourhood) -> LocalOrder | SphericalLocalOrder:
        qr, t1 = control.reference_q, control.t1
        q = 1 - (1 - t1**2) / jnp.cosh(u[1]) ** 2 / (1 + u[0] ** 2)
        t0 = qr * t1 + jnp.sqrt(qr * (1 - qr) * (1 - t1**2)) * jnp.tanh(u[1])
        if model.weights == "spherical":
            return SphericalLocalOrder(q, t0)
        # backwards through the table of a Gibbs measure is a scatter, three times as slow as two derivatives forwards
        differentiate = jax.jacfwd if isinstance(control.reference, CrossEntropy) else jax.grad
        by_q, by_t0 = differentiate(_energetic, argnums=(0, 1))(q, t0, control, rule, model)
        qh, th0 = -2 * control.alpha * by_q, -control.alpha * by_t0
        return LocalOrder(q, t0, jnp.maximum(qh, th0**2 / control.reference_qh + 1e-9), th0, th0 + u[2])

    return from_coordinates


@functools.partial(jax.jit, static_argnames="model")
def _follow(model: Model, controls: Neighbourhood, start: jax.Array, abscissae: jax.Array) -> tuple[Curve, jax.Array]:
    rule, finer = legendre(ORDER), legendre(2 * ORDER)
    phi = functools.partial(franz_parisi_phi, model=model)
    active = ("q", "t0") if model.weights == "spherical" else ("qh", "th0", "th1")
    curve = follow(phi, _from_coordinates(model, rule), start, controls, abscissae, rule, finer, active=active)

    def slope(point: tuple) -> jax.Array:
        order, control = point
        return -2 * jax.grad(lambda t1: phi(order, control._replace(t1=t1), finer))(control.t1)

    return curve, jax.lax.map(slope, (curve.order, controls))


def _curve(model: Model, path: np.ndarray, control: Neighbourhood) -> tuple[Curve, np.ndarray]:
    """The curve and its slope along an ascending path of distances.

    It starts where d is `_MIDDLE`, from the solution without patterns (t0 = q~ t1, q = t1^2, th1 = artanh t1) by
    raising their number, with the reference held: at small d solutions may be isolated, at large d they forget it.
    """

    def run(path: np.ndarray, start: np.ndarray, direction: int, load: Any = 1.0) -> tuple[Curve, np.ndarray]:
        controls = jax.tree.map(lambda x: np.full(path.shape, x, np.float64), control)
        controls = controls._replace(t1=1 - 2 * path, alpha=controls.alpha * load)
        compiled = lambda controls, abscissae, start: _follow(model, controls, start, abscissae)  # noqa: E731
        abscissae = direction * np.log(path / (1 - path)) if np.ndim(load) == 0 else load
        return in_chunks(compiled, controls, abscissae, start, _CHUNK)

    middle = int(np.argmin(np.abs(path - _MIDDLE)))
    free = np.asarray([0.1, 0.0, np.arctanh(1 - 2 * path[middle])][: 2 if model.weights == "spherical" else 3])
    raised = run(np.full(_CHUNK, path[middle]), free, 1, np.arange(1, _CHUNK + 1) / _CHUNK)[0]
    return both_ways(run, path, raised.coordinates[-1], middle)


def franz_parisi(
    model: Model,
    alpha: float,
    distances: np.ndarray,
    *,
    reference: float | str | CrossEntropy = "typical",
    margin: float = 0.0,
) -> FranzParisiResult:
    """The local entropy of solutions at margin k at distance d from a reference: phi(d) of the module.

    Args:
      model: a perceptron, a committee with infinitely many hidden units and binary weights, or a binary parity machine
        with two (`planted`; then only around typical solutions and at margin 0; phi(1 - d) = phi(d), as both units'
        weights may change sign).
      alpha: patterns per weight, positive.
      distances: (n,) Hamming distances d as fractions of N; for spherical weights d = (1 - overlap) / 2.
      reference: margin k~ of the typical solutions that serve as reference: a number, "typical" (k~ = k) or
        "max-margin" (the largest that solutions have at alpha); or `CrossEntropy(gamma, beta)`: weights drawn from the
        Gibbs measure of that loss, which may have a few errors themselves.
      margin: k, of the solutions that are counted.

    Returns:
      A `FranzParisiResult`, NumPy float64, in the order of `distances`. A distance outside (0, 1), a reference that
      does not exist (a margin too large, a Gibbs measure that is frozen), an alpha above the capacity at margin k, or a
      value above the entropy of all solutions (a false branch) has status UNPHYSICAL and NaN.

    Raises:
      ValueError: if `alpha` is not positive, `distances` not one-dimensional or not finite, the reference unknown, or
        the device none of those above.

    Accuracy: `certificate.error`, 1e-6 nats or less. Within 0.001 of the distance where phi is largest solutions forget
    the reference, t0 = t1 = q = q~ for a typical one, and the equations, singular there, lose digits: the status may be
    MAX_STEPS with a `gradient_norm` of 1e-5; the value, stationary, is still right to 1e-7. Beyond that distance the
    curve may be lost (around `CrossEntropy(1, 40)` at alpha = 0.4, from d = 0.25), and so it may below d = 0.01 near
    capacity (typical, alpha = 0.8) or where no pattern is felt (largest margin, alpha = 0.3; there phi is that of the
    sphere): where `gradient_norm` is above 1e-4 the value means nothing.

    Cost: the curve is followed from d = 0.1 both ways with at least 18 points a decade, 3 unknowns each (9 around a
    Gibbs measure, each point thrice as dear). 40 points take 8 s of one core around typical solutions or the largest
    margin, three times as long around a Gibbs measure; compilation, once for a device, takes 13 s, for a Gibbs measure
    20 s.

    References: see the module.

    Example: with few patterns everything is near everything, and phi is the entropy of the sphere of radius d.

    >>> import numpy as np
    >>> from jflat.replica import binary_perceptron, franz_parisi
    >>> d = np.array([0.1, 0.3])
    >>> free = -d * np.log(d) - (1 - d) * np.log(1 - d)
    >>> (franz_parisi(binary_perceptron(), 0.5, d, reference="max-margin").value / free).round(2)
    array([0.68, 0.51])
    """
    where = "franz_parisi"
    check.require_number(where, "alpha", alpha, 0.0, exclusive=True)
    check.require_number(where, "margin", margin)
    is_parity = model == Model("binary", "parity", 2)
    rule = "must have a Gaussian output field, or be the binary parity machine of two units"
    check.require(model.is_gaussian or is_parity, where, "model", rule, model)
    if is_parity:
        check.require(reference == "typical", where, "reference", "must be 'typical' for a parity machine", reference)
        check.require(margin == 0, where, "margin", "must be 0 for a parity machine", margin)
    distances = np.asarray(distances, np.float64)
    is_list = distances.ndim == 1 and distances.size > 0 and bool(np.isfinite(distances).all())
    check.require(is_list, where, "distances", "must be finite, of shape (n,)", distances)
    lost = False
    if isinstance(reference, str):
        check.require_choice(where, "reference", reference, ("typical", "max-margin"))
        largest = max_margin(model, alpha) if reference == "max-margin" else None
        lost = largest is not None and not math.isfinite(largest.value)
        reference = margin if largest is None or lost else float(largest.value)
    if isinstance(reference, CrossEntropy):
        require_loss(where, "reference", reference)
        typical: Any = gibbs(model, alpha, reference)
        number = float(typical.entropy)
    else:
        check.require_number(where, "reference", reference)
        typical = entropy(model, alpha, margin=reference)
        number = float(typical.value)
    everything = entropy(model, alpha, margin=margin)
    inside = (distances > 0) & (distances < 1)
    mirrored = is_parity & (distances > 0.5)
    distances = np.minimum(np.where(mirrored, 1 - distances, distances), 0.5 - 1e-7) if is_parity else distances
    # at the largest margin the entropy of the reference is zero up to rounding
    exists = typical.status == Status.CONVERGED or (model.weights == "binary" and abs(number) < 1e-6)
    exists = exists and everything.status == Status.CONVERGED and not lost
    wanted = np.unique(distances[inside]) if exists and inside.any() else np.asarray([0.1])
    ratio = (
        _RATIO**2 if isinstance(reference, CrossEntropy) else _RATIO
    )  # curves without the boundary layer of a margin
    odds = np.unique([*wanted / (1 - wanted), _MIDDLE / (1 - _MIDDLE)])
    path = path_through(odds, odds[0], ratio)
    with jax.enable_x64(True):
        qh = getattr(typical.order, "qh", np.ones(()))
        q = np.clip(np.nan_to_num(typical.order.q, nan=0.5), 1e-12, 1 - 1e-12)
        control = Neighbourhood(alpha, margin, 0.0, reference, q, np.nan_to_num(qh, nan=1.0))
        path = path / (1 + path)
        curve, slope = planted_curve(model, alpha, path) if is_parity else _curve(model, path, control)
    kept = np.where(inside & exists, distances, wanted[0])
    chosen = np.argmin(np.abs(path - kept[:, None]), axis=1)
    curve, slope = jax.tree.map(lambda x: x[chosen], (curve, slope))
    fine = inside & exists & ~(curve.value > everything.value + 1e-6)
    status = np.where(fine, curve.status, Status.UNPHYSICAL).astype(np.int32)
    value, slope = np.where(fine, curve.value, np.nan), np.where(fine, np.where(mirrored, -slope, slope), np.nan)
    return FranzParisiResult(value, slope, curve.order, curve.certificate, status)

r"""Volume of solutions of a random classification problem: entropy, capacity, largest margin, stability law (Gardner).

alpha N random patterns with random labels; a weight vector solves them at margin kappa if all stabilities
Delta = sigma w . xi / sqrt(N) are at least kappa. The logarithm of the number (binary) or of the volume relative to the
sphere (spherical) of solutions, per weight, is in the replica symmetric theory

    phi = extr_q  G_S + alpha G_E(Q(q))
    binary      G_S = extr_qh  -qh (1 - q) / 2 + \int Dz log 2cosh(sqrt(qh) z)
    spherical   G_S = (log(1 - q) + q / (1 - q)) / 2
    G_E(Q) = \int Dz log H((kappa - sqrt(Q) z) / sqrt(1 - Q))

with the kernel Q of the device (`models`). With K units on disjoint inputs G_E is instead an integral over K fields of
the logarithm of a sum over the internal representations tau whose output is right,

    G_E = \int prod_l Dz_l log sum_tau prod_l H(-tau_l sqrt(q / (1 - q)) z_l).

The capacity is where phi = 0 for binary weights (Krauth and Mezard 1989), where q = 1 for spherical ones:
1 / \int_{-kappa}^inf Dt (t + kappa)^2 (Gardner 1988). Replica symmetry is exact for the perceptrons at kappa >= 0; for
spherical committees and negative margins its capacity is an upper bound.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check
from jflat.core.special import gauss_hermite, gaussian_hazard, log_2cosh, log_H
from jflat.replica.models import Model
from jflat.replica.quadrature import Rule, gaussian_panels, legendre
from jflat.replica.saddle import Certificate, Curve, follow, in_chunks

__all__ = [
    "BinaryOrder",
    "CapacityResult",
    "EntropyResult",
    "SphericalOrder",
    "Volume",
    "capacity",
    "entropy",
    "entropy_phi",
    "margin_distribution",
    "max_margin",
]

_CHUNK = 32
ORDER = 10  # points of a Legendre panel; the certificate doubles it


class Volume(NamedTuple):
    """The control parameters of a volume of solutions."""

    alpha: Any
    """Patterns per weight."""
    margin: Any
    """kappa, in units of the standard deviation of a field."""


class BinaryOrder(NamedTuple):
    """Order parameters of binary weights."""

    q: Any
    """Overlap of two solutions, in (0, 1)."""
    qh: Any
    """Its conjugate, positive: the variance of the field on a weight."""


class SphericalOrder(NamedTuple):
    """Order parameter of spherical weights; its conjugate is eliminated."""

    q: Any
    """Overlap of two solutions, in (0, 1)."""


class EntropyResult(NamedTuple):
    """Entropies of solutions; each array has the shape of `alpha`."""

    value: np.ndarray
    """phi, nats per weight. Where the status is UNPHYSICAL, the (negative) analytic continuation, or NaN."""
    order: BinaryOrder | SphericalOrder
    certificate: Certificate
    status: np.ndarray
    """int32: CONVERGED, UNPHYSICAL (above capacity), MAX_STEPS or NON_FINITE."""


class CapacityResult(NamedTuple):
    """A critical value of a control parameter."""

    value: np.ndarray
    """The capacity, or the largest margin."""
    order: Any
    """Order parameters there (for spherical weights: q = 1)."""
    certificate: Certificate
    """`error` is that of the value."""
    status: np.ndarray
    """int32: CONVERGED, UNPHYSICAL (no such margin), MAX_STEPS or NON_FINITE."""


def entropy_phi(order: BinaryOrder | SphericalOrder, control: Volume, rule: Rule, *, model: Model) -> jax.Array:
    """The replica symmetric free entropy of the module, nats per weight: a pure function of scalars.

    It follows the dtype of `order`. Stationary in `order` at the physical value.

    >>> with jax.enable_x64(True):
    ...     order = BinaryOrder(jnp.float64(0.32238), jnp.float64(0.668035))
    ...     float(jnp.round(entropy_phi(order, Volume(0.5, 0.0), legendre(10), model=Model()), 5))
    0.31439
    """
    return entropic(order, rule) + control.alpha * energetic(order.q, control.margin, rule, model)


def entropic(order: BinaryOrder | SphericalOrder, rule: Rule) -> jax.Array:
    """G_S: the entropy of weights with overlap q."""
    if isinstance(order, SphericalOrder):
        return (jnp.log1p(-order.q) + order.q / (1 - order.q)) / 2
    root = jnp.sqrt(order.qh)
    z, weight = gaussian_panels(rule, [(jnp.zeros_like(root), 1 / root)], positive=True)
    return 2 * jnp.sum(weight * log_2cosh(root * z)) - order.qh * (1 - order.q) / 2


def energetic(q: jax.Array, margin: Any, rule: Rule, model: Model) -> jax.Array:
    """G_E: the mean log probability of a satisfied pattern."""
    if not model.is_gaussian:
        return _internal_representations(q, rule, model)
    Q = model.kernel(q)
    root, width = jnp.sqrt(Q), jnp.sqrt(1 - Q)
    z, weight = gaussian_panels(rule, [(margin / root, width / root)])
    return jnp.sum(weight * log_H((margin - root * z) / width))


def _internal_representations(q: jax.Array, rule: Rule, model: Model) -> jax.Array:
    """G_E of K sign units; the rule gives 2 n Gauss-Hermite points for each of K fields."""
    K = int(model.num_hidden)
    z, weight = (jnp.asarray(part, q.dtype) for part in gauss_hermite(2 * len(rule.nodes)))
    total = log_right(jnp.sqrt(q / (1 - q)) * z, model)
    for _ in range(K):
        total = total @ weight
    return total


def log_right(field: jax.Array, model: Model) -> jax.Array:
    """log sum_tau prod_l H(-tau_l a_l) on the grid of fields a x ... x a (K axes): the output is right."""
    K = int(model.num_hidden)
    log_p = {+1: log_H(-field), -1: log_H(field)}
    right = [
        tau
        for tau in itertools.product((-1, 1), repeat=K)
        if (sum(tau) > 0 if model.activation == "majority" else math.prod(tau) > 0)
    ]
    axes = [tuple(-1 if axis == unit else 1 for axis in range(K)) for unit in range(K)]
    terms = [sum(log_p[t].reshape(axis) for t, axis in zip(tau, axes, strict=True)) for tau in right]
    return jax.scipy.special.logsumexp(jnp.stack(terms), axis=0)


def volume_coordinates(model: Model, energetic: Callable[[jax.Array, Any], jax.Array]) -> Any:
    """q = u^2 / (1 + u^2); the conjugate from d phi / d q = 0, with G_E = energetic(q, control)."""

    def from_coordinates(u: jax.Array, control: Any) -> BinaryOrder | SphericalOrder:
        q = u[0] ** 2 / (1 + u[0] ** 2) + 1e-30
        if model.weights == "spherical":
            return SphericalOrder(q)
        slope = jax.grad(energetic)(q, control)
        return BinaryOrder(q, jnp.maximum(-2 * control.alpha * slope, 1e-30))

    return from_coordinates


@functools.partial(jax.jit, static_argnames="model")
def _follow(model: Model, start: jax.Array, controls: Volume, abscissae: jax.Array) -> Curve:
    rule, finer = legendre(ORDER), legendre(2 * ORDER)
    phi = functools.partial(entropy_phi, model=model)
    active = ("qh",) if model.weights == "binary" else ("q",)
    coordinates = volume_coordinates(model, lambda q, control: energetic(q, control.margin, rule, model))
    return follow(phi, coordinates, start, controls, abscissae, rule, finer, active=active)


def _along(model: Model, alphas: np.ndarray, margins: np.ndarray, start: np.ndarray | None = None) -> Curve:
    """The branch of small q along a path of controls, whose first point constrains little unless `start` is near it."""
    if start is None:
        start = np.sqrt(alphas[:1]) * float(gaussian_hazard(jnp.float64(margins[0])))
    run = lambda controls, abscissae, start: (_follow(model, start, controls, abscissae),)  # noqa: E731
    return in_chunks(run, Volume(alphas, margins), np.log(alphas) + margins, start, _CHUNK)[0]


def path_through(values: np.ndarray, first: float, ratio: float) -> np.ndarray:
    """An ascending path from `first` through all the ascending `values`, neighbours at most a factor `ratio` apart."""
    path = [min(first, values[0])]
    for value in values:
        steps = max(1, math.ceil(math.log(value / path[-1]) / math.log(ratio)))
        path.extend(path[-1] * (value / path[-1]) ** (np.arange(1, steps + 1) / steps))
    return np.asarray(path)


def along_alpha(
    run: Callable[[np.ndarray], Any], alpha: np.ndarray, bound: float = math.inf, *, first: float = 1e-2
) -> Any:
    """What `run` returns on a path in alpha from `first`, at `alpha` (beyond `bound`, just below it), in float64."""
    wanted, where = np.unique(alpha, return_inverse=True)
    floor = 1e-9  # phi changes by less than its rounding error from here to alpha = 0
    inside = np.clip(wanted, floor, bound * (1 - 1e-6))
    path = path_through(inside / (1 - inside / bound), first, 1.3)  # finer towards q = 1
    with jax.enable_x64(True):
        results = run(path / (1 + path / bound))
    chosen = np.searchsorted(path, inside / (1 - inside / bound) * (1 - 1e-12))[where].reshape(alpha.shape)
    return jax.tree.map(lambda x: x[chosen], results)


def entropy(model: Model, alpha: float | np.ndarray, *, margin: float = 0.0) -> EntropyResult:
    """The entropy of the solutions at margin kappa, phi(alpha): the equations of the module.

    Args:
      model: of `jflat.replica.models`.
      alpha: patterns per weight, at least 0, a number or an array of any shape.
      margin: kappa, in standard deviations of a field (0 for a committee or parity machine with few hidden units).

    Returns:
      An `EntropyResult` with the shape of `alpha`, NumPy float64. Above the capacity its status is UNPHYSICAL.

    Raises:
      ValueError: if `alpha` is negative or not finite, or a margin is given to a machine with few hidden units.

    Accuracy: `certificate.error`, about 1e-12 for the perceptrons. Works in float64 whatever the caller's setting.

    Cost: the branch is followed from small alpha: 20 to 30 points, a fraction of a second after compilation.

    References: E. Gardner, J. Phys. A 21, 257 (1988); W. Krauth and M. Mezard, J. Phys. France 50, 3057 (1989).

    Example: without patterns every one of the 2^N weights is a solution.

    >>> from jflat.replica import binary_perceptron, entropy
    >>> entropy(binary_perceptron(), [0.0, 0.5]).value.round(4)
    array([0.6931, 0.3144])
    """
    alpha = np.asarray(alpha, np.float64)
    check.require(bool(np.all(np.isfinite(alpha) & (alpha >= 0))), "entropy", "alpha", "must be finite, >= 0", alpha)
    _require_margin("entropy", model, margin)
    bound = _spherical_capacity(model, margin) if model.weights == "spherical" else math.inf
    curve = along_alpha(
        lambda path: _along(model, path, np.full_like(path, margin)), alpha, bound, first=_weak_load(margin)
    )
    status, value = curve.status, curve.value
    if model.weights == "spherical":
        value = np.where(alpha < bound, value, np.nan)
        status = np.where(alpha < bound, status, Status.UNPHYSICAL)
    else:
        status = np.where((status == Status.CONVERGED) & (value < 0), Status.UNPHYSICAL, status)
    return EntropyResult(value, curve.order, curve.certificate, status.astype(np.int32))


def capacity(model: Model, *, margin: float = 0.0) -> CapacityResult:
    """The largest alpha with solutions at margin kappa.

    Args:
      model: of `jflat.replica.models`.
      margin: kappa.

    Returns:
      A `CapacityResult`, NumPy float64: the zero of the entropy (binary weights), or the closed form at q = 1
      (spherical; infinite for the sign committee in the replica symmetric theory).

    Raises:
      ValueError: if a margin is given to a machine with few hidden units.

    Cost: as `entropy`.

    References: see `entropy`; for committees E. Barkai, D. Hansel, H. Sompolinsky, Phys. Rev. A 45, 4146 (1992) and
    1907.07578.

    >>> from jflat.replica import binary_perceptron, capacity, spherical_perceptron
    >>> float(capacity(binary_perceptron()).value.round(4)), float(capacity(spherical_perceptron()).value)
    (0.8331, 2.0)
    """
    _require_margin("capacity", model, margin)
    if model.weights == "spherical":
        return _exact(_spherical_capacity(model, margin))
    with jax.enable_x64(True):
        annealed = _LOG_2 / -float(log_H(jnp.float64(margin)))  # the first moment bound: no solutions above it
        path = path_through(np.asarray([annealed]), _weak_load(margin), 1.12)
        return _at_zero_entropy(model, path, np.full_like(path, margin), "alpha")


def max_margin(model: Model, alpha: float) -> CapacityResult:
    """The largest margin kappa_max that solutions have at alpha patterns per weight.

    Args:
      model: a perceptron, or a committee with infinitely many hidden units.
      alpha: patterns per weight, positive.

    Returns:
      A `CapacityResult`, NumPy float64. Negative above the capacity at margin 0 (there replica symmetry is broken for
      spherical weights).

    Raises:
      ValueError: if `alpha` is not positive, or the machine has few hidden units, or no largest margin (the spherical
        sign committee).

    Cost: as `entropy`.

    Reference: 2107.01163.

    >>> from jflat.replica import max_margin, spherical_perceptron
    >>> float(max_margin(spherical_perceptron(), 2.0).value.round(6)) + 0.0
    0.0
    """
    check.require_number("max_margin", "alpha", alpha, 0.0, exclusive=True)
    has_one = model.is_gaussian and (model.weights == "binary" or model.activation != "sign")
    check.require(has_one, "max_margin", "model", "must have a Gaussian field and a finite capacity", model)
    if model.weights == "spherical":
        return _exact(_bisect(lambda k: alpha - _spherical_capacity(model, k), -20.0, 20.0 + math.sqrt(4 / alpha)))
    with jax.enable_x64(True):
        # from where patterns constrain little, q = 1e-3, to the first moment bound
        first = _bisect(lambda k: alpha - _weak_load(k, math.inf))
        last = _bisect(lambda k: -alpha * float(log_H(jnp.float64(k))) - _LOG_2)
        margins = np.linspace(first, last, _CHUNK * math.ceil(last - first))
        return _at_zero_entropy(model, np.full_like(margins, alpha), margins, "margin")


def margin_distribution(model: Model, alpha: float, stabilities: np.ndarray, *, margin: float = 0.0) -> EntropyResult:
    r"""The density of the stabilities Delta of a typical solution at margin kappa.

        P(Delta) = \int Dz Theta(Delta - kappa) G((Delta - sqrt(Q) z) / sqrt(1 - Q)) / (sqrt(1 - Q) H(a(z)))

    Args:
      model: a perceptron, or a committee with infinitely many hidden units.
      alpha: patterns per weight.
      stabilities: (n,) values Delta, in standard deviations of a field.
      margin: kappa.

    Returns:
      An `EntropyResult` whose `value` is the density, (n,); zero below kappa; the rest as of `entropy` at alpha.

    Raises:
      ValueError: as `entropy`; if the machine has few hidden units; if `stabilities` is not (n,).

    Accuracy: that of the quadrature, about 1e-10. Reference: T. Kepler and L. Abbott, J. Phys. France 49, 1657 (1988).

    Example: without patterns the stability is normal.

    >>> import numpy as np
    >>> from jflat.replica import binary_perceptron, margin_distribution
    >>> margin_distribution(binary_perceptron(), 0.0, np.array([-0.1, 0.0])).value.round(4)  # and conditioned: 2 G(0)
    array([0.    , 0.7979])
    """
    check.require(model.is_gaussian, "margin_distribution", "model", "must have a Gaussian output field", model)
    check.require(np.ndim(stabilities) == 1, "margin_distribution", "stabilities", "must have shape (n,)", stabilities)
    result = entropy(model, alpha, margin=margin)
    with jax.enable_x64(True):
        Q = model.kernel(jnp.asarray(result.order.q, float))
        root, width = jnp.sqrt(Q), jnp.sqrt(1 - Q)
        delta = jnp.asarray(stabilities, Q.dtype)
        z, weight = gaussian_panels(legendre(ORDER), [(delta / root, width / root), (margin / root, width / root)])
        log_h = log_H((margin - root * z) / width)
        inside = jnp.exp(-(((delta[:, None] - root * z) / width) ** 2) / 2 - log_h) / width * _DENSITY
        density = jnp.where(delta >= margin, jnp.sum(weight * inside, axis=1), 0.0)
        return result._replace(value=np.asarray(density))


_LOG_2 = math.log(2.0)
_DENSITY = 1 / math.sqrt(2 * math.pi)


def _require_margin(where: str, model: Model, margin: float) -> None:
    check.require_number(where, "margin", margin)
    rule = "must be 0 with few hidden units"
    check.require(model.is_gaussian or margin == 0, where, "margin", rule, margin)


def _at_zero_entropy(model: Model, alphas: np.ndarray, margins: np.ndarray, solve_for: str) -> CapacityResult:
    """The zero of phi on a path: the segment where the sign changes becomes the next path, four times.

    So does the segment after the last positive value where the branch is lost there: near q = 1 phi is steep.
    """
    start, is_found = None, False
    for _ in range(5):
        curve, is_found = _along(model, alphas, margins, start), False
        solved = curve.status == Status.CONVERGED
        beyond = np.flatnonzero(solved & (curve.value <= 0))
        before = np.flatnonzero(solved & (curve.value > 0))
        before = before[before < beyond[0]] if beyond.size else before[before + 1 < len(solved)]
        if not before.size:
            break
        i = int(before[-1])
        j = i + 1 if solved[i + 1] or not beyond.size else int(beyond[0])
        ends = [i, j]
        is_found = bool(solved[j])
        (a0, a1), (k0, k1), (v0, v1), start = alphas[ends], margins[ends], curve.value[ends], curve.coordinates[i]
        alphas, margins = np.linspace(a0, a1, _CHUNK), np.linspace(k0, k1, _CHUNK)
    if not is_found:
        failed = jax.tree.map(lambda x: x[0], curve)
        return CapacityResult(
            np.asarray(np.nan), failed.order, failed.certificate, np.asarray(np.int32(Status.MAX_STEPS))
        )
    low, high = (a0, a1) if solve_for == "alpha" else (k0, k1)
    point = jax.tree.map(lambda x: x[i], curve)
    slope = (v1 - v0) / (high - low)
    certificate = point.certificate._replace(error=point.certificate.error / abs(slope) + (high - low) ** 2)
    return CapacityResult(np.asarray(low - v0 / slope), point.order, certificate, point.status)


def _weak_load(margin: float, most: float = 1e-2) -> float:
    """A load at which patterns with this margin constrain little: q is about alpha (G / H)^2 = 1e-3."""
    with jax.enable_x64(True):
        return min(most, 1e-3 / float(gaussian_hazard(jnp.float64(margin))) ** 2)


def _bisect(rising: Callable[[float], float], low: float = -40.0, high: float = 40.0) -> float:
    """The zero of a function that rises from low to high, to rounding."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


def _spherical_capacity(model: Model, margin: float) -> float:
    """Q'(1) / int_{-kappa}^inf Dt (t + kappa)^2; infinite where Q'(1) is."""
    slope = {"linear": 1.0, "relu": math.pi / (math.pi - 1)}.get(model.activation, math.inf)
    below = math.erfc(-margin / math.sqrt(2)) / 2
    return slope / ((1 + margin**2) * below + margin * math.exp(-(margin**2) / 2) * _DENSITY)


def _exact(value: float) -> CapacityResult:
    zero = np.zeros(())
    certificate = Certificate(zero, zero, np.int32(0))
    return CapacityResult(
        np.asarray(value), SphericalOrder(np.ones(())), certificate, np.asarray(np.int32(Status.CONVERGED))
    )

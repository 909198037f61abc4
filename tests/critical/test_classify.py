"""Gradient-flatness as a curve, and what a point is.

Oracles: NumPy's eigenvectors; identities (r of a truncated solution is F over 1 + |H||p|/|g|); the quartic toy, whose
points are known; the network with weight decay of specification B.5.1, where the origin's Hessian is 2 lambda / P and
its neighbouring saddle has the spectrum -r .. 2 r.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status, from_matrix
from jflat.critical.classify import Kind, classify
from jflat.critical.gradient_flatness import Norm, flatness_curve, flatness_curve_lanczos, newton_residuals
from jflat.data import Stream, split_batches

P = 24
DENSE = jax.jit(flatness_curve, static_argnames="cutoffs")
LANCZOS = jax.jit(flatness_curve_lanczos, static_argnames=("cutoffs", "num_steps"))
TAUS = (0.0, 1e-6, 1e-3, 0.1, 0.5, 1.0)


@pytest.fixture(scope="module")
def problem():
    """A spectrum from the kernel to 3, a gradient with parts in all of it, in float64."""
    rng = np.random.default_rng(0)
    spectrum = np.concatenate([np.zeros(4), 3e-4 * rng.normal(size=6), np.linspace(-1, 3, P - 10)])
    vectors = np.linalg.qr(rng.normal(size=(P, P)))[0]
    matrix = (vectors * spectrum) @ vectors.T
    return spectrum, vectors, (matrix + matrix.T) / 2, rng.normal(size=P)


def truth(problem, tau):
    spectrum, vectors, _, gradient = problem
    near = np.abs(spectrum) <= tau * 3 + 1e-14
    return np.linalg.norm(vectors[:, near].T @ gradient) / np.linalg.norm(gradient)


def test_the_curve_and_its_relatives(x64, problem):
    _, _, matrix, gradient = problem
    curve = DENSE(from_matrix(jnp.asarray(matrix)), jnp.asarray(gradient), TAUS[1:])
    assert int(curve.status) == Status.COMPLETED
    np.testing.assert_allclose(curve.fraction, [truth(problem, tau) for tau in TAUS[1:]], atol=1e-12)
    np.testing.assert_array_equal(curve.lower, curve.upper)
    assert curve.fraction[-1] == pytest.approx(1)
    image = matrix @ gradient
    np.testing.assert_allclose(curve.image, np.linalg.norm(image) / (3 * np.linalg.norm(gradient)), rtol=1e-12)
    np.testing.assert_allclose(curve.rayleigh, gradient @ image / (gradient @ gradient), rtol=1e-12)
    np.testing.assert_allclose([curve.norm, curve.gradient_norm], [3, np.linalg.norm(gradient)])
    assert Norm(int(curve.norm_kind)) is Norm.SPECTRAL
    assert np.all(1 - np.asarray(curve.fraction) ** 2 <= (curve.image / np.asarray(curve.cutoffs)) ** 2 + 1e-12)


@pytest.mark.slow  # python -m pytest -m slow tests/critical/test_classify.py
def test_the_lanczos_curve_is_bracketed_and_becomes_exact(x64, problem, key):
    _, _, matrix, gradient = problem
    operator, gradient, taus = from_matrix(jnp.asarray(matrix)), jnp.asarray(gradient), TAUS[1:]
    exact = np.array([truth(problem, tau) for tau in taus])
    widths = []
    for steps in (5, 12):
        curve = LANCZOS(operator, gradient, key, taus, num_steps=steps, norm=3.0)
        assert np.all(curve.lower <= exact + 1e-9)
        assert np.all(exact <= curve.upper + 1e-9)
        assert np.all((curve.lower <= curve.fraction) & (curve.fraction <= curve.upper))
        widths.append(np.asarray(curve.upper - curve.lower))
    assert widths[0][0] > 0.3  # 5 steps cannot tell 1e-6 from 3e-4, and say so
    assert widths[1][3] < 0.5 * widths[0][3]
    full = LANCZOS(operator, gradient, key, taus, num_steps=P)
    np.testing.assert_allclose(full.norm, 3, rtol=1e-6)
    np.testing.assert_allclose(full.fraction[2:], exact[2:], atol=1e-8)
    np.testing.assert_allclose([curve.image, curve.rayleigh], [full.image, full.rayleigh], rtol=1e-9)


def test_a_gradient_in_the_kernel_is_seen_by_one_product(x64, problem, key):
    """Its own Krylov space would take |H| for 0, and so nothing for flat."""
    _, vectors, matrix, _ = problem
    operator = from_matrix(jnp.asarray(matrix))
    curve = LANCZOS(operator, jnp.asarray(vectors[:, 0] + 1e-9 * vectors[:, -1]), key, (1e-3, 1e-6), num_steps=12)
    assert curve.norm > 2.5
    assert np.all(curve.lower > 0.999)
    assert curve.image < 1e-8


def test_r_of_a_truncated_solution_is_the_curve_over_its_length(x64, problem):
    spectrum, vectors, matrix, gradient = problem
    operator, tau = from_matrix(jnp.asarray(matrix)), 1e-3
    kept = np.abs(spectrum) > tau * 3
    step = -vectors[:, kept] @ ((vectors[:, kept].T @ gradient) / spectrum[kept])
    found = newton_residuals(operator, jnp.asarray(gradient), jnp.asarray(step), norm=3.0, norm_kind=Norm.SPECTRAL)
    size = 1 + 3 * np.linalg.norm(step) / np.linalg.norm(gradient)
    np.testing.assert_allclose(found.residual, truth(problem, tau) / size, rtol=1e-10)
    assert found.image < tau
    frobenius = np.linalg.norm(matrix)
    other = newton_residuals(
        operator, jnp.asarray(gradient), jnp.asarray(step), norm=frobenius, norm_kind=Norm.FROBENIUS
    )
    assert other.residual < found.residual
    assert Norm(int(other.norm_kind)) is Norm.FROBENIUS
    nothing = newton_residuals(operator, jnp.zeros(P), jnp.zeros(P), norm=0.0, norm_kind=Norm.SPECTRAL)
    assert (nothing.residual, nothing.image) == (0, 0)


def quartic(w, _):
    """Specification B.4."""
    x, y = w
    return x**4 / 4 - 3 * x**2 + 9 * x + 0.9 * y**4 + 5 * y**2 + 40


@functools.partial(jax.jit, static_argnums=0, static_argnames="cutoffs")
def classify_many(loss_fn, points, batch, **more):
    return jax.vmap(lambda w: classify(loss_fn, w, batch, **more))(points)


def test_the_points_of_the_quartic(x64):
    root = np.sqrt(2)
    points = jnp.array([[-3.0, 0.0], [root, 0.0], [-root, 0.0], [0.0, 1.0], [np.nan, 0.0]])
    found = classify_many(quartic, points, None)
    kinds = [Kind(int(k)) for k in found.kind]
    assert kinds == [Kind.CRITICAL, Kind.GRADIENT_FLAT, Kind.GRADIENT_FLAT, Kind.NEITHER, Kind.NEITHER]
    np.testing.assert_allclose(found.squared_gradient_norm[:3], [0, 11.1766235, 214.8233765], rtol=1e-7)
    np.testing.assert_allclose(found.loss[:2], [6.25, 47.7279], rtol=1e-6)
    np.testing.assert_array_equal(found.status, [Status.COMPLETED] * 4 + [Status.NON_FINITE])
    np.testing.assert_array_equal(found.index, [[0] * 3, [0] * 3, [0] * 3, [1] * 3, [-1] * 3])
    np.testing.assert_array_equal(found.nullity[1], [1, 1, 1])
    assert int(found.flatness.status[0]) == Status.ZERO_START
    assert not found.is_cutoff_sensitive.any()
    one = classify(quartic, points[1], None)  # eager, not batched
    assert Kind(int(one.kind)) is Kind.GRADIENT_FLAT
    np.testing.assert_allclose(one.relative_gradient, found.relative_gradient[1])


def test_each_test_of_criticality_alone_is_not_enough():
    """|g|^2 is small because the curvature is, far from the minimum; and a gradient is relatively small beside it."""

    def bowl(w, a):
        return a * jnp.sum((w - 1) ** 2) / 2

    one = jax.jit(lambda w, a: classify(bowl, w, a))
    flat = one(jnp.array([2.0, 2.0]), jnp.asarray(1e-7))
    assert flat.is_absolutely_critical
    assert not flat.is_relatively_critical
    np.testing.assert_allclose(flat.relative_gradient, 0.5, rtol=1e-6)
    assert Kind(int(flat.kind)) is Kind.NEITHER
    steep = one(jnp.array([1 + 2e-7, 1.0]), jnp.asarray(1e6))
    assert steep.is_relatively_critical
    assert not steep.is_absolutely_critical
    assert Kind(int(steep.kind)) is Kind.NEITHER


def decayed_network(flat, batch, lam=0.1, depth=3, width=3):
    """Cross-entropy of a bias-free Swish network with depth layers, and lam times the mean square of the weights."""
    inputs, labels = batch
    sizes = [inputs.shape[1], *[width] * (depth - 1), 2]
    hidden, start = inputs, 0
    for i in range(depth):
        size = sizes[i] * sizes[i + 1]
        weights = flat[start : start + size].reshape(sizes[i], sizes[i + 1])
        hidden, start = (jax.nn.silu(hidden) if i else hidden) @ weights, start + size
    picked = jnp.take_along_axis(jax.nn.log_softmax(hidden), labels[:, None], 1)
    return -jnp.mean(picked) + lam * jnp.mean(flat**2)


def test_the_published_bad_local_minimum_is_a_saddle(x64):
    """Specification E.8 (B.5.1): index 0 at an absolute cutoff of 1e-3, 1 at 1e-5; the origin itself is the minimum.

    Near the origin the loss is ln 2 + r |w|^2 / 2 - T(w), T of third order, r = 2 lam / P as published. At a stationary
    point of T on the sphere, |w| = r / (3 T(u)) is critical; along u the curvature is r - 2 r, and a Newton iteration
    goes there. Rotations of the hidden units leave the cubic form as it is: these eigenvalues are of order |w| r.
    """
    rng = np.random.default_rng(0)
    batch = (jnp.asarray(rng.normal(size=(20, 4))), jnp.asarray(rng.integers(0, 2, 20)))
    size = 4 * 3 + 3 * 3 + 3 * 2
    r = 1.7241e-4
    loss_fn = functools.partial(decayed_network, lam=r * size / 2)
    hess, grad = jax.jit(jax.hessian(loss_fn)), jax.jit(jax.grad(loss_fn))
    np.testing.assert_allclose(hess(jnp.zeros(size), batch), r * np.eye(size), atol=1e-16)

    u = rng.normal(size=size)
    for _ in range(300):
        u = u / np.linalg.norm(u)
        pull = r * u - np.asarray(grad(1e-5 * u, batch)) / 1e-5  # grad T of 1e-5 u, over 1e-5
        u = u / np.linalg.norm(u) + pull / np.linalg.norm(pull)
    u = u / np.linalg.norm(u)
    w = r / (pull @ u / 1e-5) * u
    for _ in range(20):
        w = w - np.linalg.lstsq(hess(w, batch), grad(w, batch), rcond=1e-9)[0]
    points = jnp.stack([jnp.zeros(size), jnp.asarray(w)])
    found = classify_many(loss_fn, points, batch, scale=float(np.linalg.norm(w)), cutoffs=(0.1, 0.03))
    assert [Kind(int(k)) for k in found.kind] == [Kind.CRITICAL, Kind.CRITICAL]
    np.testing.assert_array_equal(found.index, [[0, 0], [1, 1]])
    np.testing.assert_allclose(found.loss[0], np.log(2), rtol=1e-14)
    assert 0 < found.loss[1] - np.log(2) < 1e-8
    assert np.linalg.norm(w) > 1e-5
    values = np.linalg.eigvalsh(hess(w, batch))
    np.testing.assert_allclose(values[[0, -1]], [-r, 2 * r], rtol=0.01)
    assert np.sum(values < -1e-5) == 1
    assert np.sum(values < -1e-3) == 0  # an absolute cutoff above |H| hides it


def test_matrix_free_bounds_what_dense_knows(x64, key):
    rng = np.random.default_rng(1)
    batch = (jnp.asarray(rng.normal(size=(20, 4))), jnp.asarray(rng.integers(0, 2, 20)))
    w = jnp.asarray(rng.normal(size=27))
    dense = classify(decayed_network, w, batch)
    free = classify(decayed_network, w, batch, num_steps=15, key=key)
    assert dense.is_index_exact
    assert not free.is_index_exact
    assert np.all(free.index <= dense.index)
    assert free.index[0] >= 1
    np.testing.assert_array_equal(free.nullity, -1)
    assert np.all(free.flatness.lower <= dense.flatness.fraction + 1e-9)
    assert np.all(dense.flatness.fraction <= free.flatness.upper + 1e-9)
    np.testing.assert_allclose(free.norm, dense.norm, rtol=1e-3)
    np.testing.assert_allclose(free.relative_gradient, dense.relative_gradient, rtol=1e-3)
    assert int(free.num_matvecs) == 15 + 16
    halves = classify(decayed_network, w, split_batches(batch, 8))
    np.testing.assert_allclose(halves.flatness.fraction, dense.flatness.fraction, atol=1e-9)


def test_the_lanczos_curve_tells_an_asymmetric_operator(key):
    """Lanczos on it closes after three steps, and would say INVARIANT_SUBSPACE, exact."""
    skewed = jnp.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 3.0], [0.0, 0.0, 1.0]])
    found = LANCZOS(from_matrix(skewed), jnp.array([1.0, 2.0, 3.0]), key, (0.1,), num_steps=3)
    assert int(found.status) == Status.ASYMMETRIC
    assert np.isnan([found.fraction, found.lower, found.upper]).all()
    assert np.isnan([found.image, found.rayleigh]).all()
    good = LANCZOS(from_matrix(skewed + skewed.T), jnp.array([1.0, 2.0, 3.0]), key, (0.1,), num_steps=3)
    assert int(good.status) == Status.INVARIANT_SUBSPACE
    assert int(good.num_matvecs) == 3 + 2 + 3


def test_a_kink_makes_no_asymmetric_hessian_pass():
    """A custom derivative whose Jacobian is not symmetric: its status, and no kind."""

    @jax.custom_jvp
    def loss_fn(w):
        return jnp.sum(w)

    @loss_fn.defjvp
    def _(primals, tangents):
        (w,), (v,) = primals, tangents
        return jnp.sum(w), jnp.sum(jnp.array([w[1], 0.0]) * v)

    found = classify(lambda w, _: loss_fn(w), jnp.array([1.0, 0.0]), None)
    assert int(found.status) == Status.ASYMMETRIC
    assert int(found.kind) == Kind.NEITHER
    np.testing.assert_array_equal(found.index, -1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, w: classify(f, w, None, eps_absolute=0.0), "classify: eps_absolute must be finite and lie in"),
        (lambda f, w: classify(f, w, None, threshold=1.0), "classify: threshold must be below 1"),
        (lambda f, w: classify(f, w, None, cutoffs=()), "classify: cutoffs must have at least one"),
        (lambda f, w: classify(f, w, None, flat_cutoffs=(-1.0,)), "classify: flat_cutoffs must be finite"),
        (lambda f, w: classify(f, w, None, cutoffs=np.array([np.nan])), "classify: cutoffs must be finite"),
        (lambda f, w: jax.jit(lambda c: classify(f, w, None, cutoffs=c))(jnp.ones(1)), "cutoffs must be known, not tr"),
        (lambda f, w: classify(f, w.astype(jnp.bfloat16), None), "params must be float32 or float64; got bfloat16"),
        (lambda f, w: classify(f, jnp.zeros(0), None), "params must have at least one number"),
        (
            lambda f, w: flatness_curve(from_matrix(jnp.eye(2, dtype=jnp.bfloat16)), w.astype(jnp.bfloat16)),
            "float32 or",
        ),
        (lambda f, w: classify(f, w, None, num_steps=3), "num_steps and key must be given together"),
        (lambda f, w: classify(f, w, None, num_steps=3, key=jax.random.key(0)), r"num_steps must lie in \[1, 2\]"),
        (lambda f, w: classify(f, w, None, scale=0.0), "classify: scale must be finite"),
        (lambda f, w: classify(f, w, Stream([w])), "classify: batch must be in memory"),
        (lambda f, w: classify(f, jnp.ones(2, jnp.int32), None), "params must be a real floating-point array"),
        (lambda f, w: classify(lambda w, b: w, w, None), "loss_fn must return one scalar"),
        (lambda f, w: flatness_curve(from_matrix(jnp.eye(3)), w), r"gradient must have shape \(3,\)"),
        (
            lambda f, w: newton_residuals(from_matrix(jnp.eye(2)), w, w, norm=1.0, norm_kind="spectral"),
            "norm_kind must be a Norm; got 'spectral'",
        ),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(quartic, jnp.ones(2))

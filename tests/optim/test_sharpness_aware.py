"""SAM and ASAM.

Oracles: closed forms of the perturbation, the naive two-gradient step, invariance of ASAM under
rescaling, and the exact reduction to the base optimiser at rho = 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat.optim import adaptive_sam, sam, sharpness_aware_gradient


def loss_fn(params):
    return jnp.sum(jnp.cos(params["w"]) * jnp.array([1.0, 2.0, 3.0])) + params["b"] ** 4 + params["w"][0] * params["b"]


PARAMS = {"w": jnp.array([0.5, -1.0, 2.0]), "b": jnp.array(0.7)}


def perturbation(tx, params, loss_fn):
    """The point at which grad_fn is asked, minus the parameters."""
    asked = []

    def grad_fn(p, i):
        asked.append(p)
        return jax.grad(loss_fn)(p)

    tx.update(jax.grad(loss_fn)(params), tx.init(params), params, grad_fn=grad_fn)
    assert len(asked) == 1
    return jax.tree.map(jnp.subtract, asked[0], params)


def trajectory(tx, num_steps=4):
    def step(carry, _):
        params, state = carry
        grad_fn = lambda p, i: jax.grad(loss_fn)(p)  # noqa: E731
        updates, state = tx.update(grad_fn(params, 0), state, params, grad_fn=grad_fn)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=num_steps)[1])(PARAMS)


def naive(rho, eta, momentum=0.9, rate=0.05, num_steps=4):
    """2010.01412 Algorithm 1 (eta None) and 2102.11600 equation 7, over one flat vector, derivatives by hand."""

    def grad(v):
        g = -np.sin(v[:3]) * np.array([1.0, 2.0, 3.0])
        return np.array([g[0] + v[3], g[1], g[2], 4 * v[3] ** 3 + v[0]])

    v, buffer, path = np.array([0.5, -1.0, 2.0, 0.7]), np.zeros(4), []
    for _ in range(num_steps):
        scale = np.ones(4) if eta is None else np.abs(v) + eta
        g = grad(v)
        buffer = momentum * buffer + grad(v + rho * scale**2 * g / np.linalg.norm(scale * g))
        v = v - rate * buffer
        path.append(v)
    return np.array(path)


@pytest.mark.parametrize("eta", [None, 0.01])
def test_the_step_is_the_naive_one(eta):
    base = optax.sgd(0.05, momentum=0.9)
    tx = sam(base, rho=0.3) if eta is None else adaptive_sam(base, rho=0.3, eta=eta)
    path = trajectory(tx)
    flat = jnp.concatenate([path["w"], path["b"][:, None]], 1)
    np.testing.assert_allclose(flat, naive(0.3, eta), rtol=2e-5)
    assert np.abs(naive(0.3, eta) - naive(0.0, eta)).max() > 1e-2  # SGD would not pass


def test_the_perturbation_has_length_rho_along_the_gradient():
    grads = jax.grad(loss_fn)(PARAMS)
    norm = optax.tree.norm(grads)
    got = perturbation(sharpness_aware_gradient(rho=0.05), PARAMS, loss_fn)
    for a, g in zip(jax.tree.leaves(got), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, 0.05 * g / norm, rtol=1e-4, atol=1e-6)
    masked = perturbation(sharpness_aware_gradient(rho=0.05, mask={"w": True, "b": False}), PARAMS, loss_fn)
    assert float(masked["b"]) == 0
    assert float(jnp.linalg.norm(masked["w"])) == pytest.approx(0.05, rel=1e-4)
    by_function = sharpness_aware_gradient(rho=0.05, mask=lambda p: jax.tree.map(lambda x: x.ndim > 0, p))
    np.testing.assert_array_equal(perturbation(by_function, PARAMS, loss_fn)["w"], masked["w"])


def test_adaptive_perturbation_is_invariant_under_rescaling():
    """f(u v) is unchanged by u -> c u, v -> v/c; so is the loss at ASAM's point, and not at SAM's."""

    def product_loss(params):
        return jnp.sum((params["u"] * params["v"] - 2.0) ** 2)

    def perturbed_loss(tx, c):
        params = {"u": c * jnp.array([1.0, -0.5]), "v": jnp.array([0.7, 0.3]) / c}
        return float(product_loss(jax.tree.map(jnp.add, params, perturbation(tx, params, product_loss))))

    adaptive = sharpness_aware_gradient(rho=0.5, is_adaptive=True, eta=0.0)
    assert perturbed_loss(adaptive, 8.0) == pytest.approx(perturbed_loss(adaptive, 1.0), rel=1e-5)
    plain = sharpness_aware_gradient(rho=0.5)
    assert perturbed_loss(plain, 8.0) != pytest.approx(perturbed_loss(plain, 1.0), rel=1e-2)


@pytest.mark.parametrize("rho", [0.0, jnp.zeros(()), lambda count: 0.0], ids=["number", "array", "schedule"])
def test_zero_radius_is_the_base_optimiser_bit_for_bit(rho):
    base = optax.sgd(0.05, momentum=0.9)
    for tx in (sam(base, rho=rho), adaptive_sam(base, rho=rho)):
        jax.tree.map(np.testing.assert_array_equal, trajectory(tx), trajectory(optax.with_extra_args_support(base)))


def test_a_schedule_of_the_radius_counts_calls():
    tx = sam(optax.sgd(0.05), rho=lambda count: jnp.where(count < 2, 0.0, 0.5))
    plain, grown = trajectory(optax.with_extra_args_support(optax.sgd(0.05))), trajectory(tx)
    np.testing.assert_array_equal(grown["w"][:2], plain["w"][:2])
    assert float(jnp.abs(grown["w"][2] - plain["w"][2]).max()) > 1e-3


def test_zero_gradient_gives_no_nan_and_no_perturbation():
    params = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    for tx in (sharpness_aware_gradient(), sharpness_aware_gradient(is_adaptive=True, eta=0.0)):
        got = perturbation(tx, params, lambda p: jnp.sum(p["w"] ** 2) + p["b"] ** 2)
        assert all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(got))


def test_small_gradients_in_float16_do_not_overflow():
    params = jnp.ones(3, jnp.float16)
    got = perturbation(sharpness_aware_gradient(rho=0.5), params, lambda p: jnp.sum(p) * jnp.float16(1e-6))
    np.testing.assert_allclose(got.astype(jnp.float32), 0.5 / 3**0.5, rtol=4e-3)  # roundings of 2^-10 at 1.3


def test_extra_arguments_pass_through_to_the_base():
    def update(updates, state, params=None, *, value, **extra_args):
        return jax.tree.map(lambda u: value * u, updates), state

    base = optax.GradientTransformationExtraArgs(lambda params: (), update)
    grad_fn = lambda p, i: jax.grad(loss_fn)(p)  # noqa: E731
    for tx in (sam(base), optax.chain(sharpness_aware_gradient(), base)):
        grads = grad_fn(PARAMS, 0)
        once, _ = tx.update(grads, tx.init(PARAMS), PARAMS, grad_fn=grad_fn, value=1.0)
        thrice, _ = tx.update(grads, tx.init(PARAMS), PARAMS, grad_fn=grad_fn, value=3.0)
        np.testing.assert_allclose(thrice["w"], 3 * once["w"], rtol=1e-6)


def test_refused_input():
    with pytest.raises(ValueError, match="sam: rho must be finite"):
        sam(optax.sgd(0.1), rho=-1.0)
    with pytest.raises(ValueError, match="adaptive_sam: eta must be finite"):
        adaptive_sam(optax.sgd(0.1), eta=-1.0)

"""Oracles: the parts called alone; the rescaling symmetry of ReLU networks (the same function)."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.data import split_batches
from jflat.flatness import flatness_card, hessian_summary, local_energy, local_entropy, sharpness, summary
from jflat.losses import accuracy_error, cross_entropy, on_model


def network(params, x):
    return jax.nn.relu(x @ params["first"]) @ params["second"]


LOSS_FN, ERROR_FN = on_model(cross_entropy, network), on_model(accuracy_error, network)
KEY = jax.random.key(20211)
OPTIONS = {
    "sigmas": (0.1, 0.5),
    "num_samples": 20,
    "num_probes": 4,
    "max_ascent_steps": 20,
    "beta": 100.0,
    "num_steps": 2,
    "burn_in": 1,
    "num_leapfrog": 2,
    "num_chains": 2,
    "num_nodes": 3,
}


def make(seed=0):
    rng = np.random.default_rng(seed)
    dtype = jnp.zeros(()).dtype
    params = {"first": rng.normal(size=(3, 4)), "second": rng.normal(size=(4, 3))}
    x, y = rng.normal(size=(11, 3)), rng.integers(3, size=11)
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), params), (jnp.asarray(x, dtype), jnp.asarray(y, jnp.int32))


def index(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


@pytest.fixture(scope="module")
def cards():
    """A solution, the same at half the size, and one of NaN: their cards in one program, and the number of traces."""
    calls = []

    def counted(params, batch):
        calls.append(1)
        return LOSS_FN(params, batch)

    params, data = make()
    stacked = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a, a * jnp.nan]), params)
    run = jax.jit(jax.vmap(functools.partial(flatness_card, counted, ERROR_FN, **OPTIONS), in_axes=(0, None, None)))
    run(jax.tree.map(jnp.negative, stacked), data, jax.random.key(1))
    traced = len(calls)
    assert traced < 20
    cards = run(stacked, data, KEY)
    assert len(calls) == traced, "new values must not trace the loss again"
    return cards


@pytest.mark.slow  # python -m pytest -m slow tests/flatness/test_card.py
def test_batched_cards_equal_the_card_of_one_solution_on_short_batches(cards):
    params, data = make()
    alone = jax.jit(functools.partial(flatness_card, LOSS_FN, ERROR_FN, **OPTIONS))(params, split_batches(data, 4), KEY)
    chex.assert_trees_all_close(index(cards, 0), alone, rtol=2e-3, atol=1e-4)


def test_a_failing_solution_is_reported_in_every_part_and_leaves_its_neighbours_alone(cards):
    assert int(cards.status[2]) == Status.NON_FINITE
    for part in (cards.local_energy, cards.sharpness, cards.adaptive_sharpness, cards.hessian, cards.local_entropy):
        assert int(part.status[2]) == Status.NON_FINITE
        assert int(part.status[0]) != Status.NON_FINITE


def test_the_card_holds_what_the_parts_say(cards):
    params, data = make()
    card = index(cards, 0)
    keys = jax.random.split(KEY, 3)

    @jax.jit
    def parts(params):
        energy = local_energy(ERROR_FN, params, data, keys[0], sigmas=(0.1, 0.5), num_samples=20)
        ball = sharpness(LOSS_FN, params, data, rho=0.05, max_steps=20)
        return energy, ball, hessian_summary(LOSS_FN, params, data, keys[1], num_probes=4)

    energy, ball, curvature = parts(params)
    chex.assert_trees_all_close(card.local_energy, energy, atol=1e-5)
    np.testing.assert_allclose(card.sharpness.value, ball.value, rtol=1e-3)
    np.testing.assert_allclose(card.hessian.trace, curvature.trace, rtol=1e-3)
    np.testing.assert_allclose(card.loss, LOSS_FN(params, data), rtol=1e-5)
    np.testing.assert_allclose(card.metric, ERROR_FN(params, data), rtol=1e-5)
    gradient = jax.flatten_util.ravel_pytree(jax.grad(LOSS_FN)(params, data))[0]
    np.testing.assert_allclose(card.gradient_norm, jnp.linalg.norm(gradient), rtol=1e-5)
    assert not jnp.allclose(card.sharpness.value, card.adaptive_sharpness.value, rtol=0.1)


def test_summary_prints_values_with_errors_and_names_what_failed(cards):
    card = index(cards, 0)
    text = summary(card)
    for name in ("loss", "local energy, sigma = 0.5", "ASAM's", "Hessian trace / P", "local entropy", "status"):
        assert name in text
    assert f"{float(card.hessian.trace):.4g} +- {float(card.hessian.trace_stderr):.4g}" in text
    assert "status of Hessian" in summary(index(cards, 2))
    assert "local entropy" not in summary(card._replace(local_entropy=None))
    with pytest.raises(ValueError, match="summary: card must be one solution's, not a batch"):
        summary(cards)


@functools.partial(jax.jit, static_argnames="eta")
def measures(params, data, key, eta=0.0):
    """Every measure of the table in the package's docstring; local entropy relative to the loss, which is the same."""
    energy = functools.partial(local_energy, LOSS_FN, params, data, key, sigmas=(0.1, 0.3), num_samples=10)
    ball = sharpness(LOSS_FN, params, data, rho=0.1, max_steps=200)
    adaptive = sharpness(LOSS_FN, params, data, rho=0.3, is_adaptive=True, eta=eta, max_steps=200)
    curvature = hessian_summary(LOSS_FN, params, data, key, num_probes=200)
    entropy = local_entropy(LOSS_FN, params, data, key, gamma=10.0, beta=100.0, num_nodes=4, chunk_size=8)
    return {
        "multiplicative": energy().samples,
        "filter": energy(noise="filter").samples,
        "additive": energy(noise="additive").samples,
        "adaptive": jnp.stack([adaptive.value, adaptive.sam_value]),
        "sharpness": ball.value,
        "sam": ball.sam_value,
        "top eigenvalue": curvature.top_eigenvalue,
        "trace": curvature.trace,
        "entropy": entropy.value - LOSS_FN(params, data),
        "entropy's error": entropy.stderr,
    }


LAYERWISE = jnp.full(4, 3.0)
UNITWISE = jnp.array([4.0, 0.2, 1.0, 4.0])
INVARIANT = {"layers": {"multiplicative", "filter", "adaptive"}, "units": {"multiplicative", "adaptive"}}


@pytest.mark.parametrize(("kind", "factors"), [("layers", LAYERWISE), ("units", UNITWISE)])
def test_the_table_of_invariances_under_relu_rescaling(kind, factors, x64):
    params, data = make()
    factors = jnp.asarray(factors, jnp.float64)
    rescaled = {"first": params["first"] * factors, "second": params["second"] / factors[:, None]}
    np.testing.assert_allclose(network(params, data[0]), network(rescaled, data[0]), rtol=1e-12)
    key = jax.random.key(4)
    before, after = measures(params, data, key), measures(rescaled, data, key)
    error = before.pop("entropy's error")
    for name in before:
        if name in INVARIANT[kind]:
            np.testing.assert_allclose(before[name], after[name], rtol=1e-6, err_msg=name)
        else:
            change = jnp.max(jnp.abs(after[name] / before[name] - 1))
            assert change > 0.05, (name, change)
    assert abs(after["entropy"] - before["entropy"]) > 4 * (error + after["entropy's error"])


def test_adaptive_sharpness_with_a_floor_is_not_invariant(x64):
    params, data = make()
    rescaled = {"first": params["first"] * 3, "second": params["second"] / 3}
    run = jax.jit(lambda p: sharpness(LOSS_FN, p, data, rho=0.3, is_adaptive=True, eta=0.5).value)
    assert abs(run(rescaled) / run(params) - 1) > 0.05

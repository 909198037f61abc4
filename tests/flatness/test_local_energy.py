"""Oracles: closed forms on quadratics; the definition, draw by draw in a Python loop; norms of filters."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status, tree
from jflat.data import split_batches
from jflat.flatness import local_energy, random_direction
from jflat.losses import accuracy_error, on_model

CURVATURE = {"a": jnp.array([[3.0, 1.0], [0.5, 2.0], [1.0, 4.0]]), "b": jnp.array([1.0, 2.0])}
POINT = {"a": jnp.array([[1.0, -2.0], [0.5, 1.0], [2.0, 0.1]]), "b": jnp.array([3.0, -1.0])}
SIGMAS = jnp.array([0.0, 0.1, 0.5])


def quadratic(w, a):
    return 0.5 * sum(jnp.sum(a[k] * w[k] ** 2) for k in w)


def exact(noise):
    a, w = (np.asarray(t["a"], float) for t in (CURVATURE, POINT))
    c, v = (np.asarray(t["b"], float) for t in (CURVATURE, POINT))
    if noise == "multiplicative":
        return 0.5 * (np.sum(a * w**2) + np.sum(c * v**2))
    if noise == "additive":
        return 0.5 * (np.sum(a) + np.sum(c))
    return 0.5 * (np.sum(a * np.mean(w**2, axis=0)) + np.sum(c) * np.mean(v**2))


@functools.partial(jax.jit, static_argnames=("noise", "num_samples", "chunk_size"))
def measure(params, key, sigmas=SIGMAS, noise="multiplicative", num_samples=4000, chunk_size=500):
    return local_energy(
        quadratic, params, CURVATURE, key, sigmas=sigmas, noise=noise, num_samples=num_samples, chunk_size=chunk_size
    )


@pytest.mark.parametrize("noise", ["multiplicative", "additive", "filter"])
def test_closed_form_of_a_quadratic(noise, key):
    result = measure(POINT, key, noise=noise)
    expected = SIGMAS**2 * exact(noise)
    assert jnp.all(jnp.abs(result.mean - expected) <= 4 * result.stderr)
    # Tight enough to tell the three kinds of noise apart, at the largest sigma.
    others = [0.25 * exact(n) for n in ("multiplicative", "additive", "filter") if n != noise]
    assert all(abs(result.mean[-1] - other) > 5 * result.stderr[-1] for other in others)
    assert result.mean[0] == 0
    assert result.stderr[0] == 0
    assert int(result.status) == Status.COMPLETED
    assert result.samples.shape == (3, 4000)
    np.testing.assert_allclose(result.reference, quadratic(POINT, CURVATURE))


def test_samples_follow_the_definition_with_common_random_numbers(key):
    result = measure(POINT, key, num_samples=3)
    for i in range(3):
        d = random_direction(jax.random.fold_in(key, i), POINT)
        for j, sigma in enumerate(SIGMAS):
            moved = jax.tree.map(lambda w, d, s=sigma: w + s * d, POINT, d)
            expected = quadratic(moved, CURVATURE) - quadratic(POINT, CURVATURE)
            np.testing.assert_allclose(result.samples[j, i], expected, rtol=1e-5, atol=1e-5)


def test_more_draws_extend_fewer_and_chunks_do_not_matter(key):
    few, many = measure(POINT, key, num_samples=3), measure(POINT, key, num_samples=8, chunk_size=3)
    np.testing.assert_allclose(few.samples, many.samples[:, :3], rtol=1e-5, atol=1e-5)
    one_by_one = measure(POINT, key, num_samples=8, chunk_size=None)
    np.testing.assert_allclose(one_by_one.samples, many.samples, rtol=1e-5, atol=1e-5)


def test_stderr_is_the_spread_over_keys():
    means = jax.vmap(lambda k: measure(POINT, k, num_samples=20, chunk_size=20))(
        jax.random.split(jax.random.key(5), 400)
    )
    # The spread of 400 means has a relative error 1/sqrt(800) = 3.5%.
    ratio = jnp.sqrt(jnp.mean(means.stderr[:, 1] ** 2)) / jnp.std(means.mean[:, 1])
    assert abs(ratio - 1) < 0.15


def test_directions_have_the_norms_of_the_filters(key):
    params = {"kernel": jnp.arange(1.0, 25).reshape(2, 3, 4), "bias": jnp.array([3.0, 4.0]), "scale": jnp.asarray(2.0)}
    draw = jax.jit(jax.vmap(lambda k: random_direction(k, params, noise="filter")))
    d = draw(jax.random.split(key, 4000))
    # |d_f|^2 is |w_f|^2 chi^2_n / n: relative error of the mean of 4000 is sqrt(2 / (4000 n)) <= 2.3%.
    np.testing.assert_allclose(
        jnp.mean(jnp.sum(d["kernel"] ** 2, axis=(1, 2)), axis=0), jnp.sum(params["kernel"] ** 2, axis=(0, 1)), rtol=0.07
    )
    np.testing.assert_allclose(jnp.mean(jnp.sum(d["bias"] ** 2, axis=1)), 25.0, rtol=0.07)
    np.testing.assert_allclose(jnp.mean(d["scale"] ** 2), 4.0, rtol=0.1)


@pytest.mark.parametrize(
    "mask",
    [
        {"layer": {"kernel": True, "scale": False}, "out": True},
        tree.mask_by_path(lambda path: "layer/scale" not in path),
    ],
)
def test_masked_leaves_stay_and_the_others_keep_their_draws(mask, key):
    params = {"layer": {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}, "out": jnp.ones(3)}
    all_of_it, part = random_direction(key, params), random_direction(key, params, mask=mask)
    assert jnp.all(part["layer"]["scale"] == 0)
    chex.assert_trees_all_equal(part["out"], all_of_it["out"])
    chex.assert_trees_all_equal(part["layer"]["kernel"], all_of_it["layer"]["kernel"])
    prefix = random_direction(key, params, mask={"layer": False, "out": True})
    assert jnp.all(prefix["layer"]["kernel"] == 0)
    energy_fn = lambda p, _: jnp.sum(p["layer"]["scale"] ** 2)  # noqa: E731
    result = local_energy(energy_fn, params, None, key, sigmas=[1.0], num_samples=2, mask=mask)
    assert jnp.all(result.samples == 0)


def test_a_short_last_batch_counts_by_its_size(key):
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(7, 3)), jnp.float32), jnp.asarray(rng.integers(3, size=7), jnp.int32)
    w = jnp.asarray(rng.normal(size=(3, 3)), jnp.float32)
    error_fn = on_model(accuracy_error, lambda w, x: x @ w)
    run = jax.jit(lambda batches: local_energy(error_fn, w, batches, key, sigmas=[0.5, 1.0], num_samples=20))
    whole, cut = run(data), run(split_batches(data, 3))
    np.testing.assert_allclose(whole.samples, cut.samples, atol=1e-6)
    assert jnp.any(whole.samples != 0)


def test_jit_equals_eager_and_vmap_equals_loop(key):
    eager = local_energy(quadratic, POINT, CURVATURE, key, sigmas=[0.1, 0.5], num_samples=5)
    chex.assert_trees_all_close(eager, measure(POINT, key, jnp.array([0.1, 0.5]), num_samples=5), rtol=1e-5, atol=1e-5)
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), POINT)
    batched = jax.vmap(lambda p: measure(p, key, num_samples=5))(stacked)
    for i in range(2):
        alone = measure(jax.tree.map(lambda x, i=i: x[i], stacked), key, num_samples=5)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], batched), alone, rtol=1e-5, atol=1e-5)


def test_nan_parameters_are_reported_even_where_the_error_rate_is_finite(key):
    count = lambda p, _: jnp.mean(p["b"] > 1, dtype=jnp.float32)  # noqa: E731
    bad = {**POINT, "b": jnp.array([jnp.nan, 1.0])}
    result = local_energy(count, bad, None, key, sigmas=[0.0], num_samples=2)
    assert jnp.isfinite(result.mean[0])
    assert int(result.status) == Status.NON_FINITE
    assert int(measure(bad, key, num_samples=3).status) == Status.NON_FINITE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": [-0.1]}, "local_energy: sigmas must be finite and lie in"),
        ({"sigmas": []}, "local_energy: sigmas must be a non-empty vector"),
        ({"sigmas": 0.1}, "local_energy: sigmas must be a non-empty vector"),
        ({"num_samples": 1}, "local_energy: num_samples must be at least 2; got 1"),
        ({"noise": "gaussian"}, "local_energy: noise must be one of 'multiplicative', 'additive', 'filter'"),
        ({"chunk_size": 0}, "local_energy: chunk_size must be at least 1"),
        ({"mask": {"c": True}}, "local_energy: mask must be a tree of booleans"),
        ({"mask": lambda path: 1.0}, "local_energy: mask must give Python booleans; got 1.0"),
    ],
)
def test_bad_arguments_are_refused(change, message, key):
    with pytest.raises(ValueError, match=message):
        local_energy(quadratic, POINT, CURVATURE, key, **{"sigmas": [0.1], **change})


def test_a_metric_of_samples_is_refused(key):
    with pytest.raises(ValueError, match="local_energy: metric_fn must return one scalar"):
        local_energy(lambda p, _: p["b"], POINT, None, key, sigmas=[0.1])

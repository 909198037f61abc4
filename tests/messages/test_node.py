"""Messages of one node. Oracles: SciPy's log_ndtr in float64; all 2^K votes; the exact sign node by counting."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_ndtr, ndtr, ndtri

from jflat.messages import node


def rows(seed, width, num=60, n=40):
    """Rows of n weights whose s is `width`, at stabilities from -12 to 6: (x, m, mu, s^2, stability) in float64."""
    rng = np.random.default_rng(seed)
    stability = np.linspace(-12, 6, num)[:, None]
    x = rng.choice([-1.0, 1.0], size=(num, n))
    return x, np.tanh(2 * rng.normal(size=(num, n))), stability * width, np.full((num, 1), width**2), stability


def oracle(x, m, mean, variance, field):
    def value(a):
        return log_ndtr(a) if field is None else np.logaddexp(field + log_ndtr(a), log_ndtr(-a) - field)

    s = np.sqrt(variance - x**2 * (1 - m**2))
    a, e = (mean - x * m) / s, x / s
    return (value(a + e) - value(a - e)) / 2, np.abs(e)


def single(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


@pytest.mark.parametrize("field", [None, 0.0, 0.5, 3.0, 20.0])
@pytest.mark.parametrize("width", [1.3, 5.0, 30.0])
def test_exact_messages_lose_no_digits_in_the_tails(field, width):
    x, m, mean, variance, _ = rows(0, width)
    want, _ = oracle(x, m, mean, variance, field)
    h = None if field is None else jnp.full_like(jnp.asarray(mean, jnp.float32), field)
    got = np.asarray(node.exact_messages(*single(x, m, 1 - m**2, mean, variance), h))
    # rounding of two logarithms of size |a|^2 / 2, against a message of about |e| max(1, |a|)
    np.testing.assert_array_less(np.abs(got - want), 4e-7 * (1 + (mean / width) ** 2) + 2e-5 * np.abs(want))
    assert np.abs(want).max() > 0.002 or field == 0


def test_exact_messages_in_float64_and_far_out(x64):
    x, m, mean, variance, _ = rows(1, 2.0)
    for scale in (1.0, 30.0):
        want, _ = oracle(x, m, scale * mean, variance, None)
        got = node.exact_messages(*map(jnp.asarray, (x, m, 1 - m**2, scale * mean, variance)), None)
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-13)
    assert np.abs(want).max() > 200  # no saturation


@pytest.mark.parametrize("field", [None, 0.0, 0.3, 1.0, 3.0, 10.0])
def test_series_within_their_limit(field):
    for width in (5.0, 8.0, 20.0, 60.0):
        x, m, mean, variance, stability = rows(2, width)
        want, step = oracle(x, m, mean, variance, field)
        a = jnp.asarray(stability, jnp.float32)
        h = None if field is None else jnp.full_like(a, field)
        inside = np.asarray(1 / width <= node.series_limit(a, h) * 1.0001)[:, 0]
        got = node.series_messages(
            *single(x, m, 1 - m**2), a, *single(1 / np.sqrt(variance)), node.series_coefficients(a, h)
        )
        error = np.abs(got - want) / (step + np.abs(want))
        assert error[inside].max(initial=0) < (8e-6 if field is None else 4e-5)
    assert inside.any()


@pytest.mark.parametrize("units", [1, 3, 5])
def test_majority_against_all_votes(units):
    rng = np.random.default_rng(units)
    stability = rng.normal(size=(7, units)) * 2
    fields, log_z = node.majority(jnp.asarray(stability, jnp.float32))
    p = ndtr(stability)
    won = np.zeros((7, units, 2))
    total = np.zeros(7)
    for votes in itertools.product([0, 1], repeat=units):
        if 2 * sum(votes) < units:
            continue
        each = np.where(votes, p, 1 - p)
        total += each.prod(1)
        for unit, vote in enumerate(votes):
            won[:, unit, vote] += np.delete(each, unit, axis=1).prod(1)
    np.testing.assert_allclose(log_z, np.log(total), rtol=2e-5, atol=2e-6)
    if units == 1:
        assert fields is None
    else:
        np.testing.assert_allclose(fields, np.log(won[..., 1] / won[..., 0]) / 2, rtol=2e-5, atol=2e-6)


def test_majority_of_hopeless_units_stays_finite():
    fields, log_z = node.majority(jnp.array([[-30.0, -30.0, 30.0], [-40.0, -41.0, -42.0]]))
    assert np.all(np.isfinite(fields))
    assert np.all(np.isfinite(log_z))
    np.testing.assert_allclose(log_z[0], log_ndtr(-30) + np.log(2), rtol=1e-5)


def exact_sign_node(m):
    """u_i = (log P(sum > 0 | w_i = +) - log P(sum > 0 | w_i = -)) / 2 for means m (n,), n odd, by counting."""
    result = []
    for i in range(len(m)):
        law = np.ones(1)
        for p in (1 + np.delete(m, i)) / 2:
            law = np.append(law * (1 - p), 0) + np.append(0, law * p)
        half = (len(m) - 1) // 2  # + needs half of the others, - one more
        result.append(np.log(law[half:].sum() / law[half + 1 :].sum()) / 2)
    return np.array(result)


def test_gaussian_messages_approach_the_exact_sign_node_as_one_over_n():
    errors = []
    for n in (11, 41, 161):
        m = np.tanh(np.random.default_rng(3).normal(size=(1, n)) * 0.5)
        mean, variance = m.sum(1, keepdims=True), (1 - m**2).sum(1, keepdims=True)
        gauss = node.exact_messages(*single(np.ones_like(m), m, 1 - m**2, mean, variance), None)
        exact = exact_sign_node(m[0])
        errors.append(np.abs(gauss[0] - exact).max() / np.abs(exact).max())
    assert errors[0] < 0.03
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2


def test_majority_is_the_exact_sign_node():
    m = np.tanh(np.random.default_rng(4).normal(size=5))
    fields, _ = node.majority(jnp.asarray(ndtri((1 + m) / 2), jnp.float32))
    np.testing.assert_allclose(fields, exact_sign_node(m), rtol=1e-5, atol=1e-6)

"""The parity machine. Oracles: the maximum over d (the entropy of all solutions), averaging before the logarithm (a
bound for every alpha, exact to first order), exact enumeration."""

import itertools

import jax
import numpy as np
import pytest

from jflat.core import Status
from jflat.replica import franz_parisi, parity_machine

pytestmark = pytest.mark.slow  # one to four minutes: python -m pytest -m slow tests/replica

PARITY = parity_machine(2)


def bound(alpha, d):
    right = (1 + (2 / np.pi * np.arcsin(1 - 2 * d)) ** 2) / 2  # two weights with overlap 1 - 2 d have the same output
    return -d * np.log(d) - (1 - d) * np.log(1 - d) + alpha * np.log(right)


def test_typical_solutions_of_the_parity_machine_are_isolated():
    """Acceptance: a device without wide flat minima, as far as typical solutions go (`planted`)."""
    for alpha, nearest in ((0.2, 0.0005), (0.4, 0.003)):
        d = np.array([nearest, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7])
        result = franz_parisi(PARITY, alpha, d)
        assert (np.delete(result.status, 6) == Status.CONVERGED).all()
        assert result.certificate.gradient_norm[6] < 1e-4  # singular at 1/2, where the solution is forgotten
        assert result.certificate.error.max() < 1e-8
        assert (result.value <= bound(alpha, d) + 1e-9).all()
        assert (result.value[:2] < bound(alpha, d)[:2] - 1e-4).all()  # and it is not the bound itself
        assert result.value[0] < 0
        np.testing.assert_allclose(result.value[6], (1 - alpha) * np.log(2), atol=1e-8)
        np.testing.assert_allclose(result.value[7], result.value[5], atol=1e-9)
        np.testing.assert_allclose(result.slope[7], -result.slope[5], atol=1e-7)


def test_slope_is_the_derivative():
    d = 0.05 + np.array([-1e-4, 0.0, 1e-4])
    result = franz_parisi(PARITY, 0.4, d)
    np.testing.assert_allclose(result.slope[1], (result.value[2] - result.value[0]) / 2e-4, rtol=1e-4)


def test_enumeration_around_planted_solutions(key):
    """All pairs at distance 4 of N = 14 from a planted solution (any other is as good), 100 samples."""
    n, samples, flips = 14, 100, 4
    patterns = np.asarray(jax.random.normal(key, (samples, 5, 2, n // 2)))
    teacher = np.ones((2, n // 2))
    places = np.array(list(itertools.combinations(range(n), flips)))
    near = np.ones((len(places), n))
    np.put_along_axis(near, places, -1.0, axis=1)
    output = lambda w: np.sign(np.einsum("spkn,wkn->spwk", patterns, w)).prod(axis=-1)  # noqa: E731
    agree = (output(near.reshape(-1, 2, n // 2)) == output(teacher[None])).all(axis=1)
    number = np.log(agree.sum(axis=1) + 1e-9)
    # what patterns cost, against all configurations at that distance: both have corrections of order 1 / N
    cost = np.log(len(places)) - number[number > 0]
    d, alpha = flips / n, 5 / n
    theory = -d * np.log(d) - (1 - d) * np.log(1 - d) - franz_parisi(PARITY, alpha, [d]).value[0]
    assert abs(cost.mean() / n - theory) < 0.02 + 3 * cost.std() / n / np.sqrt(samples)


def test_malformed_requests_are_refused():
    assert franz_parisi(PARITY, 1.2, [0.1]).status.tolist() == [Status.UNPHYSICAL]
    with pytest.raises(ValueError, match="reference must be 'typical' for a parity machine"):
        franz_parisi(PARITY, 0.4, [0.1], reference=0.2)
    with pytest.raises(ValueError, match="model must have a Gaussian output field, or be the binary parity machine"):
        franz_parisi(parity_machine(3), 0.4, [0.1])

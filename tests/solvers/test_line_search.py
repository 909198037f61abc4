"""Armijo backtracking. Oracle: the rule itself, as a Python loop over the trial steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.solvers import backtracking


def merit(alpha, curvature=6.0):
    """m(0) = 1, m'(0) = -1; (1) with c holds for alpha <= 2 (1 - c) / curvature."""
    return 1 - alpha + curvature * alpha**2 / 2


def run(step_size=1.0, curvature=6.0, **settings):
    value, slope = jnp.asarray(1.0), jnp.asarray(-1.0)
    return backtracking(lambda a: merit(a, curvature), value, slope, step_size=step_size, **settings)


def naive(step_size, shrink, c, pure, max_trials, curvature):
    """(alpha, evaluations)."""
    steps = [step_size * shrink**n for n in range(max_trials)]
    trials = [(a, c) for a in steps] if pure is None else [(1.0, pure), *((a, c) for a in steps)]
    for number, (alpha, c) in enumerate(trials[:max_trials], 1):
        if merit(alpha, curvature) <= 1 - c * alpha:
            return alpha, number
    return 0.0, max_trials


@pytest.mark.parametrize("pure", [None, 0.3])
def test_the_rule(pure, x64):
    settings = {"shrink": 0.7, "sufficient_decrease": 0.05, "max_trials": 8}
    rng = np.random.default_rng(0)
    cases = [(float(s), float(c)) for s, c in zip(rng.uniform(0.1, 3, 40), 10 ** rng.uniform(-1, 2.5, 40), strict=True)]
    solve = jax.jit(jax.vmap(functools.partial(run, pure_decrease=pure, **settings)))
    result = solve(*(jnp.asarray(x) for x in zip(*cases, strict=True)))
    expected = [naive(s, 0.7, 0.05, pure, 8, c) for s, c in cases]
    np.testing.assert_allclose(result.step_size, [alpha for alpha, _ in expected], rtol=1e-12)
    np.testing.assert_array_equal(result.num_evaluations, [number for _, number in expected])
    found = np.asarray(result.step_size) > 0
    assert 0 < found.sum() < 40
    np.testing.assert_array_equal(result.status == Status.CONVERGED, found)
    np.testing.assert_array_equal(result.status == Status.STAGNATION, ~found)
    np.testing.assert_array_equal(result.value[~found], 1.0)
    is_pure = [pure is not None and number == 1 and alpha == 1 for alpha, number in expected]
    np.testing.assert_array_equal(result.is_pure, is_pure)
    assert any(is_pure) == (pure is not None)


def test_no_descent_and_nan():
    one = jnp.float32(1)
    uphill = backtracking(merit, one, one)
    assert (int(uphill.status), float(uphill.step_size), int(uphill.num_evaluations)) == (Status.STAGNATION, 0.0, 0)
    for value, slope in ((jnp.nan, -1.0), (1.0, jnp.nan)):
        result = backtracking(merit, jnp.float32(value), jnp.float32(slope))
        assert (int(result.status), float(result.step_size)) == (Status.NON_FINITE, 0.0)
    walled = backtracking(lambda a: jnp.where(a > 0.1, jnp.nan, 1 - a), one, -one)  # NaN is no step
    assert float(walled.step_size) == 0.0625
    pit = backtracking(lambda a: jnp.where(a > 0.1, -jnp.inf, 1 - a), one, -one)  # nor is minus infinity
    assert (float(pit.step_size), float(pit.value)) == (0.0625, 0.9375)


def test_the_slope_follows_the_value_and_half_precision_works():
    result = backtracking(
        lambda a: (1 - a) ** 2, jnp.bfloat16(1), jnp.float32(-2), step_size=4.0, sufficient_decrease=0.1
    )
    assert (float(result.step_size), result.value.dtype) == (1.0, jnp.bfloat16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_size": 0.0}, "step_size must"),
        ({"shrink": 1.0}, "shrink must"),
        ({"sufficient_decrease": 1.5}, "sufficient_decrease must"),
        ({"pure_decrease": 0.0}, "pure_decrease must"),
        ({"max_trials": 0}, "max_trials must"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        run(**settings)
    with pytest.raises(ValueError, match="merit_fn must"):
        backtracking(lambda a: jnp.ones(2), jnp.float32(1), jnp.float32(-1))
    with pytest.raises(ValueError, match="merit_fn must return one scalar, real floating-point"):
        backtracking(lambda a: jnp.complex64(1), jnp.float32(1), jnp.float32(-1))
    with pytest.raises(ValueError, match=r"value must be a real floating-point scalar; got int32\[\]"):
        backtracking(lambda a: 1 - a, jnp.int32(1), jnp.int32(-1))
    with pytest.raises(ValueError, match=r"slope must be a real floating-point scalar; got float32\[2\]"):
        backtracking(lambda a: 1 - a, jnp.float32(1), -jnp.ones(2))

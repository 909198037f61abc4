"""Gaussian tails and log cosh. Oracle: series and continued fraction in 60-digit decimal arithmetic."""

import math
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special as scipy_special

from jflat.core.special import gauss_hermite, gaussian_hazard, log_2cosh, log_H

POINTS = [-1000.0, -30.0, -5.5, -1.0, -1e-3, 0.0, 0.3, 2.0, 2.99, 3.01, 6.99, 7.01, 10.0, 40.0, 1000.0]
TOLERANCE = {jnp.float32: 1e-5, jnp.float64: 1e-12}


def tail(x):
    """(log H, h, h', h'') at a float, in 60 digits: H by its series below 7, by 400 terms of the fraction above."""
    with localcontext() as context:
        context.prec = 60
        x = Decimal(x)
        pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
        density = (-x * x / 2).exp() / (2 * pi).sqrt()
        if x < -20:  # H = 1 - G(x) / h(-x)
            lower = density / tail_fraction(-x)
            return tuple(map(float, (-lower, density, -x * density, (x * x - 1) * density)))
        if x < 7.005:  # H = 1/2 - G sum x^(2n+1) / (2n+1)!!
            term = total = x
            for n in range(1, 600):
                term = term * x * x / (2 * n + 1)
                total += term
            H = Decimal("0.5") - density * total
            hazard, log_h = density / H, H.ln()
        else:
            hazard = tail_fraction(x)
            log_h = -x * x / 2 - (2 * pi).ln() / 2 - hazard.ln()
        first = hazard * (hazard - x)
        second = first * (2 * hazard - x) - hazard
        return tuple(float(value) for value in (log_h, hazard, first, second))


def tail_fraction(x):
    fraction = x
    for n in range(400, 0, -1):
        fraction = x + n / fraction
    return fraction


def derivatives(fn, x):
    first = jax.grad(fn)
    return [jax.jit(jax.vmap(f))(x) for f in (fn, first, jax.grad(first))]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_tails_and_their_derivatives(x64, dtype):
    x = jnp.asarray(POINTS, dtype)
    want = np.array([tail(float(value)) for value in x]).T
    tiny = float(jnp.finfo(dtype).tiny)  # below it numbers are flushed to zero
    for fn, oracle in [(log_H, (want[0], -want[1], -want[2])), (gaussian_hazard, want[1:])]:
        for order, (value, expected) in enumerate(zip(derivatives(fn, x), oracle, strict=True)):
            assert value.dtype == dtype
            rtol = TOLERANCE[dtype] * (100 if fn is gaussian_hazard and order == 2 else 1)
            np.testing.assert_allclose(value, expected, rtol=rtol, atol=1e3 * tiny)


def test_log_ndtr_would_not_do():
    """The baseline loses the first derivative in float32 where ours has all its digits."""
    x = jnp.float32(1000.0)
    wrong = -jax.grad(lambda x: jax.scipy.special.log_ndtr(-x))(x)
    assert abs(wrong / 1000.001 - 1) > 1e-3
    np.testing.assert_allclose(-jax.grad(log_H)(x), 1000.001, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_log_cosh_and_its_derivatives(x64, dtype):
    x = jnp.asarray([-1000.0, -30.0, -3.0, -1e-4, 0.0, 0.5, 12.0, 1000.0], dtype)
    wide = [float(value) for value in x]
    value, first, second = derivatives(log_2cosh, x)
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(value, np.logaddexp(wide, np.negative(wide)), rtol=tolerance)
    np.testing.assert_allclose(first, np.tanh(wide), rtol=tolerance)
    sech = [0.0 if abs(v) > 300 else 1 / math.cosh(v) for v in wide]
    np.testing.assert_allclose(second, np.square(sech), rtol=tolerance, atol=1e-35)


def test_infinities_are_limits():
    ends = jnp.array([-jnp.inf, jnp.inf])
    assert log_H(ends).tolist() == [0.0, -math.inf]
    assert gaussian_hazard(ends).tolist() == [0.0, math.inf]


def test_gauss_hermite_integrates_polynomials_and_entire_functions():
    nodes, weights = gauss_hermite(20)
    for k in range(0, 39, 2):
        moment = float(scipy_special.factorial2(k - 1, exact=True)) if k else 1.0
        np.testing.assert_allclose(weights @ nodes**k, moment, rtol=1e-11)
    np.testing.assert_allclose(weights @ np.exp(nodes), math.exp(0.5), rtol=1e-13)

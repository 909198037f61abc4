"""Convolution as a matrix product. Oracle: `lax.conv_general_dilated`, and `flax.linen.Conv` for the module.

The last test is the reason for `conv2d`: its gradient is as fast inside a loop as outside. `lax.conv` is not on CPU.
"""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.models import layers


def reference(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


SIZES = [
    ((2, 5, 4, 3), (3, 3, 3, 6)),
    ((1, 4, 4, 2), (2, 4, 2, 1)),
    ((3, 2, 1, 1), (5, 3, 1, 2)),
    ((2, 3, 3, 4), (1, 1, 4, 2)),
]


@pytest.mark.parametrize(("x_shape", "kernel_shape"), SIZES)
def test_conv2d_is_lax_conv_with_its_gradients(key, x64, x_shape, kernel_shape):
    key_x, key_kernel, key_y = jax.random.split(key, 3)
    x = jax.random.normal(key_x, x_shape, jnp.float64)
    kernel = jax.random.normal(key_kernel, kernel_shape, jnp.float64)
    y, pull = jax.vjp(layers.conv2d, x, kernel)
    wanted, wanted_pull = jax.vjp(reference, x, kernel)
    np.testing.assert_allclose(y, wanted, atol=1e-13)
    cotangent = jax.random.normal(key_y, y.shape, y.dtype)
    for got, want in zip(pull(cotangent), wanted_pull(cotangent), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-12)


def test_conv2d_over_many_kernels_is_a_loop(key):
    x = jax.random.normal(key, (2, 4, 4, 3))
    kernels = jax.random.normal(jax.random.fold_in(key, 1), (5, 3, 3, 3, 2))
    many = jax.vmap(layers.conv2d, (None, 0))(x, kernels)
    for row, kernel in zip(many, kernels, strict=True):
        np.testing.assert_allclose(row, reference(x, kernel), atol=2e-5)


def test_conv2d_has_no_convolution_in_its_program(key):
    x, kernel = jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 2))
    program = str(jax.make_jaxpr(jax.grad(lambda k: jnp.sum(layers.conv2d(x, k) ** 2)))(kernel))
    assert "conv_general_dilated" not in program
    assert program.count("dot_general") == 2  # forward, and the kernel's gradient


def test_conv2d_adds_its_bias_once():
    y = layers.conv2d(jnp.zeros((1, 2, 2, 1)), jnp.ones((3, 3, 1, 2)), jnp.array([1.0, -2.0]))
    np.testing.assert_array_equal(y, jnp.broadcast_to(jnp.array([1.0, -2.0]), (1, 2, 2, 2)))


def test_conv2d_refuses_channels_that_do_not_match():
    with pytest.raises(ValueError, match=r"conv2d: x and kernel must be .*\(1, 4, 4, 2\) and \(3, 3, 3, 1\)"):
        layers.conv2d(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 3, 1)))


@pytest.mark.parametrize("use_bias", [True, False])
def test_the_module_is_that_of_flax(key, use_bias):
    x = jax.random.normal(key, (2, 5, 4, 3))
    ours, flaxs = layers.Conv(6, (3, 2), use_bias), nn.Conv(6, (3, 2), use_bias=use_bias)
    variables = flaxs.init(key, x)
    jax.tree.map(np.testing.assert_array_equal, variables, ours.init(key, x))
    variables = jax.tree.map(lambda leaf: leaf + 0.5, variables)
    np.testing.assert_allclose(ours.apply(variables, x), flaxs.apply(variables, x), atol=1e-5)


def cpu_seconds(compiled, *arguments):
    """The least processor time of three blocked calls."""
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(3):
        start = time.process_time()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.process_time() - start)
    return min(times)


def test_a_gradient_is_not_slower_inside_a_loop(key):
    if jax.default_backend() != "cpu":
        pytest.skip("the slow path in loops is XLA:CPU's")
    x = jax.random.normal(key, (32, 14, 14, 8))
    kernel = jax.random.normal(key, (3, 3, 8, 16)) / 8

    def descend(k):
        return k - 1e-3 * jax.grad(lambda k: jnp.mean(layers.conv2d(x, k) ** 2))(k)

    def loop(k):
        return jax.lax.scan(lambda k, _: (descend(k), None), k, None, length=20)[0]

    outside, inside = cpu_seconds(jax.jit(descend), kernel), cpu_seconds(jax.jit(loop), kernel) / 20
    assert inside < 5 * outside  # about 1; `lax.conv` gives 9 to 35

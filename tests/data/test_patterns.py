"""Random patterns and teachers. Oracle: the definitions, moments within five standard errors, NumPy's answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.data import random_patterns, teacher_patterns


@pytest.mark.parametrize("inputs", ["binary", "gaussian"])
def test_inputs_have_the_moments_of_their_law(key, inputs):
    data = random_patterns(key, 200, 151, inputs=inputs)
    x = np.asarray(data.patterns, np.float64)
    count = x.size
    assert abs(x.mean()) < 5 / np.sqrt(count)
    fourth = 1.0 if inputs == "binary" else 3.0
    assert abs((x**4).mean() - fourth) <= 5 * np.sqrt(96 / count) * (inputs == "gaussian")
    assert abs((x**2).mean() - 1) <= 5 * np.sqrt(2 / count) * (inputs == "gaussian")
    assert set(np.unique(data.labels)) == {-1.0, 1.0}
    assert abs(float(data.labels.mean())) < 5 / np.sqrt(200)
    assert np.abs(np.asarray(data.labels) @ x).max() < 6 * np.sqrt(200)  # labels say nothing of the inputs


def test_the_teacher_answers_its_own_patterns(key):
    for units in (1, 3):
        data = teacher_patterns(key, 60, 31, num_units=units)
        sums = np.asarray(data.patterns) @ np.asarray(data.teacher).T
        np.testing.assert_array_equal(data.labels, np.sign(np.sign(sums).sum(1)))
        assert data.teacher.shape == (units, 31)
        assert abs(float(data.labels.mean())) < 1


def test_pure_functions_of_the_key_in_any_transformation(key):
    keys = jax.random.split(key, 3)
    batch = jax.jit(jax.vmap(lambda k: random_patterns(k, 5, 7)))(keys)
    for i in range(3):
        one = random_patterns(keys[i], 5, 7)
        np.testing.assert_array_equal(batch.patterns[i], one.patterns)
        np.testing.assert_array_equal(batch.labels[i], one.labels)
    assert not np.array_equal(batch.patterns[0], batch.patterns[1])
    assert random_patterns(key, 0, 7).patterns.shape == (0, 7)


def test_dtype_is_the_callers(key, x64):
    data = teacher_patterns(key, 4, 5, dtype=jnp.float64, inputs="gaussian")
    assert {leaf.dtype for leaf in data} == {jnp.dtype("float64")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_patterns": -1, "num_inputs": 3}, "random_patterns: num_patterns must be at least 0; got -1."),
        ({"num_patterns": 1, "num_inputs": 0}, "random_patterns: num_inputs must be at least 1; got 0."),
        ({"num_patterns": 1, "num_inputs": 3, "inputs": "ternary"}, "inputs must be one of 'binary', 'gaussian'"),
        ({"num_patterns": 1, "num_inputs": 3, "dtype": jnp.int32}, "dtype must be a real floating-point dtype"),
    ],
)
def test_refusals(key, arguments, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        random_patterns(key, **arguments)


def test_an_even_teacher_is_refused(key):
    with pytest.raises(ValueError, match="teacher_patterns: num_units must be odd"):
        teacher_patterns(key, 3, 5, num_units=2)

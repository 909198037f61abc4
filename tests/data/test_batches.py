"""Batches and means over them. Oracle: the mean over the whole set; exact sums in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.data import Batches, mean_over_batches, num_samples, split_batches

DATA = {"x": jnp.arange(14.0).reshape(7, 2) ** 2, "y": jnp.arange(7)}


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_the_mean_is_that_of_the_whole_set_for_every_batch_size(batch_size):
    batches = split_batches(DATA, batch_size)
    fn = lambda batch: {"mean": jnp.mean(batch["x"], axis=0)}  # noqa: E731
    np.testing.assert_allclose(mean_over_batches(fn, batches)["mean"], fn(DATA)["mean"], rtol=1e-6)
    assert num_samples(batches) == 7
    joined = [batches.full["y"].reshape(-1)] + ([] if batches.last is None else [batches.last["y"]])
    np.testing.assert_array_equal(jnp.concatenate(joined), DATA["y"])


def test_a_short_last_batch_counts_by_its_size():
    batches = split_batches(DATA, 3)
    unweighted = np.mean([jnp.mean(batches.full["x"][0]), jnp.mean(batches.full["x"][1]), jnp.mean(batches.last["x"])])
    got = mean_over_batches(lambda batch: jnp.mean(batch["x"]), batches)
    np.testing.assert_allclose(got, jnp.mean(DATA["x"]), rtol=1e-6)
    assert abs(got - unweighted) > 1


def test_a_thousand_batches_of_bfloat16_have_their_mean():
    """A bfloat16 sum of 1024 shares stands still at a quarter of it."""
    got = mean_over_batches(jnp.mean, split_batches(jnp.ones(4096, jnp.bfloat16), 4))
    assert got.dtype == jnp.bfloat16
    assert got == 1


def test_vmap_over_parameters_inside_jit_is_the_loop():
    means = lambda w, batches: mean_over_batches(lambda b: jnp.mean(w * b["x"]), batches)  # noqa: E731
    together = jax.jit(jax.vmap(means, in_axes=(0, None)))(jnp.array([1.0, -2.0]), split_batches(DATA, 3))
    np.testing.assert_allclose(together, jnp.mean(DATA["x"]) * jnp.array([1.0, -2.0]), rtol=1e-6)


def test_refused_inputs():
    with pytest.raises(ValueError, match="mean_over_batches: fn must return real floating-point arrays; got int32"):
        mean_over_batches(lambda batch: jnp.sum(batch["y"]), split_batches(DATA, 3))
    with pytest.raises(ValueError, match="split_batches: batch_size must be at least 1; got 0"):
        split_batches(DATA, 0)
    with pytest.raises(ValueError, match="split_batches: data must have at least one sample; got 0"):
        split_batches(jnp.zeros((0, 2)), 1)
    with pytest.raises(ValueError, match=r"must have leaves that share their leading axis; got \[\(2,\), \(3,\)\]"):
        num_samples({"x": jnp.zeros(2), "y": jnp.zeros(3)})
    assert isinstance(split_batches(jnp.zeros(2), 1), Batches)

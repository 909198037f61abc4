"""Curvature of parameters and data spread over eight devices. Oracle: the same call on one device."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jflat.core import Status
from jflat.curvature import eigenpairs, hessian, lanczos
from jflat.losses import on_model, squared_error


def test_sharded_parameters_and_data_give_the_same_curvature_and_a_sharded_basis(key):
    """One array with a free axis split, one with a contracted axis split, and the samples split."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    place = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))  # noqa: E731
    keys = jax.random.split(key, 4)
    params = {"in": jax.random.normal(keys[0], (3, 16)), "out": jax.random.normal(keys[1], (16, 2))}
    data = jax.random.normal(keys[2], (8, 3)), jax.random.normal(keys[3], (8, 2))

    @jax.jit
    def curvature(params, data, key):
        operator = hessian(on_model(squared_error, lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]), params, data)
        return lanczos(operator, params, num_steps=8), eigenpairs(operator, key, num=2, num_steps=12)

    want, want_pairs = curvature(params, data, key)
    spread = {"in": place(params["in"], None, "x"), "out": place(params["out"], "x", None)}
    got, got_pairs = curvature(spread, jax.tree.map(lambda x: place(x, "x"), data), place(key))
    np.testing.assert_allclose(got.diagonal, want.diagonal, atol=1e-5)
    np.testing.assert_allclose(got.off_diagonal, want.off_diagonal, atol=1e-5)
    assert int(got_pairs.status) == Status.CONVERGED
    np.testing.assert_allclose(got_pairs.values, want_pairs.values, rtol=1e-5)
    for name, shard in (("in", (8, 3, 2)), ("out", (8, 2, 2))):
        rows = got.basis[name]
        assert rows.sharding.shard_shape(rows.shape) == shard

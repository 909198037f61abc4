"""Curvature of parameters and data spread over eight devices. Oracle: the same call on one device."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jflat.core import Status
from jflat.curvature import eigenpairs, hessian, lanczos, trace
from jflat.losses import cross_entropy, on_model


def test_sharded_parameters_and_data_give_the_same_curvature_and_a_sharded_basis(key, make_network):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    params, data, model_fn = make_network(hidden=16, samples=8)

    @jax.jit
    def everything(params, data, key):
        operator = hessian(on_model(cross_entropy, model_fn), params, data)
        result = lanczos(operator, params, num_steps=8)
        pairs = eigenpairs(operator, key, num=2, num_steps=12)
        return result, pairs, trace(operator, key, num_probes=4)

    want = everything(params, data, key)
    axes = {"in": {"w": (None, "x"), "b": ("x",)}, "out": ("x", None), "shift": (None,)}
    place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))  # noqa: E731
    spread = jax.tree.map(place, params, axes)
    spread_data = jax.tree.map(lambda x: place(x, ("x",)), data)
    got = everything(spread, spread_data, jax.device_put(key, NamedSharding(mesh, PartitionSpec())))

    assert int(got[1].status) == Status.CONVERGED
    np.testing.assert_allclose(got[0].diagonal, want[0].diagonal, atol=1e-5)
    np.testing.assert_allclose(got[1].values, want[1].values, atol=1e-5)
    np.testing.assert_allclose(got[2].samples, want[2].samples, rtol=1e-4)
    basis = got[0].basis
    assert basis["in"]["w"].sharding.shard_shape(basis["in"]["w"].shape) == (8, 3, 2)
    assert basis["out"].sharding.shard_shape(basis["out"].shape) == (8, 2, 3)

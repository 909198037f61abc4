"""Oracle: the compiler's own account of the programs (arguments, results and temporaries), for shapes alone."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jflat.core import from_function
from jflat.curvature import (
    diagonal,
    eigenpairs,
    frobenius_norm,
    hessian,
    lanczos,
    plan,
    spectral_density,
    trace,
)
from jflat.data import Batches, Stream

SIZE = 2**20  # vectors outweigh everything else
STEPS, NUM, PROBES = 24, 3, 12
slow = pytest.mark.slow  # pytest -m slow tests/curvature/test_plan.py


def scaled(factors):
    return from_function(jax.tree_util.Partial(lambda d, v: d * v, factors), factors)


def krylov(**options):
    return lambda d, v, key: lanczos(scaled(d), v, num_steps=STEPS, **options)


def density(scheme):
    options = {"num_steps": STEPS, "num_probes": 2, "reorthogonalise": scheme}
    return lambda d, v, key: spectral_density(scaled(d), key, **options)


def sampled(fn, **options):
    return lambda d, v, key: fn(scaled(d), key, num_probes=PROBES, **options)


PROGRAMS = {
    "lanczos, none, without a basis": krylov(reorthogonalise="none", keep_basis=False),
    "lanczos, none": krylov(reorthogonalise="none"),
    "lanczos, full": krylov(),
    "lanczos, selective": krylov(reorthogonalise="selective"),
    "eigenpairs": lambda d, v, key: eigenpairs(scaled(d), key, num=NUM),
    "spectral_density, full": density("full"),
    "spectral_density, none": density("none"),
    "trace, hutchinson": sampled(trace),
    "trace, hutch++": sampled(trace, method="hutch++"),
    "trace, xtrace": sampled(trace, method="xtrace"),
    "frobenius_norm": sampled(frobenius_norm),
    "diagonal": sampled(diagonal),
}
QUICK = ("lanczos, none, without a basis", "lanczos, full", "trace, hutch++")


def needed(program, vector):
    """Bytes per device of a compiled program, but for the arrays of the operator (one vector here)."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    memory = jax.jit(program).lower(vector, vector, key).compile().memory_analysis()
    sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    on_a_device = vector.sharding.shard_shape(vector.shape) if vector.sharding else vector.shape
    return sum(sizes) - 4 * on_a_device[0]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else slow) for n in PROGRAMS])
def test_within_a_tenth_of_the_compiler(name):
    vector = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
    planned = plan(vector, STEPS, num=NUM, num_probes=PROBES).totals[name]
    assert planned == pytest.approx(needed(PROGRAMS[name], vector), rel=0.1)


@pytest.mark.parametrize("name", ["lanczos, full", pytest.param("eigenpairs", marks=slow)])
def test_a_device_holds_its_shard(name):
    sharding = NamedSharding(Mesh(jax.devices(), "model"), PartitionSpec("model"))
    vector = jax.ShapeDtypeStruct((8 * SIZE,), jnp.float32, sharding=sharding)
    planned = plan(vector, STEPS, num=NUM, num_probes=PROBES)
    assert planned.vector == 4 * SIZE
    assert planned.totals[name] == pytest.approx(needed(PROGRAMS[name], vector), rel=0.1)


def test_every_algorithm_is_planned_and_tested():
    assert set(plan(jnp.ones(3)).totals) == set(PROGRAMS)


def network(params, batch):
    return jnp.mean((jnp.tanh(batch @ params["a"]) @ params["b"]) ** 2)


def test_operator_and_product_are_the_compilers():
    shape = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    params, batch = {"a": shape, "b": shape}, jax.ShapeDtypeStruct((64, 256), jnp.float32)
    found = plan(params, 5, loss_fn=network, batch=batch)
    operator = jax.eval_shape(lambda p, b: hessian(network, p, b), params, batch)
    assert found.operator == sum(4 * x.size for x in jax.tree.leaves(operator))
    assert 4 * 64 * 256 < found.product < 20 * 4 * 64 * 256  # activations and their tangents
    assert found.totals["trace, hutchinson"] == 3 * found.vector + found.operator + found.product
    whole = jax.jit(lambda p, b, v: lanczos(hessian(network, p, b), v, num_steps=5))
    memory = whole.lower(params, batch, params).compile().memory_analysis()
    whole_bytes = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    assert found.totals["lanczos, full"] == pytest.approx(whole_bytes - found.vector, rel=0.25)  # params counted once


def test_batches_are_planned_in_the_memory_of_one():
    params = {"a": jnp.ones((64, 64)), "b": jnp.ones((64, 64))}
    held = plan(params, 5, loss_fn=network, batch=Batches(jnp.ones((10, 32, 64)), jnp.ones((3, 64))))
    assert held.operator == 2 * held.vector // 2 + 4 * 64 * 323  # the point and the data
    assert held.product < 20 * held.vector


def test_reads_as_a_table():
    text = str(plan(jax.ShapeDtypeStruct((10**9,), jnp.float32), 90))
    assert "lanczos, full" in text
    assert "388 GB" in text
    assert "a product" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"num": 0}, "num must be at least 1"),
        ({"num_probes": 1.5}, "num_probes must be an integer"),
        ({"loss_fn": network, "batch": Stream(lambda: iter(()))}, "batch must be one batch"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan(jnp.ones(3), **options)


def test_integers_are_refused():
    with pytest.raises(ValueError, match="params"):
        plan(jnp.ones(3, int))

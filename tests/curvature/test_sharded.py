"""Sharded parameters stay sharded: eight virtual devices give the numbers of one, and no program gathers parameters.

Oracles: the same call on one device; the collectives and the shapes in the compiled program (HLO).
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.collectives import collectives
from jflat.core.mesh import make_mesh, place, place_batch, place_params
from jflat.curvature import (
    diagonal,
    eigenpairs,
    frobenius_norm,
    gauss_newton,
    hessian,
    lanczos,
    spectral_density,
    trace,
)
from jflat.losses import cross_entropy

WIDTH, HIDDEN, CLASSES, SAMPLES = 24, 40, 5, 16


def model_fn(params, x):
    return (jnp.tanh(x @ params["in"] + params["bias"]) @ params["out"])[:, :CLASSES]


def loss_fn(params, batch):
    return cross_entropy(model_fn(params, batch[0]), batch[1])


def problem():
    rng = np.random.default_rng(0)
    params = {
        "in": rng.normal(size=(WIDTH, HIDDEN)) / WIDTH**0.5,
        "bias": rng.normal(size=HIDDEN) / 10,
        "out": rng.normal(size=(HIDDEN, WIDTH)) / HIDDEN**0.5,
    }
    data = (rng.normal(size=(SAMPLES, WIDTH)), rng.integers(CLASSES, size=SAMPLES))
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params), (
        jnp.asarray(data[0], jnp.float32),
        jnp.asarray(data[1], jnp.int32),
    )


def placed(shape, params, data):
    """Hidden units over "model", samples over "data"."""
    mesh = make_mesh(data=shape[0], model=shape[1])
    params = {
        "in": place(params["in"], mesh, None, "model"),
        "bias": place(params["bias"], mesh, "model"),
        "out": place(params["out"], mesh, "model", None),
    }
    return params, place_batch(data, mesh)


def numbers(result):
    """What must agree between one device and eight: everything but vectors, whose signs may differ."""
    return {name: x for name, x in result._asdict().items() if name not in ("basis", "residual", "vectors")}


ALGORITHMS = {
    "lanczos": lambda op, key: lanczos(op, jax.tree.map(_ones, op.structure), num_steps=9),
    "selective": lambda op, key: lanczos(
        op, jax.tree.map(_ones, op.structure), num_steps=9, reorthogonalise="selective"
    ),
    "eigenpairs": lambda op, key: eigenpairs(op, key, num=3, num_steps=12, max_restarts=3),
    "density": lambda op, key: spectral_density(op, key, num_steps=6, num_probes=2),
    "hutchinson": lambda op, key: trace(op, key, num_probes=4),
    "hutch++": lambda op, key: trace(op, key, num_probes=9, method="hutch++"),
    "xtrace": lambda op, key: trace(op, key, num_probes=6, method="xtrace"),
    "diagonal": lambda op, key: diagonal(op, key, num_probes=4),
    "frobenius norm": lambda op, key: frobenius_norm(op, key, num_probes=4),
}


def _ones(x):
    return jnp.ones(x.shape, x.dtype)


def whole_leaves(program):
    """Shapes with a whole leaf of the parameters in them, or rows of such: something was gathered or replicated."""
    shapes = set(re.findall(r"[fsu]\d+\[([\d,]+)\]", program))
    leaf = re.compile(rf"(\d+,)*({WIDTH},{HIDDEN}|{HIDDEN},{WIDTH}|{WIDTH * HIDDEN})")
    return {shape for shape in shapes if leaf.fullmatch(shape)}


def assert_nothing_is_gathered(program):
    assert {one.kind for one in collectives(program)} == {"all-reduce"}
    assert whole_leaves(program) == set()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_eight_devices_give_the_numbers_of_one_and_gather_nothing(name, key):
    """Hidden units over four devices, samples over two; the operator is built in the program."""
    params, data = problem()
    run = jax.jit(lambda p, b: ALGORITHMS[name](hessian(loss_fn, p, b), key))
    want, sharded = numbers(run(params, data)), placed((2, 4), params, data)
    compiled = run.lower(*sharded).compile()
    assert_nothing_is_gathered(compiled.as_text())
    got = numbers(compiled(*sharded))
    for field in want:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), got[field], want[field])


@pytest.mark.parametrize("name", ["lanczos", "eigenpairs", "density"])
def test_data_parallel_alone(name, key):
    """Parameters and basis whole on each of eight devices: one all-reduce a product, and the numbers of one device."""
    params, data = problem()
    mesh = make_mesh(data=8)
    run = jax.jit(lambda p, b: ALGORITHMS[name](hessian(loss_fn, p, b), key))
    compiled = run.lower(*(sharded := (place_params(params, mesh), place_batch(data, mesh)))).compile()
    assert {one.kind for one in collectives(compiled.as_text())} == {"all-reduce"}
    got, want = numbers(compiled(*sharded)), numbers(run(params, data))
    for field in want:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), got[field], want[field])


@pytest.mark.parametrize("name", ["lanczos", "hutchinson"])
def test_operators_built_before_the_program_gather_nothing(name, key):
    """Here only the residuals of the linearisation say how the parameters are sharded."""
    operator = gauss_newton(model_fn, cross_entropy, *placed((1, 8), *problem()))
    assert_nothing_is_gathered(jax.jit(ALGORITHMS[name]).lower(operator, key).compile().as_text())


def test_the_look_at_the_program_sees_a_gather():
    params, _ = placed((1, 8), *problem())
    program = jax.jit(lambda p: jnp.sort(p["out"].ravel())).lower(params).compile().as_text()
    assert {one.kind for one in collectives(program)} & {"all-gather", "all-reduce", "all-to-all"}
    assert whole_leaves(program)


def test_vectors_come_back_sharded_like_the_parameters(key):
    params, data = placed((1, 8), *problem())
    result = lanczos(hessian(loss_fn, params, data), params, num_steps=4)
    for name, leaf in result.basis.items():
        assert leaf.sharding.is_equivalent_to(
            NamedSharding(params[name].sharding.mesh, PartitionSpec(None, *params[name].sharding.spec)), leaf.ndim
        )

"""Every benchmark runs at its toy size and prints JSON lines with what a stored number needs."""

import importlib
import inspect
import json

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from benchmarks import optimisers, solvers, width
from benchmarks.__main__ import BENCHMARKS, PEERED
from benchmarks.peers import jax_network
from benchmarks.peers.reference import Reference


@pytest.mark.smoke
@pytest.mark.parametrize("name", BENCHMARKS)
def test_toy_size_runs_and_records(name, tmp_path):
    output = tmp_path / "results.jsonl"
    with jax.numpy_dtype_promotion("standard"):
        rows = importlib.import_module(f"benchmarks.{name}").main(output, toy=True)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(lines) == len(rows) >= 2
    for row, line in zip(rows, lines, strict=True):
        assert row.items() <= line.items()
        assert {"jax", "device", "date", "ms", "compile_s", "benchmark"} <= line.keys()
        assert line["ms"] > 0


def test_a_fast_wrong_answer_is_seen():
    """The judge of `curvature` against the dense Hessian of a network with 27 parameters."""
    with jax.numpy_dtype_promotion("standard"):
        params = jax_network.init(jax.random.key(0), [(4, 3), (3, 3)])
        problem = {f"kernel_{i}": np.asarray(kernel) for i, (kernel, _) in enumerate(params)}
        problem |= {f"bias_{i}": np.asarray(bias) for i, (_, bias) in enumerate(params)}
        generator = np.random.default_rng(0)
        problem |= {"x": generator.random((5, 2, 2, 1), np.float32), "y": np.arange(5, dtype=np.int32) % 3}
        problem["direction"] = generator.standard_normal(27, np.float32)
        vector, unravel = ravel_pytree(params)
        batch = (problem["x"], problem["y"])
        dense = np.asarray(jax.hessian(lambda v: jax_network.loss(unravel(v), batch, "slices"))(vector))
        reference = Reference(problem, {"top": 3, "reference": 50})
        values, vectors = (np.flip(x, -1)[..., :3] for x in np.linalg.eigh(dense))
        right = reference.errors("top", {"values": values, "vectors": vectors.T})
        wrong = reference.errors("top", {"values": values, "vectors": np.eye(27)[:3]})
        product = reference.errors("hvp", {"vector": dense @ problem["direction"]})
        trace = reference.errors("trace", {"value": np.trace(dense)})
    assert right["error"] < 1e-5
    assert right["residual"] < 1e-5
    assert wrong["residual"] > 0.1
    assert product["error"] < 1e-5
    assert trace["error"] < 5 * trace["reference_stderr"]


def test_both_convolutions_are_the_same():
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))
    one, other = (conv(x, kernel) for conv in jax_network.CONVOLUTIONS.values())
    assert np.allclose(one, other, atol=1e-5)


def test_the_wrong_least_squares_solution_is_seen():
    problem = solvers._problem(20)
    x, products = problem["solution"], np.array(3)
    assert np.linalg.norm(problem["matrix"] @ x - problem["compatible"]) < 1e-13 * np.linalg.norm(x)
    right = solvers._errors(problem, "incompatible", {"vector": x, "products": products})
    longer = solvers._errors(problem, "incompatible", {"vector": x + problem["kernel"][:, 0], "products": products})
    assert right["error"] < 1e-14
    assert longer["error"] == pytest.approx(1 / np.linalg.norm(x))
    assert longer["error_in_range"] < 1e-13


def test_the_reference_of_sam_is_its_definition():
    """L = |w|^2 / 2, where the perturbed gradient is (1 + rho / |w|) w: numbers by hand for the length."""
    length, moved = 5.0, 0.0
    for _ in range(3):
        gradient = length + optimisers.RADIUS
        moved = optimisers.MOMENTUM * moved + gradient
        length -= optimisers.RATE * (optimisers.MOMENTUM * moved + gradient)
    w = optimisers._plain_sam(lambda w, batch: w, jax.numpy.array([3.0, 4.0]), (np.zeros(1), np.zeros(1)), 3)
    np.testing.assert_allclose(w, length * np.array([0.6, 0.8]), rtol=1e-12)


def test_factors_of_mup_are_those_of_its_definition():
    """muP written out for widths 4 and 8 times the base; SGD's rate of a hidden matrix is the ratio of its fans."""
    m, n = 4, 8
    sgd = {"layer_0/kernel": (1, m), "layer_0/bias": (1, m), "layer_1/kernel": (m**-0.5, n / m)}
    sgd |= {"layer_1/bias": (1, n), "layer_2/kernel": (1 / n, 1 / n), "layer_2/bias": (1, 1)}
    adam = {"layer_0/kernel": (1, 1), "layer_0/bias": (1, 1), "layer_1/kernel": (m**-0.5, 1 / m)}
    adam |= {"layer_1/bias": (1, 1), "layer_2/kernel": (1 / n, 1 / n), "layer_2/bias": (1, 1)}
    for optimizer, true in (("sgd", sgd), ("adam", adam)):
        found = width._our_factors(optimizer)
        assert found.keys() == true.keys()
        for name, factors in found.items():
            np.testing.assert_allclose(list(factors.values()), true[name], rtol=1e-6)


def test_benchmarks_with_peers_take_their_python():
    for name in PEERED:
        module = importlib.import_module(f"benchmarks.{name}")
        assert name in BENCHMARKS
        assert name == "optimisers" or "peers" in inspect.signature(module.main).parameters

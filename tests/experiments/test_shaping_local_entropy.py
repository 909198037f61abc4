"""The experiment on local entropy. Oracles: enumeration by another code, brute force over neighbours, the Hessian as it
is written, random flips, planted differences, a smoke run's own files."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.claims import statuses
from experiments.shaping import local_entropy, local_entropy_page, norm, parity
from experiments.shaping.searches import LABELS
from jflat.core import Status
from jflat.data import random_patterns
from jflat.messages import enumerate_solutions, local_energy
from jflat.report import load_run


def small(seed, number=4, size=9):
    data = random_patterns(jax.random.key(seed), number, size)
    return np.asarray(data.patterns), np.asarray(data.labels)


def every(size):
    bits = np.arange(2**size)[:, None] >> np.arange(size)[::-1] & 1
    return 1.0 - 2 * bits


@pytest.mark.parametrize("device", parity.DEVICES)
def test_errors_of_all_configurations(device):
    patterns, labels = small(0)
    sums = every(9) @ (labels[:, None] * patterns).T
    blocks = np.einsum("wkn,mkn->wmk", every(9).reshape(-1, 3, 3), patterns.reshape(-1, 3, 3))
    fields = {
        "perceptron": sums,
        "committee": labels * np.sign(blocks).sum(-1),
        "parity": labels * np.sign(blocks).prod(-1),
    }[device]
    errors = parity.errors_of_all(device, patterns, labels)
    np.testing.assert_array_equal(errors.ravel(), (fields < 0).sum(1))
    if device != "parity":
        units = {"perceptron": {}, "committee": {"num_units": 3, "is_tree": True}}[device]
        assert int(enumerate_solutions(patterns, jnp.asarray(labels), **units).num_solutions) == (errors == 0).sum()


def test_spheres_are_sums_over_neighbours():
    values = np.random.default_rng(0).normal(size=(8, 8, 8))
    distance = (every(9)[:, None] != every(9)).sum(-1)
    for r, got in zip((1, 3, 9), parity.spheres(values, (1, 3, 9)), strict=True):
        np.testing.assert_allclose(got.ravel(), (distance == r) @ values.ravel(), atol=1e-12)


def test_landscape_against_brute_force():
    patterns, labels = small(1)
    radii = [1, 2, 4]
    found = parity.landscape("parity", patterns, labels, radii)
    errors = parity.errors_of_all("parity", patterns, labels).ravel().astype(float)
    distance = (every(9)[:, None] != every(9)).sum(-1)
    solved = errors == 0
    assert 0 < found["num_solutions"] == solved.sum()
    for i, r in enumerate(radii):
        near = (distance <= r)[solved] @ solved.astype(int)
        rate = (distance == r)[solved] @ errors / (math.comb(9, r) * 4)
        assert (found["densest"][i], found["mean_near"][i]) == (near.max(), pytest.approx(near.mean()))
        assert found["flattest"][i] == pytest.approx(rate.min())
        assert found["mean_error"][i] == pytest.approx(rate.mean())
    contradiction = np.concatenate([patterns, patterns]), np.concatenate([labels, -labels])
    nothing = parity.landscape("committee", *contradiction, radii)
    assert nothing["num_solutions"] == 0
    assert np.isnan(nothing["densest"]).all()
    with pytest.raises(ValueError, match="errors_of_all: patterns must be"):
        parity.errors_of_all("parity", *small(0, size=12))


def test_sharpness_is_the_error_under_flips(key):
    data = random_patterns(key, 60, 101)
    w = jnp.where(data.labels @ data.patterns >= 0, 1.0, -1.0)
    delta = data.labels * (data.patterns @ w) / np.sqrt(101)
    got = float(norm.sharpness(delta, 0.1))
    flips = local_energy(*data[:2], w, key, probabilities=[0.1], num_samples=1000)
    assert got == pytest.approx(float(flips.mean[0] + flips.reference), abs=4 * float(flips.stderr[0]) + 3e-3)
    inputs = jnp.where(jax.random.uniform(key, (200, *data.patterns.shape)) < 0.1, -1.0, 1.0)  # flips of inputs instead
    wrong = jnp.einsum("smn,mn,n->sm", inputs, data.patterns, w) * data.labels <= 0
    assert got == pytest.approx(float(wrong.mean()), abs=5e-3)


def test_hessian_is_the_one_that_is_written(key):
    data = random_patterns(key, 7, 11)
    w = jax.random.rademacher(key, (11,), jnp.float32)
    got = local_entropy._hessian_matrix(*data[:2], w, 0.8)
    delta = data.labels * (data.patterns @ w) / np.sqrt(11)
    want = jnp.einsum("m,mi,mj->ij", 0.4 / jnp.cosh(0.8 * delta) ** 2, data.patterns, data.patterns) / 11
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def planted(seed=0, number=30):
    """Searches with known energies and deficits: `fast` is sharper than `focusing` by .02 and .003."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(number, 1))
    d = np.array([0.3, 0.1, 0.05, 0.02])
    arrays = {}
    for name, shift in (("focusing", 0.0), ("fast", 1.0)):
        own = 0.1 * rng.normal(size=(number, 1))
        prefix = f"search/{name}"
        arrays |= {
            f"{prefix}/status": np.full(number, Status.SOLVED),
            f"{prefix}/energy": 0.03 + 0.02 * shift + 0.01 * (shared + own) + np.zeros((number, 2)),
            f"{prefix}/distances": np.tile(d, (number, 1)),
            f"{prefix}/entropies": local_entropy_page.entropy_of_sphere(d)
            - 0.003 * (shift + 1)
            + 1e-4 * (shared + own),
            f"{prefix}/entropy_status": np.full((number, 4), Status.CONVERGED),
            f"{prefix}/stabilities": 1 + rng.random((number, 5)),
            f"{prefix}/eigenvalues": np.ones((number, 3)) * (1 + shift) + 0.01 * rng.random((number, 3)),
            f"{prefix}/work": np.ones(number),
        }
    for way, best in (("growing", 0.03), ("shrinking", 0.04)):
        sharp = best + 0.001 * rng.normal(size=(number, 3))
        error = np.tile([0.1, 0.0, 0.0 if way == "growing" else 0.02], (number, 1))
        arrays |= {f"norm/{way}/9/{q}": x for q, x in (("error", error), ("sharpness", sharp))}
        arrays[f"norm/{way}/9/failed_step"] = np.full(number, -1)
    config = {"searches": ["focusing", "fast"], "flips": [0.05, 0.1], "size": 11, "alpha": 0.3, "num_instances": number}
    return config | {"norm_epochs": [9], "small_sizes": []}, arrays


def test_claims_see_what_was_planted():
    config, arrays = planted()
    arrays["search/fast/status"][3] = Status.NOT_SOLVED
    arrays["search/fast/energy"][3] = 50.0  # must not count
    arrays["search/fast/entropy_status"][5, 1:] = Status.MAX_STEPS  # its deficit at .05 is not known
    metrics = local_entropy_page.summarise(config, arrays)
    claims = {claim["claim"]: claim for claim in metrics["claims"]}
    pair = f"{LABELS['focusing']} − {LABELS['fast']}"
    for words in ("rise of the error at p = .05", "entropy lost at d = .05", "trace of the Hessian"):
        assert claims[f"{words}: {pair}"]["status"] == "holds"
    assert metrics["searches"]["fast"]["solved"] == 29
    assert metrics["searches"]["fast"]["deficit"]["value"] == pytest.approx(0.006, abs=1e-4)
    assert np.isnan(local_entropy_page.deficits(arrays, "fast", np.array([0.05]))[[3, 5]]).all()
    assert {(row["part"], row["times"], row["of"]) for row in metrics["failures"]} == {
        ("search/fast/entropy", 3, 120),
        ("search/fast", 1, 30),
    }
    flattest = claims["9 epochs, flattest solution on the way: growth − reduction"]
    assert flattest["status"] == "does not hold"
    assert "growth flatter" in flattest["ours"]
    assert metrics["norms"]["shrinking/9"]["last_error"]["value"] == pytest.approx(0.02)
    assert local_entropy_page.effect_size(np.array([1.0, 2.0, 3.0, np.nan])) == 2.0


def test_deficits_are_interpolated_and_never_extrapolated():
    config, arrays = planted()
    rows = local_entropy_page.deficits(arrays, "focusing", np.array([0.01, 0.02, 0.075, 0.3, 0.31]))
    assert np.isnan(rows[:, [0, 4]]).all()
    assert rows[:, 1:4].mean() == pytest.approx(0.003, abs=1e-4)
    assert config["num_instances"] == len(rows)


@pytest.fixture(scope="module")
def finished(finish):
    return finish(local_entropy)


def test_smoke_run_leaves_every_promised_file(finished):
    summary = finished.check("local_entropy", "local_energy", "stabilities", "hessian", "norm", "parity")
    assert any("reduction" in claim["claim"] for claim in summary.claims)


def test_smoke_numbers_are_consistent(finished):
    run = finished.run
    smoke = local_entropy.PRESETS["smoke"]
    patterns, labels = map(np.asarray, local_entropy.instances(smoke)[:2])
    for name in smoke.searches:
        weights = run.arrays[f"search/{name}/weights"].astype(float)
        delta = labels * np.einsum("imn,in->im", patterns, weights) / np.sqrt(41)
        np.testing.assert_allclose(run.arrays[f"search/{name}/stabilities"], delta, rtol=1e-5)
        np.testing.assert_array_equal(run.arrays[f"search/{name}/errors"], (delta <= 0).sum(1))
        trace = np.sum(0.5 / np.cosh(delta) ** 2, axis=1)  # |xi|^2 = N
        np.testing.assert_allclose(run.arrays[f"search/{name}/eigenvalues"].sum(1), trace, rtol=1e-4)
    assert run.metrics["searches"]["slow"]["solved"] == 3
    gamma = run.arrays["norm/shrinking/2/gamma"]
    np.testing.assert_allclose(gamma, [0.5, 0.05])


@pytest.mark.slow
def test_default_preset_sees_the_flatter_searches(tmp_path):
    """Minutes on two cores: the ordering of the specification at its own size."""
    local_entropy.run(local_entropy.PRESETS["default"], tmp_path / "run", lambda done, of, what: None)
    claims = statuses(load_run(tmp_path / "run").metrics)
    for flat in ("focusing", "slow"):
        assert claims[f"rise of the error at p = .05: {LABELS[flat]} − {LABELS['fast']}"] == "holds"

"""Two Gaussian clouds: solver, observables, statistics, and both experiments in their smallest preset, end to end.
Oracles: scikit-learn's logistic regression and support vector machine, NumPy's normal equations; Monte Carlo for the
exact integrals; planted arrays with known differences and limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.__main__ import main
from experiments.claims import statuses
from experiments.mixtures import entropy, flat, flat_page, ridge, ridge_page
from experiments.mixtures.observables import classifier_observables
from experiments.mixtures.ridge_solver import _relative_gap, ridge_path
from jflat.core import Status
from jflat.data import MixtureSamples, gaussian_mixture
from jflat.report import load_run, save_run

PICTURES = {
    ridge: ("error", "training_error", "flatness", "finite_size"),
    flat: ("squared_2",),
    entropy: ("against_sphere", "loss"),
}
RIDGES = np.array([3.0, 0.4])


@functools.cache
def sample():
    """(inputs (24, 5), labels) in NumPy, unbalanced and not separable."""
    rng = np.random.default_rng(3)
    labels = np.where(np.arange(24) < 7, 1.0, -1.0)
    return labels[:, None] * 0.5 + rng.normal(size=(24, 5)), labels


def by_sklearn(loss, inputs, labels, lam):
    """(w, b) of the minimum."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    x = inputs / np.sqrt(inputs.shape[1])
    if loss == "squared":
        A = np.hstack([x, np.ones((len(x), 1))])
        theta = np.linalg.solve(A.T @ A + np.diag([*[lam] * x.shape[1], 0.0]), A.T @ labels)
        return theta[:-1], theta[-1]
    if loss == "logistic":
        fitted = LogisticRegression(C=1 / lam, tol=1e-10, max_iter=1000).fit(x, labels)
    else:
        fitted = SVC(C=1 / lam, kernel="linear", tol=1e-10).fit(x, labels)
    return fitted.coef_[0], fitted.intercept_[0]


@pytest.mark.parametrize("loss", ["squared", "logistic", "hinge"])
def test_estimators_are_those_of_scikit_learn(loss):
    inputs, labels = sample()
    with jax.enable_x64(True):
        arguments = jnp.asarray(inputs), jnp.asarray(labels), jnp.asarray(RIDGES)
        found = jax.jit(ridge_path, static_argnums=0, static_argnames="tolerance")(loss, *arguments, tolerance=1e-11)
    assert (np.asarray(found.status) == Status.CONVERGED).all()
    for i, lam in enumerate(RIDGES):
        weights, bias = by_sklearn(loss, inputs, labels, lam)
        np.testing.assert_allclose(found.weights[i], weights, atol=1e-4)
        np.testing.assert_allclose(found.bias[i], bias, atol=1e-4)


def test_the_gap_is_positive_and_bounds_the_distance():
    inputs, labels = sample()
    A = labels[:, None] * np.hstack([inputs / np.sqrt(5), np.ones((24, 1))])
    rng = np.random.default_rng(0)
    for loss in ("squared", "logistic", "hinge"):
        best = np.append(*by_sklearn(loss, inputs, labels, 1.0))
        for size in (1e-3, 0.3):
            theta, a = best + size * rng.normal(size=6), rng.uniform(size=24)
            with jax.enable_x64(True):
                gap = float(_relative_gap(loss, *map(jnp.asarray, (A, labels, 1.0, theta, a))))
            t = A @ theta
            value = {"squared": (1 - t) ** 2 / 2, "logistic": np.logaddexp(0, -t), "hinge": np.maximum(1 - t, 0)}[loss]
            primal = value.sum() + theta[:-1] @ theta[:-1] / 2
            assert gap * primal >= np.sum((theta - best)[:-1] ** 2) / 2 - 1e-9


def test_observables_are_what_sampling_finds(key):
    data = gaussian_mixture(key, 40, 12, rho=0.3)
    w, b = data.center + jax.random.normal(key, (12,)), jnp.float32(-0.4)
    seen = classifier_observables(w, b, data, 1.0, jnp.float32(0.3), 0.5)
    fields = np.asarray(data.inputs) @ np.asarray(w) / np.sqrt(12) + float(b)
    y = np.asarray(data.labels)
    assert float(seen["training_error"]) == pytest.approx(np.mean(y * fields <= 0))
    noise = np.random.default_rng(0).normal(size=(4000, 12)) * 0.5 * float(jnp.linalg.norm(w)) / np.sqrt(12)
    wrong = np.mean(y * (fields + noise @ np.asarray(data.inputs).T / np.sqrt(12)) <= 0, axis=1)
    assert abs(float(seen["local_energy"]) - wrong.mean()) < 5 * wrong.std() / np.sqrt(4000)
    assert float(seen["increment"]) == pytest.approx(float(seen["local_energy"] - seen["training_error"]))
    turned = MixtureSamples(-data.inputs, -data.labels, data.center)  # the same margins, but for the bias
    assert float(classifier_observables(w, -b, turned, 1.0, 0.3, 0.5)["training_error"]) == pytest.approx(
        float(seen["training_error"])
    )


def test_extrapolation_finds_a_planted_limit():
    sizes = np.array([100.0, 200.0, 500.0, 1000.0])
    stderrs = np.array([0.01, 0.02, 0.01, 0.03])
    rng = np.random.default_rng(1)
    limits = []
    for _ in range(400):
        a, c = ridge_page.extrapolate(sizes, 0.3 + 5 / sizes + stderrs * rng.normal(size=4), stderrs)
        limits.append(a.value)
    assert np.mean(limits) == pytest.approx(0.3, abs=5 * a.stderr / 20)
    assert np.std(limits) == pytest.approx(a.stderr, rel=0.2)
    assert c.value == pytest.approx(5, abs=5 * c.stderr)
    assert ridge_page.extrapolate(sizes[:1], stderrs[:1], stderrs[:1])[0].stderr is None


def planted_ridge(shift=0.0):
    """Arrays of the ridge experiment whose simulations are the theory + shift + 8 / N + noise."""
    config = {"losses": ["squared"], "rhos": [0.5], "sizes": [200, 400], "alpha": 2.0, "delta": 1.0}
    rng = np.random.default_rng(0)
    lam = np.geomspace(100, 0.1, 4)
    curve = {"ridge": lam, "generalisation_error": 0.20711 + 0.06 / (1 + lam), "increment": 0.0264 + 0.03 / (1 + lam)}
    curve |= {"training_error": 0.1 - 0.06 / (1 + lam), "status": np.zeros(4, int)}
    arrays = {f"squared/0.5/theory/{kind}.{k}": v for kind in ("curve", "at") for k, v in curve.items()}
    for size in config["sizes"]:
        for name in ridge_page.QUANTITIES:
            noise = 0.01 * rng.normal(size=(50, 4))
            arrays[f"squared/0.5/N={size}/{name}"] = curve[name] + shift + 8 / size + noise
        arrays[f"squared/0.5/N={size}/status"] = np.zeros((50, 4), int)
        arrays[f"squared/0.5/N={size}/gap"] = np.full((50, 4), 1e-9)
    return config, arrays


def test_ridge_claims_see_what_was_planted():
    metrics = ridge_page.summarise(*planted_ridge(0.0))
    claims = statuses(metrics)
    assert claims["simulation minus theory, N to infinity: zero"] == "holds"
    assert claims["squared, rho = 0.5: flatter is better along the ridge"] == "holds"
    assert claims["Bayes-optimal error, rho = 0.5"] == "holds"
    row = metrics["comparisons"][0]
    assert row["slope"]["value"] == pytest.approx(8, abs=5 * row["slope"]["stderr"])
    assert row["differences"]["200"]["value"] == pytest.approx(0.04, abs=5 * 0.01 / np.sqrt(50))
    shifted = statuses(ridge_page.summarise(*planted_ridge(0.05)))
    assert shifted["simulation minus theory, N to infinity: zero"] == "does not hold"
    config, arrays = planted_ridge()
    arrays["squared/0.5/theory/curve.increment"] = arrays["squared/0.5/theory/curve.increment"][::-1]
    arrays["squared/0.5/N=200/status"][0, 0] = 10
    metrics = ridge_page.summarise(config, arrays)
    claims = statuses(metrics)
    assert claims["squared, rho = 0.5: flatter is better along the ridge"] == "does not hold"
    assert metrics["failures"] == [{"part": "squared/0.5/N=200", "outcome": "max steps", "times": 1, "of": 200}]


def test_flat_claims_are_paired_differences():
    rng = np.random.default_rng(0)
    config = {"losses": ["squared"], "alphas": [2.0], "rhos": [0.5], "delta": 1.0, "num_seeds": 20}
    config |= {"methods": ["sgd", "replicated_sgd"], "hyper": {"num_replicas": 3}}
    names = ("generalisation_error", "increment", "training_error")
    arrays = {f"squared/2/0.5/theory/{name}": np.array([0.3, 0.2]) for name in (*names, "ridge")}
    arrays["squared/2/0.5/theory/status"] = np.zeros(2, int)
    hard = rng.normal(size=20)  # samples differ more than methods do
    for method, gain in (("sgd", 0.0), ("replicated_sgd", 0.02)):
        for name in names:
            values = 0.3 + 0.1 * hard - gain + 0.005 * rng.normal(size=20)
            arrays[f"squared/2/0.5/{method}/{name}"] = np.stack([np.zeros(20), values], axis=1)
        arrays[f"squared/2/0.5/{method}/failed_step"] = np.full(20, -1)
    arrays["squared/2/0.5/sgd/failed_step"][3] = 5
    metrics = flat_page.summarise(config, arrays)
    assert [claim["status"] for claim in metrics["claims"]] == ["confirmed", "confirmed"]
    assert metrics["claims"][0]["ours"]["value"] == pytest.approx(-0.02, abs=5 * 0.0071 / np.sqrt(19))
    assert metrics["rows"][0]["best_ridge"]["generalisation_error"] == 0.2
    assert metrics["failures"] == [{"part": "squared/2/0.5/sgd", "times": 1, "of": 20}]


def test_entropy_claims_follow_the_order_that_was_planted():
    config = {"rhos": [0.5], "ridges": [0.1, 10.0], "distances": [0.1, 0.2], "reference_distance": 0.2}
    errors, losses = [0.3, 0.25, 0.2], [0.5, 0.4, 0.3]

    def claims(losses):
        arrays = {}
        for lam, error, loss in zip((0.1, 10.0, None), errors, losses, strict=True):
            prefix = f"0.5/{entropy.label(lam)}/"
            arrays[prefix + "generalisation_error"] = np.array(error)
            arrays[prefix + "loss"] = np.array([9.0, loss])
            arrays[prefix + "against_sphere"] = np.array([9.0, error])  # the wrong way round
            arrays[prefix + "status"], arrays[prefix + "certificate"] = np.zeros(2, int), np.full(2, 1e-9)
        return statuses(entropy.summarise(config, arrays))

    flat_claim = "rho = 0.5, flatness (small loss): rises towards Bayes"
    assert claims(losses)[flat_claim] == "holds"
    assert claims(losses[::-1])[flat_claim] == "does not hold"
    assert claims([0.4, 0.5, 0.45])[flat_claim] == "does not hold"
    assert claims(losses)["rho = 0.5, local entropy: rises towards Bayes"] == "does not hold"


@pytest.fixture(scope="module")
def finished(finish):
    """Smoke runs by experiment."""
    return {module: finish(module) for module in PICTURES}


def test_smoke_runs_leave_every_promised_file(finished, capsys):
    for module, run in finished.items():
        run.check(*PICTURES[module])
    assert main(["report", str(finished[flat].directory.parent)]) == 0
    assert "lower test error" in capsys.readouterr().out


def test_smoke_simulations_are_certified_and_follow_the_theory(finished):
    run = finished[ridge].run
    assert run.metrics["largest_gap"] <= ridge.PRESETS["smoke"].tolerance
    assert not run.metrics["failures"]
    for row in run.metrics["comparisons"]:
        assert abs(row["limit"]["value"]) < 6 * row["limit"]["stderr"]
    error = run.arrays["squared/0.5/N=40/generalisation_error"]
    assert error.shape == (3, 2)
    assert np.all((error > 0) & (error < 0.6))


def test_a_finished_part_is_not_done_again(finished, tmp_path, monkeypatch):
    stored = finished[ridge].run
    smoke = ridge.PRESETS["smoke"]
    for loss in smoke.losses:
        for rho in smoke.rhos:
            for part in ("theory", *(f"N={size}" for size in smoke.sizes)):
                prefix = f"{loss}/{rho:g}/{part}/"
                own = {k.removeprefix(prefix): v for k, v in stored.arrays.items() if k.startswith(prefix)}
                save_run(tmp_path / "parts" / f"{loss}-{rho:g}-{part}", smoke, own, {}, 1.0)
    monkeypatch.setattr(ridge, "simulate", None)
    monkeypatch.setattr(ridge, "theory", None)
    ridge.run(smoke, tmp_path, lambda done, of, what: None)
    assert load_run(tmp_path).metrics == stored.metrics


def test_bad_input_is_one_clear_sentence(tmp_path, capsys):
    arguments = ["run", "mixtures-ridge", "--preset", "smoke", "--output", str(tmp_path), "--num-seeds", "4"]
    assert main(arguments) == 2
    assert "mixtures-ridge: num_seeds must have one entry for each of the sizes (20, 40); got (4,)" in (
        capsys.readouterr().out
    )


@pytest.mark.slow
def test_default_preset_agrees_with_the_theory(tmp_path):
    """Minutes on two cores: simulations at N = 1000 within the bands of the specification, and no failures."""
    ridge.run(ridge.PRESETS["default"], tmp_path / "run", lambda done, of, what: None)
    metrics = load_run(tmp_path / "run").metrics
    claims = statuses(metrics)
    assert claims["N = 1000, squared, rho = 0.5, ridge 1"] == "holds"
    assert claims["N = 1000, logistic, rho = 0.5, ridge 1"] == "holds"
    assert claims["simulation minus theory, N to infinity: zero"] == "holds"
    assert not metrics["failures"]

"""The spectrum experiment in its smallest preset, end to end. Oracles: a linear classifier, whose Hessian is its
Gauss-Newton matrix; dense algebra on its one layer; planted spectra with known outliers; NumPy for means and errors."""

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.__main__ import main
from experiments.claims import statuses
from experiments.curvature import spectrum as experiment
from experiments.curvature import spectrum_page
from experiments.curvature.networks import make_model
from jflat.core import dense
from jflat.curvature import hessian
from jflat.report import Measured, load_run

SMOKE = experiment.PRESETS["smoke"]


@pytest.fixture(scope="module")
def finished(finish):
    return finish(experiment)


def solution_of(arrays, splits):
    """The network of the smoke run, and the parameters that training gives again."""
    model = make_model("mlp", splits.train[0].shape[1:], splits.num_classes, widths=(), channels=(), dense=())
    keys = jax.random.split(jax.random.fold_in(jax.random.key(SMOKE.seed), 1), SMOKE.num_seeds)
    result = experiment.train_seeds(experiment.make_run(SMOKE, model, splits), keys)
    np.testing.assert_allclose(result.history["train_loss"], arrays["mlp/history.train_loss"], rtol=1e-4)
    return model, result


def test_measurements_agree_with_dense_algebra(finished):
    arrays = finished.run.arrays
    splits = experiment.load_splits(SMOKE)
    model, result = solution_of(arrays, splits)
    loss_fn = experiment._loss_fn(model)
    for seed in range(SMOKE.num_seeds):
        params = jax.tree.map(lambda x, s=seed: x[s], result.params)
        values, vectors = np.linalg.eigh(np.asarray(dense(hessian(loss_fn, params, splits.train)), np.float64))
        top = values[::-1][:30]
        np.testing.assert_allclose(arrays["mlp/hessian.values"][seed], top, atol=2e-4 * top[0])
        np.testing.assert_allclose(arrays["mlp/gauss_newton.values"][seed], top, atol=2e-4 * top[0])
        np.testing.assert_allclose(arrays["mlp/hessian.smallest_values"][seed], values[:2], atol=1e-4 * top[0])
        np.testing.assert_allclose(arrays["mlp/block.output.values"][seed], top[:2], atol=2e-4 * top[0])
        gradient = np.asarray(jax.flatten_util.ravel_pytree(jax.grad(loss_fn)(params, splits.train))[0], np.float64)
        part = np.sum((vectors[:, -10:].T @ gradient) ** 2) / np.sum(gradient**2)
        assert arrays["mlp/gradient.full"][seed, -1] == pytest.approx(part, rel=0.02)
        near = abs(arrays["mlp/block.output.trace"][seed] - values.sum())
        assert near < 6 * arrays["mlp/block.output.trace_stderr"][seed]
    np.testing.assert_allclose(arrays["mlp/gauss_newton.shared"], 1.0, atol=1e-3)


def test_smoke_run_leaves_every_promised_file(finished, capsys):
    summary = finished.check("mlp_spectrum_page", "mlp_gradient", vector=False)
    files = {path.name for path in finished.directory.iterdir()}
    assert files >= {"mlp_spectrum_page.svg", "mlp_spectrum_column.svg", "mlp_spectrum_column.png"}
    claims = {claim["claim"]: claim for claim in summary.claims}
    assert len(claims) == 8
    assert claims["H and G: distance of eigenvalues"]["status"] == "confirmed"
    assert all(claim["source"] for claim in claims.values())
    assert main(["report", str(finished.directory.parent)]) == 0
    assert "number of outliers" in capsys.readouterr().out


def test_a_finished_part_is_not_done_again(finished, tmp_path, monkeypatch):
    stored = finished.run
    own = {key.removeprefix("mlp/"): value for key, value in stored.arrays.items()}
    experiment.save_run(tmp_path / "parts" / "mlp", SMOKE, own, {"layers": ["output"]}, 1.0)
    monkeypatch.setattr(experiment, "_measure", None)
    experiment.run(SMOKE, tmp_path, lambda done, total, what: None)
    again = load_run(tmp_path)
    assert again.metrics == stored.metrics
    for key, value in stored.arrays.items():
        np.testing.assert_array_equal(again.arrays[key], value)


def test_gradient_is_measured_at_the_parameters_of_that_time(finished):
    """The first time differs from the last; a mini-batch's gradient differs from the whole set's."""
    arrays = finished.run.arrays
    for name in ("full", "batch"):
        part = arrays[f"mlp/gradient.{name}"]
        assert part.shape == (2, 2)
        assert np.all((part > 0) & (part < 1))
    assert np.all(arrays["mlp/gradient.full"][:, 0] != arrays["mlp/gradient.full"][:, 1])
    assert np.all(arrays["mlp/gradient.full"] != arrays["mlp/gradient.batch"])


def test_largest_ratio_finds_planted_outliers():
    bulk = 0.1 * 0.97 ** np.arange(20)
    for count in (1, 9, 10):
        values = np.concatenate([np.geomspace(3.0, 1.0, count), bulk])
        assert spectrum_page.largest_ratio(values) == count
    pair = np.stack([np.concatenate([np.ones(3), bulk]), np.concatenate([np.ones(5), bulk[:-2]])])
    np.testing.assert_array_equal(spectrum_page.largest_ratio(pair), [3, 5])
    np.testing.assert_array_equal(spectrum_page.ratios(np.array([4.0, 2.0, -1.0])), [2.0, np.nan])
    assert np.isnan(spectrum_page.largest_ratio(np.array([-1.0, -2.0])))
    assert np.isnan(spectrum_page.largest_ratio(np.full(4, np.nan)))


def test_verdicts():
    assert spectrum_page.verdict(Measured(9.5, 0.2), 8, 11) == "confirmed"
    assert spectrum_page.verdict(Measured(9.5, 1.0), 8, 11) == "undecided"
    assert spectrum_page.verdict(Measured(2.0, 1.0), 8, 11) == "not confirmed"
    assert spectrum_page.verdict(Measured(14.0, 1.0), 8, 11) == "not confirmed"
    assert spectrum_page.verdict(Measured(9.5, None), 8, 11) == "undecided"
    assert spectrum_page.verdict(Measured(9.5, float("nan")), 8, 11) == "undecided"


def planted(num_seeds=5, outliers=10, part=0.8):
    """Arrays of a network with C = 10 classes, P = 1000 and known answers, in the layout of the experiment."""
    rng = np.random.default_rng(0)
    values = np.concatenate([np.geomspace(3.0, 1.0, outliers), 0.1 * 0.97 ** np.arange(30 - outliers)])
    values = values * rng.uniform(0.99, 1.01, (num_seeds, 1))
    nodes = np.tile([-0.5, -1e-6, 0.0, 3.0], (num_seeds, 2, 1))
    weights = np.tile([0.004, 0.3, 0.686, 0.01], (num_seeds, 2, 1))
    gradient = part + 0.01 * rng.normal(size=(num_seeds, 4))
    arrays = {
        "hessian.nodes": nodes,
        "hessian.weights": weights,
        "hessian.values": values,
        "hessian.residuals": np.zeros_like(values),
        "hessian.status": np.zeros(num_seeds, int),
        "hessian.density_status": np.full(num_seeds, 2),
        "hessian.smallest_values": np.full((num_seeds, 2), -0.5),
        "hessian.smallest_status": np.zeros(num_seeds, int),
        "gauss_newton.values": values * 1.05,
        "gauss_newton.shared": np.full(num_seeds, 0.99),
        "gauss_newton.status": np.zeros(num_seeds, int),
        "gradient.full": gradient,
        "gradient.batch": gradient - 0.5,
        "gradient.status": np.zeros((num_seeds, 4), int),
        "block.a.values": values[:, :5],
        "block.a.diagonal": np.full(num_seeds, 7.0),
        "block.a.trace": np.full(num_seeds, 7.0),
        "block.a.trace_stderr": np.full(num_seeds, 0.1),
        "block.a.trace_status": np.full(num_seeds, 2),
        "sizes": np.array([1000]),
        "failed_step": np.full(num_seeds, -1),
        "history.train_loss": np.ones((num_seeds, 2)),
        "history.train_error": np.zeros((num_seeds, 2)),
        "history.test_error": np.full((num_seeds, 2), 0.1),
    }
    return {"num_classes": 10, "layers": {"mlp": ["a"]}}, {f"mlp/{key}": value for key, value in arrays.items()}


def test_claims_recover_what_was_planted_and_refuse_what_was_not():
    def found(**planting):
        return {claim["claim"]: claim for claim in spectrum_page.summarise(*planted(**planting))["claims"]}

    claims = found()
    kinds = [claim["status"] for claim in claims.values()]
    assert kinds.count("confirmed") == len(kinds) - 2
    assert claims["mini-batch gradient in it"]["status"] == "not confirmed"
    assert claims["most negative eigenvalue / λ_1"]["status"] == "not confirmed"  # 0.5 / 3
    assert claims["negative part of the spectrum"]["ours"]["value"] == pytest.approx(0.004)  # not those of -1e-6
    assert claims["number of outliers"]["ours"]["value"] == 10
    assert claims["gap after C − 1 or C"]["ours"]["value"] == pytest.approx(1 / 0.1 - 1 / 0.97)
    assert claims["H and G: distance of eigenvalues"]["ours"]["value"] == pytest.approx(0.05)
    assert claims["H and G: spaces not shared"]["ours"]["value"] == pytest.approx(0.01)
    fewer = found(outliers=4, part=0.3)
    for name in ("number of outliers", "gap after C − 1 or C", "gradient in the top C space"):
        assert fewer[name]["status"] == "not confirmed"
    one_off = found(outliers=9)
    assert one_off["number of outliers"]["status"] == "confirmed"
    assert one_off["gap after C − 1 or C"]["status"] == "confirmed"


def test_failed_seeds_are_left_out_and_named():
    run, arrays = planted()
    arrays["mlp/failed_step"][1] = 17
    arrays["mlp/hessian.values"][1] = np.nan
    arrays["mlp/gradient.status"][2, 0] = 10
    metrics = spectrum_page.summarise(run, arrays)
    good = np.delete(arrays["mlp/hessian.values"][:, 0], 1)
    row = metrics["networks"]["mlp"]["top eigenvalue"]
    assert row["value"] == pytest.approx(good.mean())
    assert row["stderr"] == pytest.approx(good.std(ddof=1) / 2)
    found = [(f["measure"], f["outcome"], f["times"], f["of"]) for f in metrics["failures"]]
    assert found == [("training", "non finite", 1, 5), ("top eigenvectors along training", "max steps", 1, 20)]


def test_splits_share_no_sample_and_take_the_whole_set_where_asked():
    splits = experiment.load_splits(dataclasses.replace(SMOKE, num_train=1000, num_test=5000))
    assert len(splits.train[0]) == 1000
    assert len(splits.test[0]) == 797
    rows = {image.tobytes() for image in np.asarray(splits.test[0])}
    assert not any(image.tobytes() in rows for image in np.asarray(splits.train[0]))
    whole = experiment.load_splits(dataclasses.replace(SMOKE, num_train=1442))
    assert (len(whole.train[0]), len(whole.test[0])) == (1442, 100)
    with pytest.raises(ValueError, match="hold_out: num_samples must"):
        experiment.load_splits(dataclasses.replace(SMOKE, num_train=1443))


@pytest.mark.parametrize("name", ["mlp", "convnet", "residual"])
def test_networks_have_a_block_for_each_layer(name):
    model = make_model(name, (8, 8, 1), 10, widths=(6, 6), channels=(2, 3), dense=(4,))
    params = jax.eval_shape(model.init, jax.random.key(0))[0]
    assert list(params)[-1] == "output"
    assert len(params) == {"mlp": 3, "convnet": 4, "residual": 3}[name]
    assert jax.eval_shape(model.apply, params, {}, jnp.zeros((5, 8, 8, 1))).shape == (5, 10)


@pytest.mark.slow
def test_default_preset_finds_the_outliers_of_the_gauss_newton_matrix(tmp_path):
    """Minutes on two cores: in all networks the outliers of H are those of G, and negative eigenvalues are small."""
    config = dataclasses.replace(experiment.PRESETS["default"], models=("mlp",), num_seeds=2, num_evals=2)
    experiment.run(config, tmp_path / "run", lambda done, total, what: None)
    metrics = load_run(tmp_path / "run").metrics
    assert statuses(metrics)["H and G: distance of eigenvalues"] == "confirmed"
    assert metrics["networks"]["mlp"]["smallest"]["value"] < 0.1
    assert not metrics["failures"]

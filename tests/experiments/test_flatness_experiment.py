"""The main job in its smallest preset, end to end. Oracles: the budget counted by hand, NumPy on planted arrays, and
the files that a user finds afterwards."""

import dataclasses
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.__main__ import main
from experiments.entropic import flatness_page
from experiments.entropic import flatness_predicts_generalisation as experiment
from experiments.entropic.methods import METHODS, Hyperparameters, make_method
from jflat.data import mean_over_batches, split_batches

SMOKE = experiment.PRESETS["smoke"]


def test_smoke_run_interrupted_resumed_and_reported(tmp_path, capsys, request, finish):
    """Ctrl-C in the second part leaves the first one done; the same command goes on and leaves every promised file."""
    seen = []

    def interrupt(done, total, what):
        seen.append(what)
        if what == "mlp, Entropy-SGD: training":
            raise KeyboardInterrupt

    directory = tmp_path / "flatness"
    with pytest.raises(KeyboardInterrupt):
        experiment.run(SMOKE, directory, interrupt)
    first = directory / "parts" / "mlp-sgd" / "metrics.json"
    written = first.stat().st_mtime_ns

    def watch(done, total, what):
        if first.exists():
            assert first.stat().st_mtime_ns == written, "a finished part was run again"

    finished = finish(experiment, directory, watch)
    summary = finished.check("mlp_training", "mlp_local_energy", "mlp_spectrum", "mlp_scatter", vector=False)
    for method in SMOKE.methods:
        assert flatness_page.label(SMOKE.hyper, method) in summary.table
    stored = json.loads((directory / "metrics.json").read_text())
    assert stored["metrics"]["experiment"] == "flatness"
    assert {"jax", "optax", "python"} <= set(stored["versions"])
    sgd = stored["metrics"]["methods"]["mlp"]["sgd"]
    arrays = np.load(directory / "arrays.npz")
    errors = arrays["mlp/sgd/history.test_error"][:, -1]
    assert sgd["test_error"]["value"] == pytest.approx(errors.mean())
    assert sgd["test_error"]["stderr"] == pytest.approx(errors.std(ddof=1) / np.sqrt(len(errors)))

    if shutil.which("chromium"):
        view, document, *_, image = request.getfixturevalue("phone_widths")(summary.page)
        assert document <= view == 390
        assert 0.85 * view < image < view

    capsys.readouterr()
    assert main(["report", str(tmp_path)]) == 0
    assert "MLP" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["sgd", "replicated_sgd"])
def test_a_network_with_batch_norm_is_judged_with_re_estimated_statistics(method):
    config = dataclasses.replace(SMOKE, num_gradients=12, num_evals=1)
    splits = experiment.load_splits(config)
    model = experiment.make_model(config, "convnet_batch_norm", splits)
    result = jax.jit(experiment.make_run(config, model, method, splits))(jax.random.key(0))
    batches = split_batches(splits.train, config.batch_size)
    exact = mean_over_batches(lambda b: model.batch_statistics(result.params, b[0]), batches)
    for ours, theirs in zip(jax.tree.leaves(result.model_state), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert np.isfinite(result.history["test_error"]).all()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_same_budget(name):
    hyper, budget = Hyperparameters(num_replicas=3, num_inner=5), 3000
    method = make_method(name, hyper, budget, 20)
    spent = method.num_steps * method.gradients_per_update * (method.num_replicas or 1)
    assert spent == (3 * budget if name == "replicated_sgd_full" else budget)
    assert method.num_steps % 20 == 0
    with pytest.raises(ValueError, match="make_method: num_gradients must allow an update per evaluation"):
        make_method(name, hyper, 19, 20)


def test_splits_share_no_sample_and_have_the_exact_number_of_wrong_labels():
    splits = experiment.load_splits(dataclasses.replace(SMOKE, num_train=200, num_test=5000, label_noise=0.1))
    clean = experiment.load_splits(dataclasses.replace(SMOKE, num_train=200, num_test=5000, label_noise=0.0))
    assert len(splits.train[0]) == 200
    assert len(splits.test[0]) == 1797 - 200
    np.testing.assert_array_equal(splits.train[0], clean.train[0])
    assert int(np.sum(splits.train[1] != clean.train[1])) == 20
    rows = {image.tobytes() for image in np.asarray(splits.test[0])}
    assert not any(image.tobytes() in rows for image in np.asarray(splits.train[0]))


@pytest.mark.parametrize("num_train", [60, 500, 700, 1000])
def test_flatness_is_measured_on_every_training_sample(num_train):
    """Oracle: the mean over the whole set; 700 is one full batch of 500 and a short one."""
    splits = experiment.load_splits(dataclasses.replace(SMOKE, num_train=num_train))
    found = mean_over_batches(lambda b: jnp.mean(b[0], axis=0), experiment.training_batches(splits))
    np.testing.assert_allclose(found, np.mean(splits.train[0], axis=0), atol=1e-5)


@pytest.mark.parametrize(
    ("data", "shape"), [("fashion_mnist", (14, 14, 1)), ("mnist", (14, 14, 1)), ("cifar10", (16, 16, 3))]
)
def test_real_data_are_found_where_jflat_data_says(data, shape):
    if not os.environ.get("JFLAT_DATA"):
        pytest.skip("JFLAT_DATA is not set: no real data to read")
    splits = experiment.load_splits(dataclasses.replace(experiment.Config(), data=data))
    assert splits.train[0].shape == (400, *shape)
    assert splits.test[0].shape[1:] == shape
    assert splits.num_classes == 10
    np.testing.assert_allclose(np.mean(splits.train[0]), 0.0, atol=0.1)  # standardised over the whole training set


def planted(num_seeds=6):
    """Arrays of two methods: SAM's test error is 2 points lower and its local energy 4 points, seed by seed."""
    config = dataclasses.asdict(
        dataclasses.replace(SMOKE, methods=("sgd", "sam"), num_seeds=num_seeds, num_evals=1, models=("mlp",))
    )
    rng = np.random.default_rng(0)
    base = rng.uniform(0.1, 0.2, num_seeds)
    arrays = {}
    for method, error, energy in (("sgd", base, base), ("sam", base - 0.02, base - 0.04)):
        prefix = f"mlp/{method}/"
        arrays[prefix + "history.test_error"] = (error + 1e-3 * rng.normal(size=num_seeds))[:, None]
        arrays[prefix + "history.train_error"] = np.zeros((num_seeds, 1))
        arrays[prefix + "history.gradient_evaluations"] = np.full((num_seeds, 1), 60)
        arrays[prefix + "local_energy"] = np.stack([energy / 2, energy], axis=1)
        for name in ("train_loss", "gradient_norm", *flatness_page.MEASURES):
            arrays.setdefault(prefix + name, rng.uniform(size=num_seeds))
        arrays[prefix + "failed_step"] = np.full(num_seeds, -1)
        for part in flatness_page.PARTS:
            arrays[f"{prefix}status.{part}"] = np.full(num_seeds, 2)
    return config, arrays


def test_claims_recover_a_planted_effect_and_its_sign():
    config, arrays = planted()
    metrics = flatness_page.summarise(config, arrays)
    by_text = {claim["claim"]: claim for claim in metrics["claims"]}
    error = by_text["SAM: lower test error than SGD"]
    difference = (arrays["mlp/sam/history.test_error"] - arrays["mlp/sgd/history.test_error"])[:, 0]
    assert error["ours"]["value"] == pytest.approx(difference.mean())
    assert error["ours"]["stderr"] == pytest.approx(difference.std(ddof=1) / np.sqrt(len(difference)))
    assert error["status"] == "holds"
    arrays = {k.replace("/sam/", "/x/").replace("/sgd/", "/sam/").replace("/x/", "/sgd/"): v for k, v in arrays.items()}
    swapped = {claim["claim"]: claim for claim in flatness_page.summarise(config, arrays)["claims"]}
    assert swapped["SAM: lower test error than SGD"]["status"] == "does not hold"
    row = metrics["correlations"]["mlp"]["local_energy"]
    assert row["pooled"] > 0.8
    assert row["within"] > 0.8
    assert row["runs"] == 12


def test_failed_seeds_are_left_out_and_named():
    config, arrays = planted()
    arrays["mlp/sam/failed_step"][2] = 17
    arrays["mlp/sam/history.test_error"][2] = np.nan
    arrays["mlp/sgd/status.sharpness"][1] = 10
    metrics = flatness_page.summarise(config, arrays)
    good = np.delete(arrays["mlp/sam/history.test_error"][:, 0], 2)
    assert metrics["methods"]["mlp"]["sam"]["test_error"]["value"] == pytest.approx(good.mean())
    found = [(f["method"], f["measure"], f["outcome"], f["seeds"]) for f in metrics["failures"]]
    assert found == [("SGD", "sharpness", "max steps", 1), ("SAM", "training", "non finite", 1)]
    assert metrics["correlations"]["mlp"]["local_energy"]["runs"] == 11


@pytest.mark.slow
def test_default_preset_fits_the_training_set_and_finds_the_flatter_minima(tmp_path):
    """About five minutes on two cores: every method fits the wrong labels; coupled replicas end flatter than SGD."""
    experiment.run(experiment.PRESETS["default"], tmp_path / "run", lambda done, total, what: None)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    for methods in metrics["methods"].values():
        assert all(row["train_error"]["value"] < 0.01 for row in methods.values())
    claims = {(claim["model"], claim["claim"]): claim["status"] for claim in metrics["claims"]}
    assert claims["MLP", "Replicated-SGD: flatter than SGD"] == "holds"

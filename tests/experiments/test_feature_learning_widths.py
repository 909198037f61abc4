"""Coordinate check, learning rates and sharpness against width: smallest presets end to end, and claims on planted
arrays. Oracles: what was planted; descent by hand; a dense Hessian; the symmetry that scales it from form to form."""

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.claims import statuses
from experiments.feature_learning import (
    coordinates,
    coordinates_page,
    learning_rates,
    learning_rates_page,
    sharpness,
    sharpness_page,
)
from jflat.core import Status
from jflat.losses import cross_entropy, squared_error
from jflat.models import mlp
from jflat.width import abc_optimizer, canonical, classify, fold, infer_infshapes, init_transform, mup, ntp, sp


@pytest.fixture(
    scope="module",
    params=[coordinates, learning_rates, sharpness],
    ids=["coordinates", "learning_rates", "sharpness"],
)
def finished(request, finish):
    return finish(request.param)


def test_smoke_run_leaves_every_promised_file(finished):
    names = {
        coordinates: ("slopes", "curves", "blow_up"),
        learning_rates: ("sgd_losses", "rates", "transfer"),
        sharpness: ("course", "canonical", "forms"),
    }[finished.module]
    finished.check(*names)
    assert not finished.run.metrics["failures"]


def test_smoke_run_has_at_the_base_width_one_network(finished):
    arrays = finished.run.arrays
    if finished.module is coordinates:
        small = {name: arrays[f"slopes/{name}/act"][:, 0, 0] for name in ("mup", "sp_0")}
        assert np.all(small["mup"][:, -1] < small["sp_0"][:, -1])  # outputs shrink as n^{-1/2} in muP
        np.testing.assert_allclose(small["mup"][:, :-1], small["sp_0"][:, :-1], rtol=1e-12)
    elif finished.module is learning_rates:
        np.testing.assert_array_equal(arrays["sgd/mup/16/loss"], arrays["sgd/sp/16/loss"])
        assert np.any(arrays["sgd/mup/64/loss"] != arrays["sgd/sp/64/loss"])
    else:
        for name in ("largest", "loss", "fold.smallest"):
            np.testing.assert_array_equal(arrays[f"mup/16/{name}"], arrays[f"ntp/16/{name}"])
            np.testing.assert_array_equal(arrays[f"mup/16/{name}"], arrays[f"sp/16/{name}"])
        np.testing.assert_allclose(arrays["mup/16/largest"][:, 0], arrays["mup/16/fold.largest"][:, 0], rtol=1e-3)
        assert np.all(np.abs(arrays["ntp/32/largest"][:, 0] / arrays["ntp/32/fold.largest"][:, 0] - 1) > 0.05)


def planted_coordinates(tilt):
    """Two parametrisations at their theory's powers, one layer of the first tilted; the second blows up."""
    cases = {name: coordinates.CASES[name] for name in ("mup", "sp_0")}
    config = dataclasses.asdict(coordinates.Config(cases=tuple(cases), widths=(16, 64, 256), fit_from=16))
    rng, arrays = np.random.default_rng(0), {}
    widths = np.array(config["widths"], float)[None, :, None, None]
    for name, case in cases.items():
        result = classify(case.parametrisation, 3)
        slopes = result.first_slopes if case.is_first_step else result.slopes
        steps = 2 if case.is_first_step else 3
        for stat in ("act", *coordinates_page.STATISTICS):
            powers = np.array([np.nan if s is None else float(s) for s in getattr(slopes, stat, (0,) * 4)])
            if name == "mup" and stat == "dwx":
                powers = powers + np.array([0, tilt, 0, 0])
            noise = np.exp(0.02 * rng.standard_normal((6, 3, steps, 4)))
            arrays[f"slopes/{name}/{stat}"] = widths ** powers[None, None, None, :] * noise
            size = 1e5 if name == "sp_0" else 0.1
            arrays[f"blow_up/{name}/{stat}"] = np.exp(0.1 * rng.standard_normal((6, 2, 3, 4))) * size
        arrays[f"slopes/{name}/status"] = np.full((6, 3), Status.COMPLETED)
        arrays[f"blow_up/{name}/status"] = np.full((6, 2), Status.NON_FINITE if size > 1 else Status.COMPLETED)
    return config, arrays


def test_claims_of_the_coordinate_check_see_what_was_planted():
    config, arrays = planted_coordinates(0.0)
    metrics = coordinates_page.summarise(config, coordinates.CASES, arrays)
    assert set(statuses(metrics).values()) == {"holds"}
    assert len(metrics["slopes"]) == 22
    assert not metrics["failures"]  # an unstable network may overflow
    metrics = coordinates_page.summarise(config, coordinates.CASES, planted_coordinates(0.3)[1])
    wrong = [claim for claim in metrics["claims"] if claim["status"] != "holds"]
    assert [claim["claim"] for claim in wrong] == ["muP: 11 slopes are those of theory; worst"]
    assert wrong[0]["ours"].startswith("ΔW x of h2: 0.29")


def test_best_and_useful_rates_of_written_curves():
    powers = np.arange(-4.0, 5.0)
    curve = np.exp(0.2 * (powers - 0.3) ** 2)
    assert learning_rates_page.best_rate(np.stack([2 * curve, 0.5 * curve]), powers) == pytest.approx(0.3)
    assert learning_rates_page.best_rate(curve[None, :3], powers[:3]) == -2  # at an end of the grid
    broken = np.where(powers > 1, np.nan, curve)
    low, high = learning_rates_page.useful_rates(broken[None], float(np.exp(0.2 * 2.3**2)), powers)[0]
    assert (low, high) == (pytest.approx(-2.0), 1.5)
    assert np.isnan(learning_rates_page.useful_rates(curve[None], 0.5, powers)).all()
    assert np.isnan(learning_rates_page.useful_rates(curve[None, 2:6], 9.0, powers[2:6])).all()


def planted_rates(slopes):
    config = dataclasses.asdict(learning_rates.Config(setups=("sgd",), sgd_rates=(-12, 3)))
    rng, arrays = np.random.default_rng(1), {}
    powers = learning_rates_page.log_rates(config, "sgd")
    for name, slope in slopes.items():
        for width in config["widths"]:
            place = -2 + slope * np.log2(width / 64) + 0.05 * rng.standard_normal((4, 1))
            height = 0.5 * (width / 64) ** (-0.2 if name == "mup" else 0.0)
            noise = np.exp(0.01 * rng.standard_normal((4, 1)))
            arrays[f"sgd/{name}/{width}/loss"] = noise * height * np.exp(0.1 * (powers - place) ** 2)
            arrays[f"sgd/{name}/{width}/test_error"] = np.full((4, len(powers)), 0.1)
    return config, arrays


def test_claims_of_learning_rates_see_what_was_planted():
    metrics = learning_rates_page.summarise(
        planted_rates({"mup": 0.0, "sp": -1.0})[0], 10, planted_rates({"mup": 0.0, "sp": -1.0})[1]
    )
    found = statuses(metrics)
    for text in (
        "muP: slope of log₂ best",
        "SP: slope of log₂ best",
        "SP: slope of log₂ largest",
        "muP: change of log",
    ):
        assert [word for claim, word in found.items() if text in claim] == ["holds"], text
    assert [word for claim, word in found.items() if "log of SP's over muP's" in claim] == ["holds"]
    assert metrics["cases"][1]["best_slope"]["value"] == pytest.approx(-1, abs=0.05)
    assert 0 < metrics["cases"][1]["best_slope"]["stderr"] < 0.05
    found = statuses(
        learning_rates_page.summarise(config := planted_rates({})[0], 10, planted_rates({"mup": -1.0, "sp": 0.0})[1])
    )
    assert config["base_width"] == 64
    for text in ("muP: slope of log₂ best", "SP: slope of log₂ best", "SP: slope of log₂ largest"):
        assert [word for claim, word in found.items() if text in claim] == ["does not hold"], text


def test_training_is_descent_with_the_rates_of_the_parametrisation():
    """Twice the base width, muP folded: rates 2, 1, 1/2 of first layer and biases, hidden, readout; output bias 1."""
    config = learning_rates.Config(num_train=40, num_test=10, widths=(8, 16), base_width=8)
    splits = learning_rates.load(config)
    model = mlp(splits.train[0].shape[1:], (16, 16), num_classes=10)
    key, batches = jax.random.key(0), jnp.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    train = learning_rates.make_training(config, splits, 16, "sgd", mup())
    found = train(key, batches, jnp.float32(0.1), splits)
    params, _ = model.init(key)
    params["output"]["kernel"] = params["output"]["kernel"] / jnp.sqrt(2.0)
    rates = jax.tree.map(lambda _: 2.0, params)
    rates["dense_1"]["kernel"], rates["output"]["kernel"], rates["output"]["bias"] = 1.0, 0.5, 1.0
    images, labels = splits.train
    for places in batches:
        x, y = images[places], labels[places]
        gradient = jax.grad(lambda w, x=x, y=y: cross_entropy(model.apply(w, {}, x), y))(params)
        params = jax.tree.map(lambda w, r, g: w - 0.1 * r * g, params, rates, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found["params"], params)
    np.testing.assert_allclose(found["loss"], cross_entropy(model.apply(params, {}, images), labels), rtol=1e-5)


@pytest.mark.parametrize("p", [mup(), ntp(), sp(1)], ids=["muP", "NTP", "SP"])
def test_forms_are_one_network_and_eigenvalues_are_those_of_a_dense_hessian(p):
    rng = np.random.default_rng(2)
    data = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32), jax.nn.one_hot(jnp.arange(6) % 2, 2)
    models = {n: mlp((3,), (n, n), num_classes=2, activation="tanh") for n in (2, 4)}
    key = jax.random.key(0)
    shapes = infer_infshapes(*(jax.eval_shape(models[n].init, key)[0] for n in (2, 4, 4)))
    weights = jax.tree.map(lambda w: w[None], models[4].init(key)[0])
    forms = [sharpness.make_form(q, weights, shapes) for q in (canonical(p), fold(p))]
    # descent with one rate, in canonical form, against the optimiser's rates by layer without multipliers
    course, losses = sharpness.descend(forms[0], data, jnp.float32(0.2), jnp.int32(3), width=4, num_looks=2)
    tx = abc_optimizer(optax.sgd(0.2), p, shapes)
    params = init_transform(p, shapes)(models[4].init(key)[0])
    for _ in range(6):
        gradient = jax.grad(lambda w: squared_error(models[4].apply(w, {}, data[0]), data[1]))(params)
        params = optax.apply_updates(params, tx.update(gradient, tx.init(params), params)[0])
    last = jax.tree.map(lambda w, number: w[0, -1] * number, course, forms[0].numbers)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), last, params)
    np.testing.assert_allclose(losses[0, -1], squared_error(models[4].apply(params, {}, data[0]), data[1]), rtol=1e-5)
    # both forms' Hessians, dense: D H D of the plain one
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    plain = jax.hessian(lambda w: squared_error(models[4].apply(unravel(w), {}, data[0]), data[1]))(flat)
    for form in forms:
        scales = jax.tree.map(lambda number, w: jnp.full_like(w, number), form.numbers, params)
        vector = np.asarray(jax.flatten_util.ravel_pytree(scales)[0])
        expected = np.linalg.eigvalsh(vector[:, None] * np.asarray(plain) * vector)
        point = jax.tree.map(lambda w, number: (w / number)[None], params, form.numbers)
        numbers = jax.tree.map(lambda number: number[None], form.numbers)
        found = sharpness.ends(point, numbers, data, key, width=4, tolerance=1e-4)
        assert int(found["status"][0]) == Status.CONVERGED
        np.testing.assert_allclose(found["largest"][0], expected[-1], rtol=1e-3)
        np.testing.assert_allclose(found["smallest"][0], expected[0], rtol=1e-2, atol=1e-3)


def planted_sharpness(powers):
    """lambda_max, |lambda_min| and its change with given powers; two looks, the second at the target loss."""
    config = dataclasses.asdict(sharpness.Config(num_looks=2, widths=(16, 64, 256), fit_from=16))
    rng, arrays = np.random.default_rng(3), {}
    for name in sharpness_page.LABELS:
        for n in config["widths"]:
            large, small, change = (n / 16) ** np.array(powers[name])
            noise = lambda: np.exp(0.02 * rng.standard_normal((4, 1)))  # noqa: E731
            start = 5 * large * noise()
            end = start * (1 + 0.2 * change * noise())
            if name == "mup":
                end = 2 / config["rate"] * noise()
                start = end / (1 + 0.2 * change * noise())
            arrays |= {
                f"{name}/{n}/loss": np.tile([1.0, 0.05, 0.05], (4, 1)),
                f"{name}/{n}/largest": np.concatenate([start, end, end], axis=1),
                f"{name}/{n}/smallest": -small * noise() * np.ones((4, 3)),
                f"{name}/{n}/status": np.full((4, 3), Status.CONVERGED),
                f"{name}/{n}/gauss_newton_trace": 9 * large * noise() * np.ones((4, 2)),
                f"{name}/{n}/fold.largest": 6 * large * n * noise() * np.ones((4, 2)),
            }
    return config, arrays


def test_claims_of_sharpness_see_what_was_planted():
    kernel = (0.0, -0.5, -0.75)
    good = {"mup": (0.0, 0.0, 0.0), "ntp": kernel, "sp": kernel}
    metrics = sharpness_page.summarise(*planted_sharpness(good))
    assert {claim: word for claim, word in statuses(metrics).items() if word != "holds"} == {}
    lazy = statuses(sharpness_page.summarise(*planted_sharpness(good | {"ntp": (0.0, 0.0, 0.0)})))
    assert lazy["NTP: power of n of |λ_min| at the start"] == "does not hold"
    assert lazy["NTP: power of n of relative change of λ_max, start to equal loss"] == "does not hold"
    steep = statuses(sharpness_page.summarise(*planted_sharpness(good | {"sp": (1.0, -0.5, -0.75)})))
    assert steep["SP, rate 1/n: power of n of λ_max at equal loss"] == "does not hold"
    assert steep["SP, rate 1/n, n = 256: λ_max η late in training"] == "does not hold"


def test_refused_configurations(tmp_path):
    with pytest.raises(ValueError, match="fit_from must leave two of the widths"):
        coordinates.run(coordinates.Config(fit_from=2048), tmp_path, print)
    with pytest.raises(ValueError, match="cases must be one of"):
        coordinates.run(coordinates.Config(cases=("mupp",)), tmp_path, print)
    with pytest.raises(ValueError, match="base_width must be one of `widths`"):
        learning_rates.run(learning_rates.Config(base_width=65), tmp_path, print)
    with pytest.raises(ValueError, match="widths must ascend"):
        learning_rates.run(learning_rates.Config(widths=(64, 32)), tmp_path, print)
    with pytest.raises(ValueError, match="sgd_rates must span"):
        learning_rates.run(learning_rates.Config(sgd_rates=(0, 1)), tmp_path, print)
    with pytest.raises(ValueError, match="fit_from must leave two of the widths"):
        sharpness.run(sharpness.Config(fit_from=256), tmp_path, print)
    with pytest.raises(ValueError, match="num_looks must be at least 1"):
        sharpness.run(sharpness.Config(num_looks=0), tmp_path, print)

"""Wide minima: both experiments' smallest presets end to end, and their claims on planted arrays.
Oracles: what was planted; a forward pass in NumPy; the theory's exact statements on the smoke runs' own files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.claims import statuses
from experiments.wide_minima import denoisers, denoisers_page, linear, linear_page
from experiments.wide_minima.drawing import draw_matrices
from jflat.core import Status
from jflat.data import load_images

PICTURES = {linear: ("step_size", "gains", "coupling", "resnets"), denoisers: ("sharpness", "course", "gains")}


@pytest.fixture(scope="module", params=[linear, denoisers], ids=["linear", "denoisers"])
def finished(request, finish):
    return finish(request.param)


def test_smoke_run_leaves_every_promised_file_and_is_not_done_again(finished):
    finished.check(*PICTURES[finished.module])


def test_smoke_run_says_what_is_proved(finished):
    """Exact statements hold at any size: caps and bounds, ResNets, the saddle."""
    assert not finished.run.metrics["failures"]
    found = finished.statuses
    if finished.module is denoisers:
        assert any("λ_max η / 2" in claim for claim in found)
        return
    for claim in (
        "every minimum reached: λ_max over the least sharpness",
        "every minimum reached: λ_max η / 2",
        "steps above η_c",
        "white data, T positive definite, 3 layers: |ratio − 1|",
        "det T < 0, 3 layers: loss over c·0.5²",
        "coloured data, 3 layers: ratio / balanced − 1",
    ):
        assert found[claim] == "holds", claim


def planted_sweep(ratio, status):
    """Two steps below the critical one and one above, four starts; everything else is even."""
    config = {"fractions": [0.1, 0.9, 1.1], "resnet_depths": [], "smallest": 0.5}
    ones = np.ones((3, 4, 2))
    arrays = {
        "sweep/ratio": np.asarray(ratio),
        "sweep/status": np.asarray(status),
        "sweep/path_gains": ones + np.array([0.5, 0.1, 0.0])[:, None, None] * np.linspace(0.9, 1, 4)[:, None],
        "sweep/coupling_residuals": ones * np.array([0.1, 0.5, 0.0])[:, None, None],
    }
    return config, arrays


def test_claims_of_the_sweep_see_what_was_planted():
    good, bad = int(Status.CONVERGED), int(Status.OSCILLATING)
    ratio = np.array([[2.0, 2.1, 2.2, 2.3], [1.05, 1.06, 1.04, 1.05], [9.0] * 4])
    status = np.array([[good] * 4, [good] * 4, [bad] * 4])
    metrics = linear_page.summarise(*planted_sweep(ratio, status))
    found = statuses(metrics)
    assert set(found.values()) == {"holds", "does not hold"}
    assert [claim for claim, word in found.items() if word != "holds"] == [
        "coupling residual, largest layer: 0.1 η_c − 0.9 η_c"  # planted the other way round
    ]
    assert [row["converged"] for row in metrics["sweep"]] == [4, 4, 0]
    assert not metrics["failures"]  # oscillation is what is expected there
    too_sharp = ratio.copy()
    too_sharp[1, 2] = 1.2  # above 1 / 0.9
    assert statuses(linear_page.summarise(*planted_sweep(too_sharp, status)))["every minimum reached: λ_max η / 2"] == (
        "does not hold"
    )
    nothing = statuses(linear_page.summarise(*planted_sweep(ratio, np.full((3, 4), bad))))
    assert nothing["runs that converge"] == "does not hold"
    status[2, 1] = good
    found = statuses(linear_page.summarise(*planted_sweep(ratio, status)))
    assert found["steps above η_c"] == found["every minimum reached: λ_max η / 2"] == "does not hold"


def test_tasks_are_what_their_names_say():
    config = linear.Config()
    with jax.enable_x64(True):
        for seed in range(3):
            signs = {}
            for kind in linear.KINDS:
                task = linear.make_task(config, kind, seed)
                np.testing.assert_allclose(np.linalg.svd(task.target)[1], np.linspace(2, 0.5, 4), rtol=1e-12)
                signs[kind] = np.linalg.det(task.target) > 0
                is_white = np.allclose(task.root, np.eye(4))
                assert is_white == (kind != "coloured")
                symmetric = np.allclose(task.target, task.target.T)
                assert symmetric == (kind != "rotated")
            assert signs == {"positive": True, "rotated": True, "negative": False, "coloured": True}


def planted_denoisers(sharpness, diverged):
    """One depth and two steps, three seeds, ten looks of which the last is a spike."""
    config = {"depths": [2], "step_sizes": [1.0, 2.0]}
    arrays = {}
    for name, level, gone, tilt in zip(("2/1", "2/2"), sharpness, diverged, (0.5, 0.1), strict=True):
        looks = np.tile(level * np.linspace(1, 1.01, 3)[:, None], (1, 20))
        gains = np.exp(tilt * np.array([1.0, -1.0]) * np.linspace(0.9, 1.1, 3)[:, None, None] * np.ones((3, 5, 1)))
        gains[:, 0] = np.nan
        outcome = np.full((3, 5), Status.COMPLETED)
        outcome[:, 0] = Status.ZERO_START
        arrays |= {
            f"{name}/sharpness": looks,
            f"{name}/loss": looks / 10,
            f"{name}/test_loss": looks / 5,
            f"{name}/status": np.full((3, 20), Status.CONVERGED),
            f"{name}/diverged": np.full(3, gone),
            f"{name}/path_gains": gains,
            f"{name}/path_outcome": outcome,
            f"{name}/coupling_residuals": tilt * np.ones((3, 5, 2)) * np.linspace(0.9, 1.1, 3)[:, None, None],
        }
    return config, arrays


def test_claims_of_the_denoisers_see_what_was_planted():
    config, arrays = planted_denoisers((1.5, 0.9), (False, False))
    np.testing.assert_allclose(denoisers_page.last(arrays, "2/1", "sharpness"), 1.5 * np.linspace(1, 1.01, 3))
    np.testing.assert_allclose(denoisers_page.unevenness(arrays, "2/1"), 0.5 * np.linspace(0.9, 1.1, 3))
    np.testing.assert_allclose(denoisers_page.decoupling(arrays, "2/2"), 0.1 * np.linspace(0.9, 1.1, 3))
    metrics = denoisers_page.summarise(config, arrays)
    assert set(statuses(metrics).values()) == {"holds"}
    assert not metrics["failures"]
    over = statuses(denoisers_page.summarise(*planted_denoisers((0.7, 1.2), (False, False))))
    assert over["2 layers: λ_max η / 2, every run"] == "does not hold"
    assert over["2 layers: λ_max at η = 1 − at 2, same start"] == "does not hold"
    metrics = denoisers_page.summarise(*planted_denoisers((1.5, 5.0), (False, True)))
    assert statuses(metrics) == {"2 layers: λ_max η / 2, every run": "holds"}
    assert [row["diverged"] for row in metrics["runs"]] == [0, 3]


def test_the_network_is_what_it_says_and_layers_make_it_up():
    params = denoisers.init(jax.random.key(0), (6, 5, 4, 6), 0.1)
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    params = [{"kernel": p["kernel"], "bias": p["bias"] + 0.1} for p in params]
    h = x
    for layer in params[:-1]:
        h = np.maximum(h @ np.asarray(layer["kernel"]) + 0.1, 0)
    expected = h @ np.asarray(params[-1]["kernel"]) + 0.1
    np.testing.assert_allclose(denoisers.denoise(params, jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)
    loss = denoisers.denoising_loss(params, {"noisy": jnp.asarray(x), "clean": jnp.zeros((3, 6))})
    np.testing.assert_allclose(loss, np.mean(expected**2), rtol=1e-5)
    assert 0.03 < np.std(params[-1]["kernel"]) * 2 < 0.2  # 0.1 / sqrt(4)


def test_data_is_noise_of_the_promised_size_on_images_that_are_disjoint():
    config = denoisers.Config(num_train=300, num_test=200, num_seeds=2)
    train, test = denoisers.load(config)
    assert train["noisy"].shape == (2, 300, 64)
    assert 0 <= np.min(train["clean"]) < np.max(train["clean"]) <= 1
    for part in (train, test):
        noise = np.asarray(part["noisy"] - part["clean"])
        np.testing.assert_allclose(noise.std(), 1.25, rtol=0.01)
        assert abs(noise.mean()) < 0.02
    assert not np.array_equal(train["clean"][0], train["clean"][1])
    same = (np.asarray(train["clean"][0])[:, None] == np.asarray(test["clean"][0])[None]).all(-1)
    assert same.sum() < 3  # the digits hold a few copies


@pytest.mark.parametrize(("halve", "pixels"), [(True, 4), (False, 16)])
def test_the_size_of_the_images_does_not_depend_on_their_number(monkeypatch, halve, pixels):
    images = np.random.default_rng(0).uniform(size=(1500, 4, 4, 1)).astype(np.float32)
    labels = np.zeros(1500, np.int32)
    given = load_images("digits")._replace(
        train_images=images, train_labels=labels, test_images=images[:0], test_labels=labels[:0]
    )
    monkeypatch.setattr(denoisers, "load_images", lambda name, directory: given)
    for number in (10, 1200):
        config = denoisers.Config(data="mnist", halve=halve, num_train=number, num_test=5, num_seeds=1)
        assert denoisers.load(config)[0]["clean"].shape == (1, number, pixels)


def test_refused_configurations(tmp_path):
    with pytest.raises(ValueError, match="fractions must ascend"):
        linear.run(linear.Config(fractions=(0.9, 0.1)), tmp_path, print)
    with pytest.raises(ValueError, match="dim must be at least 2"):
        linear.run(linear.Config(dim=1), tmp_path, print)
    with pytest.raises(ValueError, match="depths must be at least 2"):
        denoisers.run(denoisers.Config(depths=(1,)), tmp_path, print)
    with pytest.raises(ValueError, match="step_sizes must be two or more, ascending"):
        denoisers.run(denoisers.Config(step_sizes=(1.0,)), tmp_path, print)
    with pytest.raises(ValueError, match=r"num_train \+ num_test must be at most 1797"):
        denoisers.run(denoisers.Config(num_train=1700, num_test=200), tmp_path, print)


def test_matrices_with_their_labels():
    figure = draw_matrices({"a": [np.eye(3), np.eye(2)], "b": [np.eye(3), np.eye(2)]}, ["one", "two"], label="overlap")
    assert [axes.get_title() for axes in figure.axes[:4]] == ["one", "two", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes[:4]] == ["a", "", "b", ""]

"""Connectivity and surfaces of trained networks: smallest presets end to end, claims on planted arrays. Oracles: NumPy
on the stored arrays; identities (matched and unmatched paths have the same losses at their ends; the centre of each
surface is the solution; rescaled networks are the same function)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.__main__ import main
from experiments.claims import statuses
from experiments.global_landscape import connectivity, connectivity_page, surfaces, surfaces_page
from jflat.models import mlp

PICTURES = {
    connectivity: ("profiles", "widths"),
    surfaces: ("surfaces", "curves", "trajectory_sgd", "trajectory_entropy_sgd"),
}


@pytest.fixture(scope="module", params=PICTURES, ids=["connectivity", "surfaces"])
def finished(request, finish):
    return finish(request.param)


def check_paths(arrays, config):
    for name, place in connectivity_page.path_names(config).items():
        losses, times = arrays[f"{place}/loss"], arrays[f"{place}/times"]
        assert losses.shape == times.shape == (2, 5)
        line = arrays["width/8/line/loss"]
        np.testing.assert_allclose(
            losses[:, [0, -1]], line[:, [0, -1]], rtol=1e-4
        )  # a permutation is the same function
        own = losses.max(axis=1) - losses[:, [0, -1]].max(axis=1)
        if name == "band":  # of more points than the curve that is drawn
            assert np.all(arrays[f"{place}/barrier"] >= -1e-6)
        else:
            np.testing.assert_allclose(arrays[f"{place}/barrier"], own, atol=1e-6)
        assert np.all(arrays[f"{place}/barrier_above_line"] >= arrays[f"{place}/barrier"])
    for name in ("weights", "activations"):
        assert np.all(arrays[f"width/8/{name}/similarity"] >= arrays[f"width/8/{name}/start_similarity"])
    assert np.all(arrays["curves/bezier/training"][:, -10:].mean() < arrays["curves/bezier/training"][:, :3].mean())


def check_surfaces(arrays, config):
    for method in config["methods"]:
        curves = arrays[f"{method}/curves"]
        assert curves.shape == (2, 2, 5)
        np.testing.assert_allclose(curves[:, 0, 2], curves[:, 1, 2], rtol=1e-6)
        assert arrays[f"{method}/surface"].shape == arrays[f"{method}/plane"].shape == (4, 4)
        np.testing.assert_array_equal(arrays[f"{method}/coordinates"][:, -1], 0)
        assert np.all(arrays[f"{method}/explained"].sum(axis=1) <= 1 + 1e-6)
        for name in ("filter", "layer"):
            assert arrays[f"{method}/change/{name}/layers"] < 1e-4
            assert arrays[f"{method}/change/{name}/units"] > 1e-3
        assert arrays[f"{method}/change/none/layers"] > 1e-3


def test_smoke_run_leaves_every_promised_file(finished):
    stored = finished.run
    (check_paths if finished.module is connectivity else check_surfaces)(stored.arrays, stored.config)
    assert not stored.metrics["failures"]
    finished.check(*PICTURES[finished.module])


def test_claims_see_what_is_planted(finished):
    """Real arrays with a planted change: the claims on it change, and no other."""
    module, stored = finished.module, finished.run
    page = connectivity_page if module is connectivity else surfaces_page

    def found(**more):
        arrays = stored.arrays | {name.replace("__", "/"): np.asarray(value) for name, value in more.items()}
        return statuses(page.summarise(stored.config, arrays))

    before = found()
    if module is connectivity:
        low, high = np.array([0.001, 0.0011]), np.array([3.0, 3.1])
        assert found(curves__bezier__barrier=low)["Bezier curve, one bend: barrier / the line's"] == "holds"
        now = found(width__8__line__barrier=low)
        assert now["straight line: barrier (nats)"] == "does not hold"
        now = found(width__8__weights__barrier=1.5 * stored.arrays["width/8/line/barrier"])
        assert now["line, weights matched: barrier / the line's"] == "does not hold"
        changed = {name for name, status in found(bands__band__barrier=high).items() if status != before[name]}
        assert changed <= {"elastic band: barrier / the line's"}
        failed = page.summarise(stored.config, stored.arrays | {"width/4/failed_step": np.array([3, -1, -1, -1])})
        assert failed["failures"] == [{"part": "training, width 4", "outcome": "non finite", "times": 1, "of": 4}]
    else:
        x = stored.arrays["sgd/places"]
        bowls = np.broadcast_to(x**2, (2, 2, 5)) * np.array([1.0, 1.1])[:, None, None]
        name = "rise of the loss at 0.5: Entropy-SGD / SGD"
        assert found(sgd__curves=bowls, entropy_sgd__curves=0.3 * bowls + 1)[name] == "holds"
        assert found(sgd__curves=bowls, entropy_sgd__curves=2 * bowls)[name] == "does not hold"
        assert page.rises({"sgd/curves": bowls + 7}, "sgd")[1] == pytest.approx(1.1 * x**2)
        broken = found(sgd__change__filter__layers=0.5)
        assert {n for n in broken if broken[n] != before[n]} == {
            "curves normalised by filter, layers rescaled: largest relative change"
        }


def test_rescaled_networks_are_the_same_function(key):
    model = mlp((3,), (4, 5), num_classes=2)
    params, _ = model.init(key)
    params = jax.tree.map(lambda w: w + 0.1, params)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
    for kind in ("layers", "units"):
        other = surfaces._rescaled(key, params, kind)
        np.testing.assert_allclose(model.apply(other, {}, x), model.apply(params, {}, x), rtol=1e-4, atol=1e-5)
        assert not np.allclose(other["dense_1"]["kernel"], params["dense_1"]["kernel"])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("landscape-connectivity", ["--curve-width", "5"], "curve_width must be among widths"),
        ("landscape-connectivity", ["--num-pairs", "1"], "num_pairs must be at least 2"),
        ("landscape-surfaces", ["--reference-radius", "2"], "reference_radius must be finite and lie in"),
        ("landscape-surfaces", ["--methods", "sgd"], "methods must be two or more"),
    ],
)
def test_bad_input_is_one_clear_sentence(name, arguments, message, tmp_path, capsys):
    assert main(["run", name, "--preset", "smoke", "--output", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().out

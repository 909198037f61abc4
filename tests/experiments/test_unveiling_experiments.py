"""Surroundings of solutions of large margin: the smallest preset end to end, statistics on planted curves, claims.
Oracles: closed forms of planted functions; NumPy on the stored weights; identities (all instances have one entropy,
whatever the reference; no local entropy exceeds that of all configurations); numbers printed in the specification."""

import types

import numpy as np
import pytest

from experiments.__main__ import main
from experiments.claims import statuses
from experiments.unveiling import margins, margins_numbers, theory
from jflat.core import Status
from jflat.report import load_run, save_run

SMOKE = margins.PRESETS["smoke"]
PICTURES = ("local_entropy", "local_entropy_near", "best_margin", "margins_by_distance", "geometry", "loads", "found")
PICTURES += ("stabilities",)


def quiet(share, what):
    """Progress that nobody looks at."""


def test_zeros_peaks_and_cubics_of_planted_functions():
    x = np.linspace(0.0, 2.0, 9)
    assert margins_numbers.first_zero(x, x**2 - 1.1) == pytest.approx(np.sqrt(1.1), abs=0.01)
    assert np.isnan(margins_numbers.first_zero(x, x + 1))
    place, top = margins_numbers.peak(x**2, 3 - (x**2 - 1.3) ** 2)
    assert (place, top) == (pytest.approx(1.3), pytest.approx(3.0))
    assert margins_numbers.peak(x, x) == (2.0, 2.0)
    wanted = np.array([-0.1, 0.4, 1.9])
    found = margins_numbers.at_distances(x[::-1], x[::-1] ** 3, 3 * x[::-1] ** 2, wanted)
    np.testing.assert_allclose(found, [np.nan, 0.4**3, 1.9**3], rtol=1e-12)
    gaps = np.where(np.arange(9) % 2, np.nan, x**3)  # points that did not converge are left out
    np.testing.assert_allclose(margins_numbers.at_distances(x, gaps, 3 * x**2, wanted[1:]), found[1:], rtol=1e-12)
    assert np.isnan(margins_numbers.at_distances(x, np.full(9, np.nan), x, wanted)).all()


def test_best_and_farthest_margin_of_planted_curves():
    k, d = np.linspace(0.0, 0.4, 5), np.array([0.01, 0.02, 0.05])
    arrays = {"around/references": k, "around/value": -((k[:, None] - 0.4 + 6 * d) ** 2) + d}
    places, tops = margins_numbers.best_margin(arrays)
    np.testing.assert_allclose(places, 0.4 - 6 * d)
    np.testing.assert_allclose(tops, d)
    arrays = {"around/value": np.stack([0 * d, 0.35 - 3 * d])}  # around kappa_max, at margin 0
    arrays |= {"nested/margins": k[1:], "nested/value": 0.35 - 3 * d - k[1:, None]}
    np.testing.assert_allclose(margins_numbers.farthest_margin(arrays), 0.35 - 3 * d)


@pytest.mark.parametrize(("fraction", "critical"), [(1.0, 0.73), (0.5, 0.70), (0.9, 0.9)])
def test_break_up_finds_a_planted_load(monkeypatch, fraction, critical):
    """The least slope is 5 (critical - alpha) (1 + alpha), at d = 0.01; beyond the last load there is none."""
    visited = []

    def planted(model, alpha, distances, *, reference):
        visited.append(reference)
        bowl = (np.log(distances) - np.log(theory.SMALL[10])) ** 2
        slope = bowl + 5 * (critical - alpha) * (1 + alpha)
        return types.SimpleNamespace(slope=slope, status=np.full(distances.shape, Status.CONVERGED))

    monkeypatch.setattr(theory, "franz_parisi", planted)
    largest = lambda model, alpha: types.SimpleNamespace(value=1 - alpha, status=np.int32(Status.CONVERGED))  # noqa: E731
    monkeypatch.setattr(theory, "max_margin", largest)
    found = theory.break_up(theory.PERCEPTRON, fraction, [0.6, 0.7001, 0.8], 1e-4, quiet)
    if critical > 0.8:
        assert np.isnan(found["threshold"])
    else:
        assert found["threshold"] == pytest.approx(critical, abs=2e-4)
    assert list(found["loads"]) == sorted(found["loads"])
    assert set(found["places"]) == {theory.SMALL[10]}
    assert visited[0] == pytest.approx(fraction * 0.4)


@pytest.fixture(scope="module")
def finished(finish):
    return finish(margins)


@pytest.mark.slow  # a minute of theory: python -m pytest -m slow tests/experiments
def test_smoke_run_leaves_every_promised_file(finished):
    finished.check(*PICTURES)


@pytest.mark.slow  # a minute of theory: python -m pytest -m slow tests/experiments
def test_smoke_theory_is_that_of_the_specification(finished):
    status = finished.statuses
    for claim in (
        "18 local entropies",
        "largest margin; entropy of all solutions",
        "distance of two solutions, margin 0 → largest",
        "typical solutions are isolated: none at d below",
        "maximum over d is the entropy of all solutions",
    ):
        assert status[claim] == "holds"
    assert not finished.run.metrics["failures"]


@pytest.mark.slow  # a minute of theory: python -m pytest -m slow tests/experiments
def test_smoke_simulation_is_consistent(finished):
    arrays = finished.run.arrays
    for target in SMOKE.targets:
        get = {name: arrays[f"found/{target:g}/{name}"] for name in ("sums", "weights", "distances", "entropies")}
        solved = arrays[f"found/{target:g}/search_status"] == Status.SOLVED
        assert solved.all()
        assert get["sums"].min() > target * np.sqrt(SMOKE.size)
        assert set(np.unique(get["weights"])) == {-1, 1}
        bound = margins_numbers.free_entropy(get["distances"].astype(float))
        assert np.all(get["entropies"] < bound + 1e-4)
    # without a field the reference does not matter
    first, second = (arrays[f"found/{target:g}/entropies"][:, -1] for target in SMOKE.targets)
    np.testing.assert_allclose(first, second, atol=1e-3)


@pytest.mark.slow  # a minute of theory: python -m pytest -m slow tests/experiments
def test_claims_see_what_is_planted(finished):
    """Real arrays with a planted change: its claim changes its status, and no other one of the theory."""
    run, before = finished.run, finished.statuses

    def changed(**more):
        arrays = run.arrays | {name.replace("__", "/"): value for name, value in more.items()}
        after = statuses(margins_numbers.summarise(run.config, arrays))
        return {claim for claim, status in after.items() if status != before[claim]}

    assert changed() == set()
    wrong = run.arrays["around/value"].copy()
    wrong[0, np.isclose(run.arrays["around/distances"], 0.1)] += 2 * margins_numbers.TABLE_BAND
    assert changed(around__value=wrong) == {"18 local entropies"}
    sparse = run.arrays["found/0/entropies"] - 0.1
    assert "found at margin 0: denser than typical ones, d = .05" in changed(found__0__entropies=sparse)
    near = np.ones_like(run.arrays["found/0/sums"])
    assert "found without margin: fewer stabilities below 0.2 than typical" in changed(found__0__sums=near)
    arrays = run.arrays | {"found/0/search_status": np.array([Status.NOT_SOLVED, Status.SOLVED, Status.SOLVED])}
    metrics = margins_numbers.summarise(run.config, arrays)
    assert metrics["found"][0]["solved"] == 2
    assert metrics["failures"] == [{"part": "found/0/search", "outcome": "not solved", "times": 1, "of": 3}]


@pytest.mark.slow  # a minute of theory: python -m pytest -m slow tests/experiments
def test_a_finished_part_is_not_done_again(finished, tmp_path, monkeypatch):
    stored = finished.run
    names = {name.rpartition("/")[0] for name in stored.arrays}
    for part in names:
        own = {k.removeprefix(f"{part}/"): v for k, v in stored.arrays.items() if k.rpartition("/")[0] == part}
        save_run(tmp_path / "parts" / part.replace("/", "-"), SMOKE, own, {}, 1.0)
    monkeypatch.setattr(theory, "franz_parisi", None)
    monkeypatch.setattr(margins.simulation, "find", None)
    margins.run(SMOKE, tmp_path, lambda done, of, what: None)
    assert load_run(tmp_path).metrics == stored.metrics


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search-size", "100"], "unveiling-margins: search_size must be odd"),
        (["--fractions", "0", "0.5"], "unveiling-margins: fractions must end with 1"),
        (["--free-distances", "0.1", "0.4"], "unveiling-margins: free_distances must end with 0.5"),
    ],
)
def test_bad_input_is_one_clear_sentence(arguments, message, tmp_path, capsys):
    given = ["run", "unveiling-margins", "--preset", "smoke", "--output", str(tmp_path), *arguments]
    assert main(given) == 2
    assert message in capsys.readouterr().out


@pytest.mark.slow
def test_default_preset_agrees_with_the_specification(tmp_path):
    """Minutes on two cores: critical loads of three devices, and what message passing finds."""
    margins.run(margins.PRESETS["default"], tmp_path / "run", lambda done, of, what: None)
    metrics = load_run(tmp_path / "run").metrics
    status = statuses(metrics)
    for name in margins_numbers.LABELS.values():
        assert status[f"{name}: capacity"] == "holds"
        assert status[f"{name}: densest regions break up"] == "holds"
    assert status["perceptron: break-up around κ_max"] == "holds"
    assert status["27 local entropies"] == "holds"
    assert not metrics["failures"]

"""The experiment on algorithms. Oracles: planted solved fractions with a known threshold, a smoke run's own files."""

import dataclasses

import numpy as np
import pytest

from experiments.claims import Claim, agrees, failures, measured
from experiments.shaping import algorithms, algorithms_page
from jflat.core import Status
from jflat.report import Measured, load_run


def test_threshold_of_a_planted_curve():
    """Instances with thresholds N(.7, .03): the mean is recovered, with the spread that is claimed."""
    rng = np.random.default_rng(0)
    alphas = np.arange(0.5, 0.91, 0.04)
    values = []
    for _ in range(300):
        solved = alphas[:, None] < rng.normal(0.7, 0.03, (len(alphas), 20))  # loads independent
        value, bound = algorithms_page.threshold(alphas, solved)
        assert bound == ""
        values.append(value)
    estimates, errors = np.array([v.value for v in values]), np.array([v.stderr for v in values])
    assert estimates.mean() == pytest.approx(0.7, abs=0.002)
    assert estimates.std() == pytest.approx(errors.mean(), rel=0.35)  # the half counts make it somewhat too large
    assert errors.mean() > 0.9 * estimates.std()


def test_a_threshold_outside_of_the_loads_is_a_bound():
    solved = np.array([[True, True], [True, False]])
    assert algorithms_page.threshold([0.1, 0.2], solved)[1] == "at least"
    assert algorithms_page.threshold([0.1, 0.2], ~solved)[1] == "uncertain"
    assert algorithms_page.threshold([0.1, 0.2], solved[::-1] & [[True, True], [False, False]])[1] == "at most"


def test_shift_is_paired():
    rng = np.random.default_rng(1)
    alphas = [0.5, 0.6, 0.7, 0.8]
    own = rng.normal(0.65, 0.05, (4, 50))
    worse, better = (np.array(alphas)[:, None] < own + x for x in (0.0, 0.03))
    gain = algorithms_page.shift(alphas, better, worse)
    assert gain.value == pytest.approx(0.03, abs=4 * gain.stderr)
    assert gain.stderr < 0.01
    same = algorithms_page.shift(alphas, worse, worse)
    assert same.value == 0 < same.stderr
    assert Claim.bounded("c", same, "> 0", 0.0, np.inf).status == "undecided"


def test_claims_are_judged_by_two_standard_errors():
    assert Claim.bounded("c", Measured(1.0, 0.4), "> 0", 0.0, np.inf).status == "holds"
    assert Claim.bounded("c", Measured(1.0, 0.6), "> 0", 0.0, np.inf).status == "undecided"
    assert Claim.bounded("c", Measured(-1.0, 0.4), "> 0", 0.0, np.inf).status == "does not hold"
    assert agrees(Measured(0.0, 1.0), Measured(2.9, 1.0)) == "does not hold"
    assert agrees(Measured(0.0, None), Measured(2.9, 1.0)) == "undecided"
    assert measured([1.0, np.nan, 3.0]) == Measured(2.0, 1.0)
    assert np.isnan(measured([np.nan]).value)
    status = np.array([Status.SOLVED, Status.NOT_SOLVED, Status.NON_FINITE])
    assert failures({"a/status": status, "a/errors": status}, (Status.NOT_SOLVED,)) == [
        {"part": "a", "outcome": "non finite", "times": 1, "of": 3}
    ]


@pytest.fixture(scope="module")
def finished(finish):
    return finish(algorithms)


def test_smoke_run_leaves_every_promised_file(finished):
    finished.check("success")


def test_smoke_run_solves_what_is_easy(finished):
    run = finished.run
    assert not run.metrics["failures"]
    for row in run.metrics["rows"]:
        assert row["solved"] == [3]
        assert row["bound"] == "at least"
    for name in ("messages/0.2/focusing/0.1", "messages/0.2/reinforcement/0.1", "sgd/0.2/3", "sgd/0.2/1"):
        assert np.all(run.arrays[f"{name}/errors"] == 0)
    assert np.all(run.arrays["messages/0.2/focusing/0.1/steps"] <= 10)


def test_an_interrupted_run_goes_on_at_the_load_it_had_reached(finished, tmp_path, monkeypatch):
    """The first load is done, the process dies in the second: it alone is done by the next run."""
    smoke = dataclasses.replace(algorithms.PRESETS["smoke"], alphas=(0.2, 1.5))
    calls = []

    def stub(config, number):
        def part(tell):
            calls.append(number)
            if len(calls) == 3:
                raise KeyboardInterrupt
            status = np.full(3, Status.SOLVED if number == 0 else Status.NOT_SOLVED)
            cells = {"status": status, "epochs": np.ones(3), "steps": np.ones(3)}
            names = ("3", "1", "reinforcement/0.1", "focusing/0.1")
            return {f"{name}/{key}": x for name in names for key, x in cells.items()}

        return part

    monkeypatch.setattr(algorithms, "_sgd_part", stub)
    monkeypatch.setattr(algorithms, "_message_part", stub)
    with pytest.raises(KeyboardInterrupt):
        algorithms.run(smoke, tmp_path, lambda done, of, what: None)
    algorithms.run(smoke, tmp_path, lambda done, of, what: None)
    assert calls == [0, 0, 1, 1]
    assert load_run(tmp_path).metrics["rows"][0]["solved"] == [3, 0]


@pytest.mark.slow
def test_thresholds_of_the_theory():
    """A minute on two cores: .729, .755 and .833 of the specification."""
    found = algorithms.theory(lambda share, what: None)
    for name, value in algorithms_page.THEORY.items():
        assert found[name] == pytest.approx(value, abs=2e-3)

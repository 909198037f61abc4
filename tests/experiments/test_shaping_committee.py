"""The experiment on committees. Oracles: planted correlations, errors counted one by one, a smoke run's own files."""

import numpy as np
import pytest

from experiments.__main__ import main
from experiments.claims import statuses
from experiments.shaping import committee, committee_page
from experiments.shaping.searches import LABELS
from jflat.core import Status


def planted(shift, slope, seed=0, number=40):
    """Two searches over draws: `fast` is sharper by `shift`; test error = hard draws + slope * energy + noise."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=number)
    arrays = {}
    for name, sharp in (("slow", 0.0), ("fast", shift)):
        energy = 0.05 + sharp + 0.01 * rng.normal(size=number)
        arrays |= {
            f"{name}/status": np.full(number, Status.SOLVED),
            f"{name}/energy": energy[:, None],
            f"{name}/entropies": -energy[:, None],
            f"{name}/distances": np.full((number, 1), 0.1),
            f"{name}/entropy_status": np.full((number, 1), Status.CONVERGED),
            f"{name}/train_error": np.zeros(number),
            f"{name}/test_error": 0.2 + 0.001 * hard + slope * energy + 0.002 * rng.normal(size=number),
        }
    return {"searches": ["slow", "fast"], "flips": [0.1], "num_seeds": number, "max_train_error": 0.0}, arrays


def test_claims_see_what_was_planted():
    config, arrays = planted(0.05, 1.0)
    claims = statuses(committee_page.summarise(config, arrays))
    for kind in ("all runs", "within searches", "within draws"):
        assert claims[f"rank correlation of error with flips and test error, {kind}"] == "holds"
        assert claims[f"rank correlation of local entropy lost and test error, {kind}"] == "holds"
    pair = f"{LABELS['slow']} − {LABELS['fast']}"
    assert claims[f"error with flips, p = .1: {pair}"] == "holds"
    assert claims[f"test error: {pair}"] == "holds"
    upside = statuses(committee_page.summarise(*planted(0.05, -1.0)))
    assert upside["rank correlation of error with flips and test error, all runs"] == "does not hold"
    assert upside[f"test error: {pair}"] == "does not hold"


def test_a_difference_between_searches_alone_is_not_within_them():
    """Test error differs between the searches, and not by the flatness within one."""
    config, arrays = planted(0.05, 0.0)
    arrays["fast/test_error"] = arrays["fast/test_error"] + 0.05
    claims = statuses(committee_page.summarise(config, arrays))
    assert claims["rank correlation of error with flips and test error, all runs"] == "holds"
    assert claims["rank correlation of error with flips and test error, within searches"] == "undecided"


def test_runs_that_did_not_solve_are_left_out():
    config, arrays = planted(0.05, 1.0)
    arrays["fast/status"][:5] = Status.NOT_SOLVED
    arrays["fast/train_error"][:5] = 0.02
    arrays["fast/energy"][:5] = -9.0
    arrays["slow/entropy_status"][0] = Status.OSCILLATING
    metrics = committee_page.summarise(config, arrays)
    assert metrics["searches"]["fast"]["solved"] == metrics["searches"]["fast"]["kept"] == 35
    assert metrics["searches"]["fast"]["energy"]["value"] == pytest.approx(0.1, abs=0.01)
    assert metrics["searches"]["slow"]["entropies"] == 39
    assert {(f["part"], f["outcome"], f["times"]) for f in metrics["failures"]} == {
        ("fast", "not solved", 5),
        ("slow/entropy", "oscillating", 1),
    }
    arrays["fast/energy"][:5] = 0.08
    tolerant = committee_page.summarise(config | {"max_train_error": 0.05}, arrays)["searches"]["fast"]
    assert tolerant["kept"] == 40
    assert tolerant["energy"]["value"] == pytest.approx(0.1, abs=0.01)  # .02 of it there without flips


@pytest.fixture(scope="module")
def finished(finish):
    return finish(committee)


def test_smoke_run_leaves_every_promised_file(finished):
    finished.check("flatness_and_test_error", "local_energy")


def test_smoke_errors_are_those_of_its_weights(finished):
    smoke, run = committee.PRESETS["smoke"], finished.run
    splits = committee.load_splits(smoke)
    assert splits.train_patterns.shape == (3, 16, 65)
    assert splits.test_patterns.shape == (3, 40, 65)
    assert len({row.tobytes() for row in np.concatenate([splits.train_patterns[0], splits.test_patterns[0]])}) >= 54
    for name in smoke.searches:
        weights = run.arrays[f"{name}/weights"]
        assert set(np.unique(weights)) == {-1, 1}
        wrong = sum(
            np.sign(np.sign(weights[1].astype(int) @ x.astype(int)).sum()) != y
            for x, y in zip(splits.test_patterns[1], splits.test_labels[1], strict=True)
        )
        assert run.arrays[f"{name}/test_error"][1] == pytest.approx(wrong / 40)
        train = run.arrays[f"{name}/train_error"] * 16
        np.testing.assert_allclose(train, run.arrays[f"{name}/errors"], atol=1e-9)
        assert np.all(run.arrays[f"{name}/test_error"] < 0.5)


def test_bad_input_is_one_clear_sentence(tmp_path, capsys):
    arguments = ["run", "shaping-committee", "--preset", "smoke", "--output", str(tmp_path), "--num-train", "400"]
    assert main(arguments) == 2
    assert "shaping-committee: num_train must leave some of the" in capsys.readouterr().out

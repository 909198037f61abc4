"""Constructions of the global landscape: the smallest preset end to end, and claims of planted arrays.
Oracles: what the smoke run must certify whatever its size (identities, closed forms); planted fractions."""

import numpy as np
import pytest

from experiments.__main__ import main
from experiments.global_landscape import constructions, constructions_page
from jflat.core import Status

PICTURES = ("bad_minimum", "plateau", "exit", "sigmoid_axis", "sigmoid_share", "exponential_neuron", "factor")
PICTURES += ("duplicated_neuron", "relu_traps", "wide_path", "students", "tickets")


@pytest.fixture(scope="module")
def finished(finish):
    return finish(constructions)


def test_smoke_run_certifies_what_does_not_depend_on_its_size(finished):
    run = finished.run
    exact = [claim for claim in run.metrics["claims"] if "random points" in claim["claim"] or "∂" in claim["claim"]]
    assert len(exact) == 2
    assert {claim["status"] for claim in exact} == {"holds"}
    for start in (
        "D1: certified",
        "one neuron",
        "D2: loss on the plateau",
        "duplicated neuron",
        "D7: loss of the trap",
        "D9: maximum on the constructed path",
    ):
        (claim,) = (claim for claim in run.metrics["claims"] if claim["claim"].startswith(start))
        assert claim["status"] == "holds"
    assert not run.metrics["failures"]
    arrays = run.arrays
    assert arrays["tickets/error"].shape == (2, 2, 2)
    np.testing.assert_allclose(arrays["tickets/density"], [1.0, 0.6], atol=2e-3)
    np.testing.assert_array_equal(arrays["tickets/error"][:, 0], arrays["tickets/random_error"][:, 0])


def test_smoke_run_leaves_every_promised_file(finished, capsys):
    summary = finished.check(*PICTURES)
    assert main(["report", str(finished.directory)]) == 0
    out = capsys.readouterr().out
    for claim in summary.claims:
        assert claim["claim"] in out


@pytest.mark.parametrize(
    ("spurious", "unsettled", "status"), [(33, 0, "holds"), (60, 0, "does not hold"), (33, 40, "undecided")]
)
def test_fraction_of_planted_runs(spurious, unsettled, status):
    outcome = np.full(100, Status.CONVERGED)
    outcome[100 - unsettled :] = Status.MAX_STEPS
    arrays = {"loss": np.linspace(0, 1, 100), "is_spurious": np.arange(100) < spurious, "outcome": outcome}
    arrays |= {"min_eigenvalue": np.array([0.02, 0.05])}
    arrays = {f"students/10/10/{name}": value for name, value in arrays.items()}
    fraction, least = constructions_page._student_claims(arrays)
    assert (fraction.status, least.status) == (status, "holds")
    (row,) = constructions_page._students(arrays).values()
    assert row["low"] < spurious / 100 < row["high"]

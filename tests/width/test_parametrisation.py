"""abc-parametrisations and their classes. Oracle: Yang & Hu, table 1 and theorems 3.3 to 5.6, in fractions."""

from fractions import Fraction

import pytest

from jflat.width import ABC, canonical, classify, fold, mfp, mup, ntp, shift, sp

HALF = Fraction(1, 2)
LOGITS = ABC((0, 0, 0), (0, HALF, 0), (HALF, HALF, 0))  # standard, logits divided by sqrt(n)
MIDPOINT = ABC((-1 / 4, 1 / 4, 0), (1 / 4, 1 / 4, 0), (1 / 2, 1 / 4, 0))
MUP_SLOW = ABC((-HALF, HALF, 1), (0, HALF, 1), (HALF, HALF, 1))

# name: parametrisation, depth, r of each layer, 2a + c, a + b + r, regime
TABLE = {
    "SP, lr 1/n, L = 3": (sp(1), 3, (3 / 2, 1 / 2, 1 / 2), 1, 1, "kernel"),
    "SP, lr 1/n, L = 1": (sp(1), 1, (3 / 2,), 1, 2, "kernel"),
    "NTP": (ntp(), 3, (1 / 2,) * 3, 1, 1, "kernel"),
    "MFP, L = 1": (mfp(), 1, (0,), 1, 1, "feature"),
    "deep MFP": (mfp(), 3, (0,) * 3, 1, 1, "feature"),
    "muP": (mup(), 3, (0,) * 3, 1, 1, "feature"),
    "SP, lr 1, L = 3": (sp(), 3, (0, -1, -1), 0, -1 / 2, "unstable"),
    "SP, lr 1, L = 1": (sp(), 1, (0,), 0, 1 / 2, "unstable"),
    "SP, lr n^-1/2, L = 2": (sp(HALF), 2, (1, 0), 1 / 2, 1 / 2, "unstable"),
    "SP, lr n^-1/2, L = 1": (sp(HALF), 1, (1,), 1 / 2, 3 / 2, "unstable"),
    "SP with logits / sqrt n, L = 3": (LOGITS, 3, (1, 0, 0), 1, 1, "feature"),
    "SP with logits / sqrt n, L = 1": (LOGITS, 1, (1,), 1, 2, "kernel"),
    "midpoint": (MIDPOINT, 3, (1 / 4,) * 3, 1, 1, "kernel"),
    "muP, lr 1/n": (MUP_SLOW, 3, (1,) * 3, 2, 2, "trivial"),
}
ADAM = {"muP": (mup("adam"), 0, "feature"), "NTP": (ntp("adam"), HALF, "kernel")}


@pytest.mark.parametrize("name", TABLE)
def test_table_of_the_paper(name):
    p, depth, r_layers, q, k_plus_r, regime = TABLE[name]
    result = classify(p, depth)
    assert result.r_layers == r_layers
    assert result.r == min(r_layers)
    assert 2 * p.output.a + p.output.c == q
    assert p.output.a + p.output.b + result.r == k_plus_r
    assert result.regime == regime
    assert result.is_stable == (regime != "unstable")
    assert result.is_nontrivial == (regime in ("kernel", "feature"))
    # slopes restated from the definition, layer by layer
    assert result.slopes.dwx == (*(-r for r in r_layers), 1 - q)
    assert result.slopes.w0dx[1:] == (*result.slopes.delta[: depth - 1], 1 - k_plus_r)
    assert result.slopes.delta[:depth] == tuple(-min(r_layers[: m + 1]) for m in range(depth))
    assert result.slopes.delta[depth] == max(1 - q, 1 - k_plus_r)


def test_the_first_row_for_one_hidden_layer_is_a_kernel_of_the_readout_alone():
    """With L = 1 only 2a + c = 1 holds: the function moves, by the readout alone."""
    result = classify(sp(1), 1)
    assert result.is_updated_maximally == (False, True)
    assert not result.is_initialised_maximally


@pytest.mark.parametrize("p", [row[0] for row in TABLE.values()] + [mup("adam"), ntp("adam"), sp(1, "adam")])
def test_classification_is_invariant_under_the_symmetry(p):
    for theta in (HALF, -2, (Fraction(1, 3), -1, Fraction(2, 7))):
        assert classify(shift(p, theta), 3) == classify(p, 3)
    assert classify(fold(p), 3) == classify(canonical(p), 3) == classify(p, 3)
    assert all(e.a == 0 for e in fold(p).layers)
    assert len({e.c for e in canonical(p, 1 / 3).layers} | {Fraction(1, 3)}) == 1
    assert shift(shift(p, 0.3), -0.3) == p


def test_mup_alone_is_maximal_everywhere():
    """Theorem 5.6 on a grid of classes without multipliers: b and c of the readout, c of the others."""
    grid = [Fraction(i, 2) for i in range(-3, 4)]
    found = []
    for b_out in grid:
        for c_in in grid:
            for c in grid:
                for c_out in grid:
                    p = ABC((0, 0, c_in), (0, HALF, c), (0, b_out, c_out))
                    result = classify(p, 2)
                    if result.is_stable and all(result.is_updated_maximally) and result.is_initialised_maximally:
                        found.append(p)
    assert found == [fold(mup())]


@pytest.mark.parametrize("name", ADAM)
def test_adam(name):
    p, r, regime = ADAM[name]
    result = classify(p, 3)
    assert (result.r_layers, result.regime) == ((r,) * 3, regime)
    assert p.output.a + p.output.c == 1


def test_standard_parametrisation_with_adam():
    """Yang & Littwin: with lr 1/n it learns features; at lr 1 slopes are 0, 1, 1 and 3/2 at the output."""
    result = classify(sp(1, "adam"), 3)
    assert (result.r_layers, result.regime) == ((1, 0, 0), "unstable")  # features, and logits that grow: k = 1/2
    assert result.violations == ("k + r >= 1 fails: k + r = 1/2",)
    assert classify(sp(optimizer="adam"), 3).first_slopes.delta == (0, 1, 1, 3 / 2)


def test_which_inequality_fails_is_named():
    wide = ABC((0, -HALF, 0), (0, 1, 0), (0, 0, 0))
    text = "; ".join(classify(wide, 2).violations)
    for part in ("a_1 + b_1 = -1/2", "a_l + b_l = 1", "k = a_(L+1) + b_(L+1) = 0", "q = 0"):
        assert part in text
    assert not any("a_l" in v for v in classify(wide, 1).violations)
    assert classify(ABC((0, 0, 0), (0, HALF, 1), (0, HALF, 1)), 2).first_slopes.delta[0] == -HALF


def test_first_step_differs_where_the_readout_outgrows_its_start():
    result = classify(sp(), 3)
    assert result.first_slopes.delta == (-HALF, HALF, HALF, 1)
    assert result.slopes.delta == (0, 1, 1, 3 / 2)
    for p in (mup(), ntp(), sp(1), LOGITS, MIDPOINT):
        assert classify(p, 3).first_slopes == classify(p, 3).slopes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ABC((0, 0), (0, 0, 0), (0, 0, 0)), r"ABC: input must be the triple"),
        (lambda: ABC((0, 0, "x"), (0, 0, 0), (0, 0, 0)), r"ABC: input must be a number"),
        (lambda: mup("lion"), r"ABC: optimizer must be one of 'sgd', 'adam'"),
        (lambda: shift(mup(), (1, 2)), r"shift: theta must be a number or three"),
        (lambda: sp(float("nan")), r"must be finite"),
        (lambda: classify(mup(), 0), r"classify: depth must be at least 1"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

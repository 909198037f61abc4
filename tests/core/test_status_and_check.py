"""Oracle: the sentences themselves; every code has one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status, check, explain, raise_if_failed, succeeded


class Result(NamedTuple):
    value: float
    status: object


def test_every_code_is_explained_and_is_a_success_or_a_failure():
    for status in Status:
        assert len(explain(status)) > 10
        assert succeeded(status) == (status.name in ("CONVERGED", "INVARIANT_SUBSPACE", "COMPLETED", "SOLVED"))


def test_a_batch_is_summarised_by_counts():
    text = explain(jnp.array([0, 0, Status.NON_FINITE]))
    assert text.startswith("2 of 3 converged")
    assert "1 of 3 non-finite" in text


def test_only_the_host_raises_and_only_on_failure():
    good = Result(1.0, jnp.array([0, 1]))
    assert raise_if_failed(good) is good
    with pytest.raises(RuntimeError, match=r"Result: 1 of 2 converged.*; 1 of 2 not converged"):
        raise_if_failed(Result(1.0, jnp.array([0, Status.MAX_STEPS])))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check.require_integer("f", "n", 2.5, 1), "f: n must be an integer; got 2.5."),
        (lambda: check.require_integer("f", "n", True, 1), "f: n must be an integer; got True."),
        (lambda: check.require_integer("f", "n", jnp.zeros(2), 1), "f: n must be an integer scalar; got float32"),
        (lambda: check.require_number("f", "x", "1", 0), "f: x must be a number; got '1'."),
        (lambda: check.require_number("f", "x", np.nan), "f: x must be finite"),
        (lambda: check.require_number("f", "x", np.nan, finite=False), r"f: x must lie in \[-inf, inf\]; got nan."),
        (lambda: check.require_number("f", "x", 0.0, 0, exclusive=True), r"lie in \(0, inf\); got 0.0."),
        (lambda: check.require_number("f", "x", jnp.float32(-1.0), 0), r"lie in \[0, inf\]; got -1.0."),
        (lambda: check.require_choice("f", "kind", "c", ("a", "b")), "f: kind must be one of 'a', 'b'; got 'c'."),
        (lambda: check.require_scalar("f", "loss_fn", jnp.zeros(2)), r"must return one scalar.*shapes \(2,\)"),
        (lambda: check.require_scalar("f", "loss_fn", (jnp.zeros(()), 1)), "must return one scalar"),
        (lambda: check.require_scalar("f", "loss_fn", jnp.zeros((), int)), "real floating-point scalar; got int32"),
    ],
)
def test_refusals_name_function_argument_rule_and_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_traced_and_scheduled_values_pass():
    jax.jit(lambda x: check.require_number("f", "x", x, 0.0))(-1.0)
    jax.vmap(lambda x: check.require_number("f", "x", x, 0.0))(jnp.array([-1.0]))
    check.require_number("f", "x", lambda step: step, 0.0)
    check.require_integer("f", "n", jnp.int32(0), 1)

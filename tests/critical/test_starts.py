"""Where finders start, and what is refused before they do. Oracle: which iterates may be drawn at all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat.critical import LineSearch, newton_mr, quartic, quartic_grid, sample_starts, trajectory

KEY = jax.random.key(0)


def test_a_diverged_training_run_is_refused_or_left_out():
    """Of NaN heights every nearest iterate would be the first."""
    iterates, losses = jnp.arange(5.0), jnp.array([3.0, 2.0, 1.0, jnp.inf, jnp.nan])
    with pytest.raises(ValueError, match=r"losses must be finite \(the training run diverged\); got 2 that are not"):
        sample_starts(KEY, iterates, losses, num_starts=2)
    _, places = jax.jit(lambda losses: sample_starts(KEY, iterates, losses, num_starts=60))(losses)
    assert set(np.asarray(places).tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_starts(KEY, jnp.zeros(0), jnp.zeros(0), num_starts=1), "losses must have at least one"),
        (lambda: sample_starts(KEY, jnp.zeros(3), jnp.arange(3), num_starts=1), "losses must be a real floating-point"),
        (lambda: trajectory(lambda w, _: w, jnp.ones(2), None, optax.sgd(0.1), num_steps=1), "loss_fn must return one"),
        (lambda: quartic(jnp.ones(3)), r"quartic: params must have shape \(2,\); got \(3,\)"),
        (lambda: quartic_grid(0), "quartic_grid: size must be at least 1"),
        (lambda: newton_mr(line_search=LineSearch(step_size=0.0)), r"newton_mr: line_search.step_size must"),
        (lambda: newton_mr(line_search=LineSearch(shrink=1.0)), r"line_search.shrink must"),
        (lambda: newton_mr(line_search=LineSearch(pure_decrease=-0.1)), r"line_search.pure_decrease must"),
        (lambda: newton_mr(line_search=LineSearch(max_step=-2.0)), r"line_search.max_step must"),
        (lambda: newton_mr(line_search=LineSearch(max_trials=0)), r"line_search.max_trials must"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

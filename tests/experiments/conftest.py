"""Experiments use optax's schedules and optimisers, some of which need standard dtype promotion."""

import jax
import pytest


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield

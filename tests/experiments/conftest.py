"""Experiments use optax's schedules and optimisers, some of which need standard dtype promotion."""

import jax
import pytest


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What needs the run of a smoke preset is a smoke test."""
    for item in items:
        if {"finished", "smoke"} & set(item.fixturenames if hasattr(item, "fixturenames") else ()):
            item.add_marker("smoke")

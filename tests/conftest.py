"""Eight virtual CPU devices, strict dtype promotion, and float64 where a test asks for it (the `x64` fixture)."""

import os

_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_collective_call_terminate_timeout_seconds=30",
)
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")  # ours; some of optax (adam) needs "standard" in a test


@pytest.fixture
def x64():
    """Float64 inside the test, as a caller would switch it on."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    """One fixed key; tests fold in what they need."""
    return jax.random.key(20211)

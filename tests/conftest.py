"""Eight virtual CPU devices, strict dtype promotion, and float64 where a test asks for it (the `x64` fixture)."""

import html
import os
import re
import shutil
import subprocess

import jaxlib.version

_FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_collective_call_terminate_timeout_seconds=30",
    # The tests mostly compile, and a third of that is LLVM's optimisation. What users run:
    # XLA_FLAGS=--xla_backend_optimization_level=3
    "--xla_backend_optimization_level=0",
]
if jaxlib.version.__version_info__ < (0, 11):
    # Compiles in two thirds of the time. An unknown flag would end the process, and later versions may not know it.
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*_FLAGS, os.environ.get("XLA_FLAGS", "")])
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")  # ours; some of optax (adam) needs "standard" in a test


def pytest_configure(config):
    """Compiled programs are kept beside pytest's own cache, for files that compile the same and for the next run."""
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture
def x64():
    """Float64 inside the test, as a caller would switch it on."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Compiled programs of one file are of no use to the next, and together they take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    """One fixed key; tests fold in what they need."""
    return jax.random.key(20211)


@pytest.fixture
def chromium(tmp_path):
    """A function that runs headless Chromium with more arguments and returns its output; skips where there is none."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not on PATH: the page is not looked at")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --hide-scrollbars --window-size=390,844"
    )
    command = [program, *flags.split(), f"--user-data-dir={tmp_path / 'chromium profile'}"]
    return lambda *arguments: (
        subprocess.run([*command, *arguments], check=True, capture_output=True, text=True, timeout=120).stdout
    )


@pytest.fixture
def phone_widths(tmp_path, chromium):
    """A function that shows a page at 390 x 844 and returns the widths of view, document, table box, table, picture.

    The page is in a frame of a page with a script, which measures it; its own policy would forbid one.
    """

    def measure(path):
        probe = (
            "<script>onload = () => { const d = document.querySelector('iframe').contentDocument,"
            "r = d.documentElement, box = d.querySelector('.scroll');"
            "document.body.dataset.sizes = [r.clientWidth, r.scrollWidth, box.clientWidth, box.scrollWidth, "
            "d.querySelector('img').clientWidth].join(' ') }</script>"
        )
        text = html.escape(path.read_text(encoding="utf-8"))
        frame = f'<iframe width="390" height="844" style="border:0" srcdoc="{text}"></iframe>'
        (tmp_path / "probe.html").write_text(f"<!DOCTYPE html><body>{frame}{probe}</body>", encoding="utf-8")
        dump = chromium("--virtual-time-budget=3000", "--dump-dom", (tmp_path / "probe.html").as_uri())
        return list(map(int, re.search(r'data-sizes="([\d ]+)"', dump)[1].split()))

    return measure

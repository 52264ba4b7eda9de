"""Strict JAX for every test: x64, no silent promotion, several virtual devices.

Most of a test is compiling. So programs are kept on disk, for all workers and for the
processes that tests start, and are compiled in the way that takes least time: not where
memory, speed or the last digits are at stake, in `optimized/` and in the benchmarks,
nor where a program of a reader runs, in notebooks and the README.
"""

import os
import shutil
from pathlib import Path

from _compiling import FLAGS

CACHE = Path(__file__).parents[1] / ".jax_cache"
CACHE_BYTES = 2e9
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("XLA_FLAGS", FLAGS)
# Two workers have the two cores already; more threads of torch only wait for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test opens a window.
os.environ.setdefault("MPLBACKEND", "agg")

import jax  # noqa: E402
import pytest  # noqa: E402

# The suites of other settings are further processes: see test_other_settings.py.
X64 = os.environ.get("DIFFKM_TEST_X64", "1") == "1"
SUITES = ["float32", "optimized"]
LONGEST = {
    "test_other_settings.py",
    "test_agreement.py",
    "test_assignment_agreement.py",
    "test_compare.py",
    "test_docstrings.py",
    "test_estimators.py",
    "test_fit_derivatives.py",
    "test_torch_derivatives.py",
}

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", X64)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

collect_ignore = SUITES if X64 else []


def pytest_configure(config):
    """Empties the folder of programs when it has grown: once, before the workers."""
    if hasattr(config, "workerinput") or not CACHE.is_dir():
        return
    if sum(path.stat().st_size for path in CACHE.iterdir()) > CACHE_BYTES:
        shutil.rmtree(CACHE)


def pytest_collection_modifyitems(items):
    """The longest files first, so that no worker begins one at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forgets the programs of a file: thousands of them are gigabytes."""
    yield
    jax.clear_caches()

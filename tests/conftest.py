"""Strict JAX for every test: x64, no silent promotion, several virtual devices."""

import itertools
import os

import jax
import pytest

# The float32 suite is a second process: see test_float32_suite.py.
X64 = os.environ.get("DIFFKM_TEST_X64", "1") == "1"

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", X64)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

collect_ignore = ["float32"] if X64 else []

_finished = itertools.count(1)


@pytest.fixture(autouse=True)
def few_programs():
    """Forgets compiled programs now and then: thousands of them are gigabytes."""
    yield
    if next(_finished) % 50 == 0:
        jax.clear_caches()

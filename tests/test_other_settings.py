"""Suites of other settings, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# x64 off; XLA's own level of optimization, by which memory is measured.
SUITES = {"float32": {"DIFFKM_TEST_X64": "0"}, "optimized": {"XLA_FLAGS": ""}}


@pytest.mark.parametrize("suite", SUITES)
def test_the_suite_passes(suite):
    assert_passes(suite, "not slow")


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_the_slow_tests_of_the_suite_pass(suite):
    assert_passes(suite, "slow")


def assert_passes(suite, marked):
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", marked]
    run = subprocess.run(
        [*command, str(TESTS / suite)],
        env=os.environ | SUITES[suite],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert "passed" in run.stdout

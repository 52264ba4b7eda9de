"""The float32 suite, in a process of its own where x64 is off."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_float32_suite_passes():
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", str(here / "float32")]
    run = subprocess.run(
        command,
        env=os.environ | {"DIFFKM_TEST_X64": "0"},
        cwd=here.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert "passed" in run.stdout

"""The README's Python runs as it stands, and prints what it says."""

import re
import subprocess
import sys
from pathlib import Path

from _printed import assert_says_the_same

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_run_and_print_what_they_say():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    program = "\n".join(blocks)
    said = re.findall(r"^# (.*)$", program, re.MULTILINE)
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=README.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert len(said) >= 4
    # Sampled or summed in another order on another machine: to a few percent.
    assert_says_the_same(run.stdout, "\n".join(said), tolerance=0.05)

"""The README's Python runs as it stands, and prints what it says."""

import re
import subprocess
import sys
from pathlib import Path

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
    printed = run.stdout.splitlines()
    assert len(said) >= 4
    assert [re.sub(r"[\d.]+", "", line) for line in printed] == [
        re.sub(r"[\d.]+", "", line) for line in said
    ]
    # Sampled or summed in another order on another machine: to a few percent.
    for ours, theirs in zip(printed, said, strict=True):
        for a, b in zip(
            *(re.findall(r"[\d.]+", s) for s in (ours, theirs)), strict=True
        ):
            assert abs(float(a) - float(b)) <= 0.05 * float(b) + 0.01

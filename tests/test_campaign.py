"""The campaign: it knows every public name, and a fixed sample of it finds no fault."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from _compiling import FLAGS

from tests.campaign import PARTS, _subjects, _torch_only


def test_every_public_name_is_a_subject_of_the_campaign():
    tried = {subject.base for subject in _subjects.subjects()}
    assert tried | set(_subjects.CLASSES) == set(_subjects.names())
    assert set(_subjects.CLASSES.values()) <= tried
    assert _torch_only.NAMES == _torch_only.TRIED


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_a_sample_of_the_campaign_finds_no_fault(part):
    size = ["--pairs", "100"] if part == "agreement" else ["--sample"]
    command = [sys.executable, "-m", "tests.campaign", part, *size]
    run = subprocess.run(
        command,
        env=os.environ | {"XLA_FLAGS": FLAGS},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]

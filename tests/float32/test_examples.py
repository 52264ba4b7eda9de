"""The examples of the docstrings print the same where x64 is off."""

import pytest
from test_docstrings import test_the_example_runs

__all__ = ["test_the_example_runs"]

pytestmark = pytest.mark.slow

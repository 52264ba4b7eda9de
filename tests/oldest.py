"""Prints the dependencies pinned to the oldest versions that pyproject.toml allows."""

import tomllib
from pathlib import Path

project = Path(__file__).parents[1] / "pyproject.toml"
dependencies = tomllib.loads(project.read_text())["project"]["dependencies"]
print(*(dependency.replace(">=", "==") for dependency in dependencies))

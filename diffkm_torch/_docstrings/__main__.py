"""Writes the file of whole docstrings: `python -m diffkm_torch._docstrings`."""

from diffkm_torch._docstrings import FILE
from diffkm_torch._docstrings._merge import text

FILE.write_text(text(), encoding="utf-8")

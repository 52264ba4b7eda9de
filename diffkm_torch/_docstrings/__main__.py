"""Writes the file of whole docstrings: `python -m diffkm_torch._docstrings`."""

from diffkm_torch._docstrings import FILE
from diffkm_torch._docstrings._merge import whole

FILE.write_text(
    "\n".join(f"## {name}\n\n{text}\n" for name, text in whole().items()),
    encoding="utf-8",
)

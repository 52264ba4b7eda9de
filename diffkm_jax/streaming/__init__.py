"""Fits to data that are read batch by batch, of any number of points."""

from diffkm_jax.streaming._result import StreamResult
from diffkm_jax.streaming._stream import fit_stream

__all__ = ["StreamResult", "fit_stream"]

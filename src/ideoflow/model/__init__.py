"""The Ideogram 4 transformer over a ragged stream of tokens, and nothing else."""

from .._imports import quietly

with quietly():
    from .transformer import Context, Ideogram4Transformer2DModel, Modulation

__all__ = ["Context", "Ideogram4Transformer2DModel", "Modulation"]

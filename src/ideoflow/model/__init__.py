"""The Ideogram 4 transformer over a ragged stream of tokens, and nothing else."""

from typing import TYPE_CHECKING

from .._imports import lazily

if TYPE_CHECKING:
    from .context import Context, Modulation
    from .transformer import Ideogram4Transformer2DModel

__all__ = ["Context", "Ideogram4Transformer2DModel", "Modulation"]

__getattr__ = lazily(
    __name__, {".context": ("Context", "Modulation"), ".transformer": ("Ideogram4Transformer2DModel",)}
)

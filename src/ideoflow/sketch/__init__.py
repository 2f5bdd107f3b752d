"""The sketch model and its world: a small trained Ideogram 4 that ships with the project, and what it learned from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .._imports import bars, quietly
from ..bundled import SKETCH_FOLDER

if TYPE_CHECKING:
    import torch

    from ..pipeline import Ideogram4Pipeline

GUIDANCE = 2.0  # what suits so small a model; the presets' 7 is for the published weights


def path() -> Path:
    """The bundled model's folder, in the layout that ideoflow's and diffusers' pipelines open."""
    return SKETCH_FOLDER


def load(dtype: torch.dtype | None = None) -> Ideogram4Pipeline:
    """The bundled model as a pipeline: pictures of 96 to 192 pixels a side, on any machine, without a download.

    With `prompt_upsampling=True` it draws plain words, by the grammar of `sketch.prose`.

    Args:
        dtype: What to compute in; float32 by default.
    """
    with quietly():
        import torch

        from ..pipeline import Ideogram4Pipeline
        from .prose import write

    with bars(False):  # it takes a second
        pipeline: Ideogram4Pipeline = Ideogram4Pipeline.from_pretrained(path(), dtype=dtype or torch.float32)
    pipeline.caption_writer = write
    return pipeline

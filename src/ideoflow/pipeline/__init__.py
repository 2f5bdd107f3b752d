"""Captions in, pictures out: diffusers' pipeline of Ideogram 4, by the engine, with its files, adapters and speed."""

from typing import TYPE_CHECKING

from .._imports import lazily

if TYPE_CHECKING:
    from .cache_calibration import CacheCalibration, keep_calibrations
    from .pipeline import Ideogram4Pipeline, Ideogram4PipelineOutput
    from .preview_map import PreviewMap, preview_map_of

__all__ = [
    "CacheCalibration", "Ideogram4Pipeline", "Ideogram4PipelineOutput", "PreviewMap", "keep_calibrations",
    "preview_map_of",
]  # fmt: skip

__getattr__ = lazily(
    __name__,
    {
        ".cache_calibration": ("CacheCalibration", "keep_calibrations"),
        ".pipeline": ("Ideogram4Pipeline", "Ideogram4PipelineOutput"),
        ".preview_map": ("PreviewMap", "preview_map_of"),
    },
)

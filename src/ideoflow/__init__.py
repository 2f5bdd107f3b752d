"""ideoflow: Ideogram 4 as a packed-sequence engine; public names load on first use, so `import ideoflow` is quick."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._imports import lazily
from ._version import __version__

if TYPE_CHECKING:
    from .captions import Caption
    from .editing import Ideogram4Img2ImgPipeline, Ideogram4InpaintPipeline
    from .model import Ideogram4Transformer2DModel
    from .pictures import save_image
    from .pipeline import Ideogram4Pipeline, Ideogram4PipelineOutput
    from .presets import PRESETS

__all__ = [
    "PRESETS",
    "Caption",
    "Ideogram4Img2ImgPipeline",
    "Ideogram4InpaintPipeline",
    "Ideogram4Pipeline",
    "Ideogram4PipelineOutput",
    "Ideogram4Transformer2DModel",
    "__version__",
    "save_image",
]

__getattr__ = lazily(
    __name__,
    {
        ".captions": ("Caption",),
        ".editing": ("Ideogram4Img2ImgPipeline", "Ideogram4InpaintPipeline"),
        ".model": ("Ideogram4Transformer2DModel",),
        ".pictures": ("save_image",),
        ".pipeline": ("Ideogram4Pipeline", "Ideogram4PipelineOutput"),
        ".schedule": ("PRESETS",),
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Pictures changed: as a whole, in a part, by a caption, at the sides. All of it makes requests, and nothing else."""

from typing import TYPE_CHECKING

from .._imports import lazily

if TYPE_CHECKING:
    from .caption_changes import changes_between
    from .caption_edit import CaptionEdit
    from .drop_in import Ideogram4Img2ImgPipeline, Ideogram4InpaintPipeline
    from .editing_pipeline import EditingPipeline
    from .image_to_image import ImageToImage
    from .inpainting import Inpaint
    from .made_again import change_of
    from .outpainting import outpainted
    from .redrawing import redrawn
    from .upscaling import Upscale
    from .variation import Variation

__all__ = [
    "CaptionEdit",
    "EditingPipeline",
    "Ideogram4Img2ImgPipeline",
    "Ideogram4InpaintPipeline",
    "ImageToImage",
    "Inpaint",
    "Upscale",
    "Variation",
    "change_of",
    "changes_between",
    "outpainted",
    "redrawn",
]

__getattr__ = lazily(
    __name__,
    {
        ".caption_changes": ("changes_between",),
        ".caption_edit": ("CaptionEdit",),
        ".drop_in": ("Ideogram4Img2ImgPipeline", "Ideogram4InpaintPipeline"),
        ".editing_pipeline": ("EditingPipeline",),
        ".image_to_image": ("ImageToImage",),
        ".inpainting": ("Inpaint",),
        ".made_again": ("change_of",),
        ".outpainting": ("outpainted",),
        ".redrawing": ("redrawn",),
        ".upscaling": ("Upscale",),
        ".variation": ("Variation",),
    },
)

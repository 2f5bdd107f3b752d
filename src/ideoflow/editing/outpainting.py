"""Outpainting: a picture within a larger one, of which what is new is drawn, and the old part kept to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from ..checks import whole
from ..sizes import LARGEST_SIDE
from .canvas import open_picture
from .change import check_pair
from .inpainting import Inpaint


def outpainted(
    image: Any,
    size: tuple[int, int],
    place: tuple[int, int] | None = None,
    *,
    strength: float = 1.0,
    feather: int = 8,
    harmonise: int = 0,
) -> Inpaint:
    """The change that draws a larger picture around a picture.

    Args:
        image: The picture, in any form that `open_picture` takes.
        size: `(width, height)` in pixels of the larger one, at least the picture's.
        place: `(left, top)` pixels of the larger one at which the picture lies; None for the middle.
        strength: Share of the steps that are taken where the picture is new; less than 1 starts from its edges,
            continued.
        feather: Pixels over which what is drawn fades into the old picture's edge, continued.
        harmonise: As of `Inpaint`.

    Raises:
        TypeError: naming the argument that is of another type.
        ValueError: a size or a place in which the picture does not lie whole, or which is no larger.
        OSError: a file that cannot be read.
    """
    old = open_picture(image)
    width, height = (whole("size", side, 1, " of pixels", most=LARGEST_SIDE) for side in check_pair("size", size))
    if width < old.width or height < old.height or (width, height) == old.size:
        raise ValueError(
            f"`size` is {width} x {height}, and the picture has {old.width} x {old.height} pixels: give the size of a"
            " larger picture, no side of which is shorter."
        )
    if place is None:
        place = (width - old.width) // 2, (height - old.height) // 2
    left, top = (whole("place", edge, 0, " of pixels") for edge in check_pair("place", place))
    if left + old.width > width or top + old.height > height:
        raise ValueError(
            f"`place` is ({left}, {top}), where a picture of {old.width} x {old.height} pixels does not lie whole"
            f" within a larger one of {width} x {height}: give (left, top) pixels up to ({width - old.width},"
            f" {height - old.height})."
        )
    around = ((top, height - top - old.height), (left, width - left - old.width), (0, 0))
    laid = Image.fromarray(np.pad(np.asarray(old), around, mode="edge"))
    mask = torch.ones(height, width)
    mask[top : top + old.height, left : left + old.width] = 0
    settings = {"place": [left, top], "of": [old.width, old.height], "canvas": [width, height]}
    return Inpaint(laid, mask, strength, feather, harmonise, settings=settings)

"""Redrawing: of two captions, what has changed; of a picture, that alone drawn anew."""

from __future__ import annotations

from typing import Any

from ..checks import whole
from .canvas import open_picture
from .caption_changes import changes_between
from .inpainting import MOST_FEATHER, Inpaint
from .masking import box_mask


def redrawn(
    image: Any,
    before: Any,
    after: Any,
    *,
    margin: int = 8,
    strength: float = 1.0,
    feather: int = 4,
    harmonise: int = 0,
    padding: int | None = None,
) -> Inpaint:
    """The change that draws the elements that differ between two captions: where they were, and where they are to be.

    Args:
        image: The picture, in any form that `open_picture` takes.
        before: Its caption.
        after: What it is to become.
        margin: Pixels around the boxes that may change with them; what is drawn fades in over `feather` of these.
        strength: As of `Inpaint`.
        feather: As of `Inpaint`.
        harmonise: As of `Inpaint`.
        padding: As of `Inpaint`.

    Raises:
        TypeError: naming the argument that is of another type.
        ValueError: naming the argument that does not fit; captions that differ everywhere, or in nothing.
        OSError: a file that cannot be read.
    """
    margin = whole("margin", margin, 0, most=MOST_FEATHER)
    changes = changes_between(before, after)
    picture = open_picture(image)
    mask = box_mask(changes.boxes, picture.size, margin)
    return Inpaint(
        picture,
        mask,
        strength,
        feather,
        harmonise,
        padding=padding,
        settings={"boxes": [list(box) for box in changes.boxes]},
    )

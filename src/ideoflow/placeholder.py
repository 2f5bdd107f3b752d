"""Telling the grey picture that the published weights answer with, in place of what they would not draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

LOOKED_AT = 64  # pixels a side, to which a picture is brought
GREY = 10  # 8-bit levels that the channels of a grey may differ
NEAR = 8  # levels from the one grey
SHARE = 0.9  # of the picture, that the one grey fills
DARKEST, LIGHTEST = 40, 225  # of that grey: plain black and plain white are pictures that people ask for
PLACEHOLDER = (
    "the picture is one grey without structure, like the placeholder that the weights answer with where they take a"
    " caption for one they must not draw, or for none: check the caption (`ideoflow caption lint`) or try another seed."
)


def looks_like_placeholder(image: Image) -> bool:
    """Whether a picture is one grey without structure; a few grey letters on it change nothing.

    Args:
        image: of any size and mode.
    """
    from PIL import Image as Pillow

    small = image.convert("RGB").resize((LOOKED_AT, LOOKED_AT), Pillow.Resampling.BOX)
    red, green, blue = (band.tobytes() for band in small.split())
    if sum(max(one) - min(one) > GREY for one in zip(red, green, blue, strict=True)) > 0.01 * LOOKED_AT**2:
        return False
    middle = sorted(green)[len(green) // 2]
    near = sum(abs(level - middle) <= NEAR for level in green)
    return DARKEST <= middle <= LIGHTEST and near >= SHARE * LOOKED_AT**2

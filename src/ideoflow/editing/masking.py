"""Masks: which parts of a picture may change, and how far. Here 1, or white, always means: change."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import max_pool2d

from ..checks import all_finite
from ..images import ImageError, flattened, has_alpha
from ..latents import PATCH, patchify
from .canvas import opened
from .depth import deepest_of_part, depth, middle

Changes = Literal["white", "black", "transparent"]
CHANGES = ("white", "black", "transparent")
CERTAIN = 0.5  # of a soft mask, from which what was drawn shows alone
LEVELS = 8  # of a soft mask, each of which has a feather of its own


def open_mask(source: Any, size: tuple[int, int], changes: str = "white", name: str = "mask_image") -> Tensor:
    """A mask `(height, width)` in [0, 1]: 1 where the picture may change, 0 where it may not.

    Args:
        source: As a picture is given to `open_picture`.
        size: `(width, height)` of the picture that it is for.
        changes: What is to be changed: where the mask is "white", as here and in ComfyUI; "black", as in Ideogram's
            own API; or "transparent", as in OpenAI's.
        name: Name of the argument, for messages.

    Raises:
        TypeError: no picture.
        ImageError: a ValueError: a mask that cannot be read, is transparent where its brightness is asked for or the
            other way round, has another size, or lets nothing change.
    """
    mask = opened(source, name, _alpha if changes == "transparent" else _brightness)
    if mask.size != size:
        raise ImageError(
            f"`{name}` has {mask.width} x {mask.height} pixels, and the picture {size[0]} x {size[1]}: give a mask of"
            " the picture's size."
        )
    if mask.getextrema() == (0, 1):
        raise ImageError(
            f"`{name}` has no values but 0 and 1, of 255: give it as booleans or as floats, or multiply it by 255."
        )
    values = torch.from_numpy(np.array(mask, dtype=np.float32)) / 255
    values = values if changes == "white" else 1 - values
    if not values.any():
        raise ImageError(f"`{name}` lets nothing change: make it {changes} where the picture is to be drawn anew.")
    return values


def _brightness(image: Image.Image) -> Image.Image:
    if has_alpha(image) and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise ImageError(
            "is transparent in places, and a mask is read by its brightness: lay it on white or black, or say that what"
            ' is transparent changes with `mask_changes="transparent"`.'
        )
    return flattened(image).convert("L")


def _alpha(image: Image.Image) -> Image.Image:
    if not has_alpha(image):
        raise ImageError(
            'has no transparency, which `mask_changes="transparent"` reads: give a picture with alpha, or "white" or'
            ' "black".'
        )
    return image.convert("RGBA").getchannel("A")


def is_boxes(given: Any) -> bool:
    """Whether a mask was given as a box, or as a list of boxes."""
    return isinstance(given, (list, tuple)) and bool(given) and (_is_box(given) or all(map(_is_box, given)))


def _is_box(given: Any) -> bool:
    """Numbers in a row; whether they are a box is for `box_mask` to say."""
    return isinstance(given, (list, tuple)) and bool(given) and all(isinstance(edge, Real) for edge in given)


def box_mask(boxes: Sequence[Any], size: tuple[int, int], margin: int = 0, name: str = "mask_image") -> Tensor:
    """A mask of boxes `(y_min, x_min, y_max, x_max)` in thousandths of the sides, as captions have them.

    Args:
        boxes: One, or a list of them.
        size: `(width, height)` of the picture.
        margin: Pixels by which each is grown.
        name: Name of the argument, for messages.

    Raises:
        ValueError: a box that is none, or no boxes.
    """
    width, height = size
    mask = torch.zeros(height, width)
    for box in [boxes] if _is_box(boxes) else boxes:
        edges = all_finite(name, box)
        if any(isinstance(edge, bool) for edge in box) or max(edges, default=0) <= 1:
            raise ValueError(
                f"`{name}` has the box {box!r}: give (y_min, x_min, y_max, x_max) in thousandths of the sides, from 0"
                " to 1000, not in shares from 0 to 1."
            )
        if len(edges) != 4 or not (0 <= edges[0] < edges[2] <= 1000 and 0 <= edges[1] < edges[3] <= 1000):
            raise ValueError(
                f"`{name}` has the box {box!r}: give (y_min, x_min, y_max, x_max) in thousandths of the sides, y first."
            )
        top, left = int(edges[0] * height / 1000) - margin, int(edges[1] * width / 1000) - margin
        bottom, right = -int(-edges[2] * height // 1000) + margin, -int(-edges[3] * width // 1000) + margin
        mask[max(0, top) : bottom, max(0, left) : right] = 1
    if not mask.any():
        raise ValueError(f"`{name}` has no boxes: give one at least.")
    return mask


def feathered(mask: Tensor, feather: int) -> Tensor:
    """How much of what was drawn shows in each pixel: 0 where the mask is 0, rising over `feather` pixels within it.

    Nothing shows outside of the mask, so that the pixels there are the picture's own. The picture's edge is none of the
    mask's. Where a part of the mask, or an arm of a part, is too narrow for the feather, its middle line shows whole,
    however wide all else is.
    """
    sure = (mask / min(CERTAIN, float(mask.max()))).clamp(max=1).numpy()
    shown, inside, rising = np.zeros_like(sure), None, None
    for level in range(LEVELS):
        within = sure > level / LEVELS
        if inside is None or not np.array_equal(within, inside):  # of a hard mask, all levels are one
            inside, deep = within, depth(within, feather + 1)
            width = deep + depth(~middle(deep), feather + 1)  # half of it, there
            rising = deep / np.maximum(np.minimum(width, deepest_of_part(within, deep)), 1)
        shown += (sure * LEVELS - level).clip(0, 1) * rising
    return torch.from_numpy(shown / np.float32(LEVELS))


def token_mask(mask: Tensor, scale: int, channels: int) -> Tensor:
    """A canvas's mask `(height, width)` as `(tokens, channels)`: that of a latent pixel is the most of any pixel in it.

    Args:
        mask: Of sides that are multiples of a token's.
        scale: Pixels of a latent pixel's side.
        channels: Channels of a token.
    """
    cells = max_pool2d(mask[None], scale)
    return patchify(cells.expand(channels // PATCH**2, -1, -1)[None])[0]


def to_text(mask: Tensor) -> str:
    """A mask as text for a picture's settings: a PNG in base64."""
    png = io.BytesIO()
    Image.fromarray((mask * 255).round().to(torch.uint8).numpy()).save(png, format="PNG", optimize=True)
    return base64.b64encode(png.getvalue()).decode("ascii")


def from_text(text: str, size: tuple[int, int]) -> Tensor:
    """The mask of `to_text`.

    Raises:
        ImageError: a ValueError: text that is none, or a mask of another size.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise ImageError("the mask in the picture's settings is damaged.") from None
    return open_mask(data, size, name="mask")

"""Pictures to change: opened from whatever holds them, laid on a canvas of whole tokens, and cut out of it again."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..images import MOST_PIXELS, ImageError, flattened, open_image, plain_errors, upright

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, as Pillow has them
Fit = Literal["pad", "crop", "stretch"]
FITS = ("pad", "crop", "stretch")
LANCZOS = Image.Resampling.LANCZOS


def open_picture(source: Any, name: str = "image") -> Image.Image:
    """A picture as 8-bit RGB, upright, with transparency laid on white; of an animation, the first picture.

    Args:
        source: A Pillow picture, a file, the bytes of one or an open one, an array `(height, width)` or
            `(height, width, channels)` of bytes or of numbers in [0, 1], or a tensor `(channels, height, width)` of
            such.
        name: Name of the argument, for messages.

    Raises:
        TypeError: something else.
        ImageError: a ValueError: a picture that cannot be read, or holds other numbers.
        OSError: a file that cannot be read.
    """
    return opened(source, name, flattened)


def opened(source: Any, name: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """A picture, upright and converted; arguments and errors as those of `open_picture`."""
    try:
        image = _image(source, name)
        with plain_errors():
            if image.width * image.height > MOST_PIXELS:
                raise ImageError(f"has more than {MOST_PIXELS // 10**6} million pixels: make it smaller.")
            if not image.width * image.height:
                raise ImageError("has no pixels.")
            image.load()
            _check_numbers(image)
            if image.mode == "La":
                image = image.convert("LA")
            return convert(upright(image))
    except ImageError as error:
        shown = f" {source}" if isinstance(source, (str, os.PathLike)) else ""
        raise ImageError(f"`{name}`{shown} {error}") from None


def _image(source: Any, name: str) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        raise ImageError("is an address, and nothing is fetched from the network: give the file.")
    if isinstance(source, io.IOBase):
        source = source.read()
    if isinstance(source, (str, os.PathLike, bytes)):
        return open_image(source)
    if isinstance(source, Tensor):
        if source.ndim == 4 and len(source) == 1:
            source = source[0]
        if source.ndim == 2:
            source = source[None]
        if source.ndim != 3:
            raise ImageError(f"is a tensor of shape {tuple(source.shape)}: give (channels, height, width).")
        source = source.detach().to("cpu", torch.float32 if source.is_floating_point() else source.dtype)
        source = source.permute(1, 2, 0).numpy()
    if isinstance(source, np.ndarray):
        return Image.fromarray(_bytes(source))
    raise TypeError(f"`{name}` is a {type(source).__name__}: give a picture, a file, bytes, an array or a tensor.")


def _bytes(pixels: np.ndarray) -> np.ndarray:
    """An array as Pillow takes it: 8 bits, `(height, width)` or with 3 or 4 channels."""
    if pixels.ndim == 4 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise ImageError(f"has the shape {pixels.shape}: give (height, width), with 1, 3 or 4 channels if any.")
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint8:
        if pixels.size and pixels.max() == 1:
            raise ImageError("has no values but 0 and 1, of 255: give booleans or floats, or multiply it by 255.")
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ImageError(f"holds numbers of type {pixels.dtype}: give bytes (uint8), or floats from 0 to 1.")
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN is neither
        raise ImageError("holds floats outside of 0 to 1: divide by their largest value, or give bytes (uint8).")
    return (pixels * 255).round().astype(np.uint8)


def _check_numbers(image: Image.Image) -> None:
    """Refuse pictures of numbers that no rule brings to 8 bits."""
    if image.mode == "F":
        raise ImageError("holds floating-point numbers without a range: save it with 8 bits.")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() < 2**16):
            raise ImageError("holds numbers of more than 16 bits: save it with 8 bits.")
        if 0 < values.max() < 2**8:
            raise ImageError(
                f"is a picture of 16 bits or more whose values end at {values.max()}, which would be black: if they are"
                " of 255, save it with 8 bits; if of 65535, multiply them."
            )


def digest(image: Image.Image) -> str:
    """`sha256:...` of a picture's size and pixels, whatever file it came from."""
    head = f"{image.mode} {image.width} {image.height} ".encode()
    return f"sha256:{hashlib.sha256(head + image.tobytes()).hexdigest()}"


def pixels_of(image: Image.Image) -> Tensor:
    """`(3, height, width)` in [-1, 1]; rounded to bytes again, every pixel is what it was."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1.0


@dataclass(frozen=True, eq=False)
class Canvas:
    """A picture, or a part of one, laid on whole tokens.

    Attributes:
        picture: What the model works on; sides are multiples of a token's.
        window: The part of the source that it shows, in the source's pixels.
        inner: Where on the canvas that part lies; around it its edge is continued.
        given: What of the canvas is given back as a picture of its own.
    """

    picture: Image.Image
    window: Box
    inner: Box
    given: Box

    @property
    def seen(self) -> tuple[float, float, float, float]:
        """`(left, top, right, bottom)` of the canvas in the source's pixels, or beyond them where it is padded."""
        left, top, right, bottom = self.window
        x0, y0, x1, y1 = self.inner
        across, down = (right - left) / (x1 - x0), (bottom - top) / (y1 - y0)
        width, height = self.picture.size
        return (
            left - x0 * across,
            top - y0 * down,
            right + (width - x1) * across,
            bottom + (height - y1) * down,
        )

    @property
    def given_size(self) -> tuple[int, int]:
        """`(width, height)` of what is given back."""
        return self.given[2] - self.given[0], self.given[3] - self.given[1]

    def lay(self, layer: Tensor) -> Tensor:
        """A layer of the source, `(channels, height, width)`, as it lies on the canvas; 0 around the inner part."""
        left, top, right, bottom = self.window
        x0, y0, x1, y1 = self.inner
        shown = layer[:, top:bottom, left:right]
        if shown.shape[1:] != (y1 - y0, x1 - x0):
            shown = resized(shown, (x1 - x0, y1 - y0))
        laid = torch.zeros((len(layer), self.picture.height, self.picture.width))
        laid[:, y0:y1, x0:x1] = shown
        return laid

    def cut(self, picture: Tensor) -> Tensor:
        """What is given back of a decoded canvas `(3, height, width)`."""
        left, top, right, bottom = self.given
        return picture[:, top:bottom, left:right]

    def cut_window(self, picture: Tensor) -> Tensor:
        """The window, in the source's pixels, of a decoded canvas `(3, height, width)`."""
        left, top, right, bottom = self.window
        x0, y0, x1, y1 = self.inner
        inner = picture[:, y0:y1, x0:x1]
        return (
            inner if inner.shape[1:] == (bottom - top, right - left) else resized(inner, (right - left, bottom - top))
        )


def resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture `(channels, height, width)` at another `(width, height)`, by cubic interpolation."""
    scaled = torch.nn.functional.interpolate(picture[None], (size[1], size[0]), mode="bicubic", antialias=True)[0]
    return scaled.clamp(picture.min(), picture.max())


def lay_out(
    image: Image.Image,
    fit: str,
    unit: int,
    *,
    size: tuple[int, int] | None = None,
    window: Box | None = None,
    most: int | None = None,
) -> Canvas:
    """Lay a picture on a canvas.

    Args:
        image: The source, RGB.
        fit: How it comes to whole tokens, or to `size`: "pad" continues its edges, "crop" cuts from its sides,
            "stretch" changes its proportions.
        unit: Pixels of a token's side.
        size: `(width, height)` of the canvas, multiples of `unit`; None for the picture's own as nearly as `fit` can.
        window: The part of the source to show; None for all of it.
        most: The longest side that a canvas may have where no `size` is given: a larger source is shown smaller.
    """
    left, top, right, bottom = window or (0, 0, *image.size)
    wide, tall = right - left, bottom - top
    if size is None:
        scale = 1.0 if most is None else min(1.0, most / max(wide, tall))
        target = _whole(wide * scale, unit, fit), _whole(tall * scale, unit, fit)
    else:
        target = size
        scale = (max if fit == "crop" else min)(size[0] / wide, size[1] / tall)
    if fit == "stretch":
        inner_size = target
    else:
        inner_size = min(target[0], max(1, round(wide * scale))), min(target[1], max(1, round(tall * scale)))
    if fit == "crop":
        cut = min(wide, max(1, round(inner_size[0] / scale))), min(tall, max(1, round(inner_size[1] / scale)))
        left, top = left + (wide - cut[0]) // 2, top + (tall - cut[1]) // 2
        right, bottom = left + cut[0], top + cut[1]
    x0, y0 = ((target[0] - inner_size[0]) // 2, (target[1] - inner_size[1]) // 2) if size is not None else (0, 0)
    inner = (x0, y0, x0 + inner_size[0], y0 + inner_size[1])
    shown = image if (left, top, right, bottom) == (0, 0, *image.size) else image.crop((left, top, right, bottom))
    if shown.size != inner_size:
        shown = shown.resize(inner_size, LANCZOS)
    around = ((y0, target[1] - inner[3]), (x0, target[0] - inner[2]), (0, 0))
    picture = shown if shown.size == target else Image.fromarray(np.pad(np.asarray(shown), around, mode="edge"))
    return Canvas(picture, (left, top, right, bottom), inner, inner if size is None else (0, 0, *target))


def _whole(side: float, unit: int, fit: str) -> int:
    """A side in whole tokens, one at least."""
    tokens = side / unit
    if fit == "pad":
        return max(1, math.ceil(round(tokens, 6))) * unit
    return max(1, math.floor(tokens) if fit == "crop" else round(tokens)) * unit

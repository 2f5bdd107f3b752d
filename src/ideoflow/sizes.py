"""Sizes of pictures: what a call gives, what the model can draw, and what it was trained on. Needs no torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from .checks import whole

UNIT = 16  # pixels of a token's side, of the published model and the bundled one
DEFAULT_SIDE = 2048
LARGEST_SIDE = 16384  # far beyond any training, and no slip of the keyboard
SIDE_LIMITS = (256, 2048)  # pixels, what the published weights were trained on
MAX_ASPECT = 6  # longer side over shorter side, likewise


def misfit(width: int, height: int, unit: int = UNIT) -> str | None:
    """What keeps pictures of that size from being drawn, and the nearest sizes that can be; None if nothing does."""
    sides = (width, height)
    if all(unit <= side <= LARGEST_SIDE and side % unit == 0 for side in sides):
        return None
    low = [min(max(side // unit * unit, unit), LARGEST_SIDE) for side in sides]
    high = [min(max(-(-side // unit) * unit, unit), LARGEST_SIDE) for side in sides]
    nearest = " and ".join(dict.fromkeys(f"{width}x{height}" for width, height in (low, high)))
    noun = "size is" if low == high else "sizes are"
    return f"each side must be a positive multiple of {unit}, up to {LARGEST_SIDE}. The nearest {noun} {nearest}."


def parse_size(value: str, option: str = "--size") -> tuple[int, int]:
    """`(width, height)` in pixels of a text such as "1024x768".

    Args:
        value: The text.
        option: What it was given by, for messages.

    Raises:
        ValueError: if it is no size, or none that can be drawn.
    """
    width, cross, height = value.lower().replace("×", "x").partition("x")  # noqa: RUF001
    sides = [side.strip() for side in (width, height)]
    if not (cross and all(side.isdecimal() and len(side) < 10 for side in sides)):
        raise ValueError(f"{option} {value!r} is not WIDTHxHEIGHT in pixels, for example 1024x768.")
    size = int(width), int(height)
    if wrong := misfit(*size):
        raise ValueError(f"{option} {value!r}: {wrong}")
    return size


def check_size(width: Any, height: Any, unit: int) -> tuple[int, int]:
    """`(width, height)` in whole tokens of `unit` pixels a side.

    Raises:
        TypeError: sides that are no whole numbers.
        ValueError: sides that are no positive multiples of `unit`.
    """
    allowed = f", a multiple of {unit}"
    width, height = whole("width", width, 1, allowed), whole("height", height, 1, allowed)
    if wrong := misfit(width, height, unit):
        raise ValueError(f"`width` and `height` are {width} and {height}: {wrong}")
    return width, height


def check_pair(size: Any, unit: int) -> tuple[int, int]:
    """`size=(width, height)` in whole tokens of `unit` pixels a side.

    Raises:
        ValueError: something else than a pair of positive multiples of `unit`.
    """
    pair = tuple(size) if isinstance(size, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 and side % unit == 0 for side in pair):
        raise ValueError(f"`size` is {size!r}: give (width, height) in pixels, multiples of {unit}.")
    return pair


def sizes_of(
    size: Any, height: int, width: int, prompts: int, unit: int, limits: Sequence[int] | None
) -> list[tuple[int, int]]:
    """`(width, height)` of each prompt.

    Args:
        size: One pair `(width, height)`, or one for each prompt; None for `width` and `height`.
        height: Height of all pictures, in pixels.
        width: Width of all pictures, in pixels.
        prompts: Number of prompts.
        unit: Pixels of a token's side.
        limits: Smallest and largest side that the weights were trained on; None for the published ones'. Others are
            warned about, but the default of a call, which nobody asked for, is refused.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    least, most = limits or SIDE_LIMITS
    if size is None:
        if (height, width) == (DEFAULT_SIDE, DEFAULT_SIDE) and not least <= DEFAULT_SIDE <= most:
            raise ValueError(
                f"`size` is not given, and the {width} x {height} pixels that are drawn then are outside what the"
                f" weights were trained on (sides of {least} to {most}): give a size, such as `size=({most}, {most})`."
            )
        sizes = [(width, height)] * prompts
    else:
        if (height, width) != (DEFAULT_SIDE, DEFAULT_SIDE):
            raise ValueError("Give either `size` or `height` and `width`, not both.")
        if not isinstance(size, Iterable):
            raise TypeError(f"`size` is {size!r}: give one (width, height), or one for each of the {prompts} prompts.")
        pairs = all(isinstance(pair, Sequence) for pair in size)
        sizes = [tuple(pair) for pair in size] if pairs else [tuple(size)] * prompts
    if len(sizes) != prompts or any(len(pair) != 2 for pair in sizes):
        raise ValueError(f"`size` is {size!r}: give one (width, height), or one for each of the {prompts} prompts.")
    sizes = [check_size(*pair, unit) for pair in sizes]
    for pair in dict.fromkeys(sizes):
        if min(pair) < least or max(pair) > most or max(pair) > MAX_ASPECT * min(pair):
            warnings.warn(
                f"{pair[0]} x {pair[1]} pixels are outside what the weights were trained on (sides of {least} to"
                f" {most}, aspect ratio up to {MAX_ASPECT}:1): the picture may be poor.",
                stacklevel=2,
            )
    return sizes

"""Colours of a picture, measured from its pixels: those of the whole, and those within each element's box."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..boxes import RANGE
from ..caption import Caption
from ..reading import Found
from ..schema import MAX_ELEMENT_COLOURS, MAX_STYLE_COLOURS, elements

if TYPE_CHECKING:
    from PIL.Image import Image

LOOKED_AT = 128  # pixels of the longer side, to which a picture or a part of it is brought
LEAST_SHARE = 0.04  # of the pixels that a colour of a palette covers
APART = 40.0  # in 8-bit levels, two colours of a palette
STYLE_COLOURS, ELEMENT_COLOURS = 6, 3


def palette(image: Image, most: int) -> list[str]:
    """The colours that cover most of a picture, as `#RRGGBB`, the largest first.

    Args:
        image: of any size and mode; what is transparent counts as white.
        most: how many at most.
    """
    from PIL import Image as Pillow

    small = image.convert("RGBA")
    small.thumbnail((LOOKED_AT, LOOKED_AT), Pillow.Resampling.BOX)
    flat = Pillow.new("RGBA", small.size, "white")
    flat.alpha_composite(small)
    counted = flat.convert("RGB").quantize(32, method=Pillow.Quantize.MEDIANCUT, dither=Pillow.Dither.NONE)
    levels = counted.getpalette() or []
    pixels = small.size[0] * small.size[1]
    found: list[tuple[int, int, int]] = []
    shares: list[float] = []
    for count, index in sorted(counted.getcolors() or [], reverse=True):
        place = 3 * int(index)  # type: ignore[call-overload]
        colour = (levels[place], levels[place + 1], levels[place + 2])
        near = next((place for place, one in enumerate(found) if _distance(one, colour) < APART), None)
        if near is None:
            found.append(colour)
            shares.append(count / pixels)
        else:
            shares[near] += count / pixels
    ranked = sorted(range(len(found)), key=lambda place: -shares[place])
    kept = [found[place] for place in ranked if shares[place] >= LEAST_SHARE] or [found[place] for place in ranked[:1]]
    return ["#{:02X}{:02X}{:02X}".format(*colour) for colour in kept[:most]]


def with_measured_colours(caption: Caption, image: Image) -> Caption:
    """The caption with palettes as the picture has them: of its style, and of each element in its box.

    A palette of an element leaves out what also surrounds its box, unless nothing else is in it.
    """
    data = caption.data()
    style = data.get("style_description")
    if isinstance(style, dict):
        style["color_palette"] = palette(image, min(STYLE_COLOURS, MAX_STYLE_COLOURS))
    for element in elements(data):
        if isinstance(element, dict) and isinstance(element.get("bbox"), list):
            element["color_palette"] = _of_box(image, element["bbox"])
    return Caption.of_found(Found(data)).repair()


def _of_box(image: Image, box: list[int]) -> list[str]:
    width, height = image.size
    top, left, bottom, right = (edge * side / RANGE for edge, side in zip(box, (height, width) * 2, strict=True))
    inner = (int(left), int(top), max(int(left) + 1, round(right)), max(int(top) + 1, round(bottom)))
    inside = palette(image.crop(inner), MAX_ELEMENT_COLOURS)
    edge = max(2, round(0.04 * max(width, height)))
    around = (
        max(0, inner[0] - edge),
        max(0, inner[1] - edge),
        min(width, inner[2] + edge),
        min(height, inner[3] + edge),
    )
    ring = image.convert("RGB").crop(around)
    hole = (inner[0] - around[0], inner[1] - around[1], inner[2] - around[0], inner[3] - around[1])
    outside = _ring_palette(ring, hole)
    own = [colour for colour in inside if all(_distance(_rgb(colour), _rgb(other)) >= APART for other in outside)]
    return (own or inside)[:ELEMENT_COLOURS]


def _ring_palette(image: Image, hole: tuple[int, int, int, int]) -> list[str]:
    """The main colour around a hole of a picture; nothing where the hole is all of it."""
    strips = [
        (0, 0, image.width, hole[1]), (0, hole[3], image.width, image.height),
        (0, hole[1], hole[0], hole[3]), (hole[2], hole[1], image.width, hole[3]),
    ]  # fmt: skip
    largest = max(strips, key=lambda one: (one[2] - one[0]) * (one[3] - one[1]))
    if largest[2] <= largest[0] or largest[3] <= largest[1]:
        return []
    return palette(image.crop(largest), 1)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _distance(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    return float(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5)

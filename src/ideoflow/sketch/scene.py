"""What a picture of the sketch world is made of: a background and elements, drawn to pixels and to masks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from PIL import Image

from .masks import shape_mask, word_mask

RGB = tuple[int, int, int]
Box = tuple[int, int, int, int]  # y_min, x_min, y_max, x_max in 0..1000

COLOURS: dict[str, str] = {
    "red": "#E53935",
    "orange": "#FB8C00",
    "yellow": "#FDD835",
    "green": "#43A047",
    "cyan": "#26C6DA",
    "blue": "#1E60E5",
    "purple": "#8E24AA",
    "pink": "#F48FB1",
    "brown": "#6D4C41",
    "black": "#212121",
    "white": "#FAFAFA",
    "gray": "#9E9E9E",
}


def rgb(colour: str) -> RGB:
    """The 8-bit red, green and blue of a colour's name or of `#RRGGBB`."""
    value = COLOURS.get(colour, colour).removeprefix("#")
    return int(value[0:2], 16), int(value[2:4], 16), int(value[4:6], 16)


@dataclass(frozen=True)
class Background:
    """What lies behind the elements: one colour, or two as a gradient or as stripes."""

    kind: Literal["solid", "gradient", "stripes"]
    colours: tuple[str, ...]
    direction: Literal["vertical", "horizontal"] = "vertical"
    stripes: int = 4

    @property
    def hexadecimal(self) -> list[str]:
        """Its colours as `#RRGGBB`."""
        return [COLOURS.get(c, c) for c in self.colours]

    def between(self) -> list[str]:
        """The colour halfway through a gradient; nothing for other backgrounds."""
        if self.kind != "gradient":
            return []
        first, last = (rgb(c) for c in self.colours)
        return ["#" + "".join(f"{(a + b) // 2:02X}" for a, b in zip(first, last, strict=True))]

    def render(self, width: int, height: int) -> np.ndarray:
        """Float32 picture of shape `(height, width, 3)` in 0..255."""
        first = np.array(rgb(self.colours[0]), dtype=np.float32)
        if self.kind == "solid":
            return np.broadcast_to(first, (height, width, 3)).copy()
        last = np.array(rgb(self.colours[1]), dtype=np.float32)
        along_y = self.direction == "vertical" if self.kind == "gradient" else self.direction == "horizontal"
        length = height if along_y else width
        place = (np.arange(length, dtype=np.float32) + 0.5) / length
        weight = place if self.kind == "gradient" else (np.floor(place * self.stripes) % 2)
        line = first + weight[:, None] * (last - first)
        grid = line[:, None] if along_y else line[None, :]
        return np.broadcast_to(grid, (height, width, 3)).copy()


@dataclass(frozen=True)
class Element:
    """One shape or word: its box in thousandths of a side, its colour (a name, or `#RRGGBB`) and what it is."""

    box: Box
    colour: str
    shape: str | None = None
    outline: bool = False
    word: str | None = None
    font: str = "sans"

    @property
    def exact(self) -> bool:
        """Whether its colour has no name, only its `#RRGGBB`."""
        return self.colour not in COLOURS

    @property
    def hexadecimal(self) -> str:
        """Its colour as `#RRGGBB`."""
        return COLOURS.get(self.colour, self.colour)

    def letters(self) -> list[tuple[str, tuple[float, float, float, float]]]:
        """Each letter of the word with the box of its cell, in thousandths."""
        top, left, bottom, right = self.box
        word = self.word or ""
        wide = (right - left) / max(1, len(word))
        return [(letter, (top, left + i * wide, bottom, left + (i + 1) * wide)) for i, letter in enumerate(word)]

    def pixel_box(self, width: int, height: int) -> Box:
        """The box in pixels, `(top, left, bottom, right)`, ends excluded."""
        top, left, bottom, right = self.box
        return (
            round(top * height / 1000),
            round(left * width / 1000),
            round(bottom * height / 1000),
            round(right * width / 1000),
        )

    def coverage(self, width: int, height: int) -> np.ndarray:
        """How much of each pixel the element covers: float32 in 0..1, shape `(height, width)`."""
        top, left, bottom, right = self.pixel_box(width, height)
        cover = np.zeros((height, width), dtype=np.float32)
        w, h = right - left, bottom - top
        cover[top:bottom, left:right] = (
            word_mask(self.word, self.font, w, h) if self.word else shape_mask(self.shape or "", w, h, self.outline)
        )
        return cover


@dataclass(frozen=True)
class Sample:
    """One picture of the world with everything that is true of it."""

    width: int
    height: int
    background: Background
    elements: tuple[Element, ...]
    caption: dict[str, Any]

    @cached_property
    def image(self) -> Image.Image:
        """The picture, RGB, `width` x `height`."""
        canvas = self.background.render(self.width, self.height)
        for element in self.elements:
            cover = element.coverage(self.width, self.height)[..., None]
            canvas += cover * (np.array(rgb(element.colour), dtype=np.float32) - canvas)
        return Image.fromarray(canvas.round().astype(np.uint8), "RGB")

    def masks(self) -> list[np.ndarray]:
        """Where each element is seen, those in front taken away: bool, `(height, width)` each, in element order."""
        seen: list[np.ndarray] = []
        free = np.ones((self.height, self.width), dtype=bool)
        for element in reversed(self.elements):
            cover = element.coverage(self.width, self.height) > 0.5
            seen.append(cover & free)
            free &= ~cover
        return seen[::-1]

    def background_mask(self) -> np.ndarray:
        """Where nothing but the background is seen: bool, `(height, width)`."""
        mask = np.ones((self.height, self.width), dtype=bool)
        for element in self.elements:
            mask &= element.coverage(self.width, self.height) < 0.01
        return mask

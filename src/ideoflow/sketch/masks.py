"""The shapes and words of the sketch world as coverage masks: each fills its box, whatever the box's proportions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..bundled import FONTS_FOLDER

# Drawn this many times larger, then averaged down: that is the antialiasing.
SUPERSAMPLE = 4

Point = tuple[float, float]


def _regular(points: int, turn: float = -0.5) -> list[Point]:
    """A regular polygon on the unit circle; `turn` is its first corner's angle in units of pi."""
    angles = (math.pi * (turn + 2 * i / points) for i in range(points))
    return [(math.cos(a), math.sin(a)) for a in angles]


def _star() -> list[Point]:
    radii = (1.0, 0.45)
    return [
        (radii[i % 2] * math.cos(a), radii[i % 2] * math.sin(a)) for i in range(10) for a in [math.pi * (-0.5 + i / 5)]
    ]


def _heart() -> list[Point]:
    # The classic parametric heart curve, y downward.
    steps = [2 * math.pi * i / 64 for i in range(64)]
    return [
        (16 * math.sin(a) ** 3, -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)))
        for a in steps
    ]


def _half_circle() -> list[Point]:
    return [(math.cos(math.pi * (1 + i / 32)), math.sin(math.pi * (1 + i / 32))) for i in range(33)]


def _cross(arm: float = 0.36) -> list[Point]:
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    corners: list[Point] = []
    for _ in range(4):
        corners += quarter
        quarter = [(-y, x) for x, y in quarter]
    return corners


def _arrow() -> list[Point]:
    return [(-1.0, -0.35), (0.1, -0.35), (0.1, -1.0), (1.0, 0.0), (0.1, 1.0), (0.1, 0.35), (-1.0, 0.35)]


def _fill_box(points: list[Point], width: float, height: float) -> list[Point]:
    """Stretch a polygon so that its extent is exactly the box."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x0, y0 = min(xs), min(ys)
    sx, sy = width / (max(xs) - x0), height / (max(ys) - y0)
    return [((x - x0) * sx, (y - y0) * sy) for x, y in points]


POLYGONS: dict[str, Callable[[], list[Point]]] = {
    "square": lambda: [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": lambda: [(0.5, 0), (1, 1), (0, 1)],
    "diamond": lambda: _regular(4),
    "hexagon": lambda: _regular(6, turn=0.0),
    "star": _star,
    "heart": _heart,
    "half circle": _half_circle,
    "cross": _cross,
    "arrow": _arrow,
}
SHAPES: tuple[str, ...] = ("circle", "ring", *POLYGONS)
OUTLINED: tuple[str, ...] = ("circle", "square", "triangle", "diamond", "hexagon", "heart", "half circle")
RING_HOLE = 0.5  # inner over outer diameter
STROKE = 0.18  # of an outline, in shorter sides of the box


def shape_mask(shape: str, width: int, height: int, outline: bool = False) -> np.ndarray:
    """Coverage of `shape` in a box of `width` x `height` pixels: float32 in 0..1, shape `(height, width)`.

    `outline` leaves only a line of `STROKE` along the inside of its edge; one of `OUTLINED` has one.
    """
    if outline and shape not in OUTLINED:
        raise ValueError(f"`shape` is {shape!r}; those with an outline are {', '.join(OUTLINED)}.")
    w, h = width * SUPERSAMPLE, height * SUPERSAMPLE
    canvas = Image.new("L", (w, h), 0)
    draw = ImageDraw.Draw(canvas)
    stroke = round(STROKE * min(w, h))
    style: dict[str, int] = {"outline": 255, "width": stroke} if outline else {"fill": 255}
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, w - 1, h - 1), **style)
        if shape == "ring":
            dx, dy = w * (1 - RING_HOLE) / 2, h * (1 - RING_HOLE) / 2
            draw.ellipse((dx, dy, w - 1 - dx, h - 1 - dy), fill=0)
    elif shape in POLYGONS:
        draw.polygon(_fill_box(POLYGONS[shape](), w - 1, h - 1), **style)
    else:
        raise ValueError(f"`shape` is {shape!r}; the sketch world knows {', '.join(SHAPES)}.")
    return _shrink(canvas, width, height)


@lru_cache(maxsize=4)
def _font(name: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONTS_FOLDER / f"{name}-subset.ttf"), 200)


FONTS: dict[str, str] = {"sans": "DejaVuSans-Bold", "serif": "DejaVuSerif-Bold"}


@lru_cache(maxsize=128)
def _ink(letter: str, font: str) -> Image.Image:
    """The letter as large as the font is loaded, cut to its ink."""
    face = _font(FONTS[font])
    left, top, right, bottom = face.getbbox(letter)
    canvas = Image.new("L", (int(right - left) + 40, int(bottom - top) + 40), 0)
    ImageDraw.Draw(canvas).text((20 - left, 20 - top), letter, font=face, fill=255)
    return canvas.crop(canvas.getbbox())


PITCH = 0.8  # width over height of a letter's cell: words are set with a fixed pitch
LETTER_WIDTH, DIGIT_WIDTH = 0.88, 0.7  # of its cell, at most; narrow letters keep their own proportions


def word_mask(word: str, font: str, width: int, height: int) -> np.ndarray:
    """Coverage of `word`, one cell a letter, in a box of `width` x `height` pixels: float32 in 0..1, `(height, width)`.

    Every letter is as tall as the box and stands in the middle of its cell.
    """
    w, h = width * SUPERSAMPLE, height * SUPERSAMPLE
    canvas = Image.new("L", (w, h), 0)
    cell = w / len(word)
    for place, letter in enumerate(word):
        ink = _ink(letter, font)
        share = DIGIT_WIDTH if letter.isdigit() else LETTER_WIDTH
        wide = max(1, round(min(share * cell, ink.width / ink.height * cell / PITCH)))
        resized = ink.resize((wide, h), Image.Resampling.BOX)
        canvas.paste(resized, (round((place + 0.5) * cell - wide / 2), 0))
    return _shrink(canvas, width, height)


def _shrink(canvas: Image.Image, width: int, height: int) -> np.ndarray:
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255

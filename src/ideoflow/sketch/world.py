"""The sketch world: small pictures of coloured shapes and words, each with its exact caption and its exact truth.

A picture is a function of `(split, seed, index)` alone. The held-out split may use colour and shape pairs, and words,
that the training split never shows.
"""

from __future__ import annotations

import math
import random
import zlib
from typing import Literal

from ..sizes import UNIT
from .masks import FONTS, OUTLINED, PITCH, SHAPES
from .scene import COLOURS, Background, Box, Element, Sample, rgb
from .wording import caption_of

Split = Literal["train", "held_out"]

GRID = 25  # boxes lie on multiples of this, in thousandths of a side
WORDS = 0.3  # of the elements are words
EXACT_COLOURS = 0.2  # of the elements have a colour without a name, told by their palette alone
OUTLINES = 0.25  # of the shapes that can be outlines are
APART = 89.0  # least distance in 8-bit RGB of two colours in a picture
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

# (width, height) and how often: square ones of about 64 tokens most, aspect ratios to 2:1.
SIZES: dict[tuple[int, int], float] = {
    (128, 128): 5, (96, 96): 3, (112, 112): 2, (144, 144): 1.5, (160, 160): 0.5,
    (128, 96): 2, (96, 128): 2, (160, 112): 1, (112, 160): 1, (144, 112): 1, (112, 144): 1,
    (160, 128): 0.5, (128, 160): 0.5, (192, 96): 0.7, (96, 192): 0.7, (192, 128): 0.3, (128, 192): 0.3,
}  # fmt: skip


def held_out_pair(colour: str, shape: str) -> bool:
    """Whether this colour and shape are never seen together in training (one pair in eight)."""
    return zlib.crc32(f"{colour} {shape}".encode()) % 8 == 0


def held_out_word(word: str) -> bool:
    """Whether this word is never seen in training (one in eight)."""
    return zlib.crc32(word.encode()) % 8 == 0


def sample(index: int, *, split: Split = "train", seed: int = 0, size: tuple[int, int] | None = None) -> Sample:
    """Picture number `index` of a split.

    Args:
        index: Any integer; every index gives another picture.
        split: `"train"`, or `"held_out"`, whose indices share no random state with training's and which may show
            pairs and words that training never does.
        seed: Another world of the same kind.
        size: `(width, height)` in pixels, multiples of 16; drawn from `SIZES` when absent.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"`split` is {split!r}; it is 'train' or 'held_out'.")
    draw = random.Random(f"sketch-2/{split}/{seed}/{index}")
    width, height = draw.choices(list(SIZES), list(SIZES.values()))[0] if size is None else size
    if width % UNIT or height % UNIT or min(width, height) < UNIT:
        raise ValueError(f"`size` is {(width, height)}; both sides are positive multiples of {UNIT}.")

    colours = draw.sample(list(COLOURS), len(COLOURS))  # all different, so that a colour names one thing in a picture
    background = _background(draw, colours)
    used = [*background.colours, *background.between()]
    elements: list[Element] = []
    for _ in range(draw.choices((1, 2, 3, 4), (4, 4, 2.5, 1.5))[0]):
        word = _word(draw, split) if draw.random() < WORDS else None
        box = _word_box(draw, width, height, len(word), elements) if word else _shape_box(draw, width, height, elements)
        if box is None:
            continue
        colour = _exact_colour(draw, used) if draw.random() < EXACT_COLOURS else None
        if colour is None:
            colour = next((c for c in colours if _apart(c, used)), None)
        if colour is None:
            continue
        used.append(colour)
        if word:
            elements.append(Element(box, colour, word=word, font=draw.choice(list(FONTS))))
        else:
            shape = _shape(draw, colour, split)
            outline = shape in OUTLINED and draw.random() < OUTLINES
            elements.append(Element(box, colour, shape=shape, outline=outline))
    return Sample(width, height, background, tuple(elements), caption_of(draw, background, elements))


def _background(draw: random.Random, colours: list[str]) -> Background:
    kind = draw.choices(("solid", "gradient", "stripes"), (7, 2, 1))[0]
    if kind == "solid":
        return Background("solid", (colours.pop(),))
    direction = draw.choice(("vertical", "horizontal"))
    return Background(kind, (colours.pop(), colours.pop()), direction)  # type: ignore[arg-type]


def _exact_colour(draw: random.Random, used: list[str]) -> str | None:
    """A colour without a name that nothing in the picture comes near, or None after 30 tries."""
    for _ in range(30):
        colour = f"#{draw.randrange(1 << 24):06X}"
        if _apart(colour, used):
            return colour
    return None


def _apart(colour: str, used: list[str]) -> bool:
    """Whether `colour` is none of `used` and at least `APART` from each."""
    return colour not in used and all(math.dist(rgb(colour), rgb(other)) >= APART for other in used)


def _shape(draw: random.Random, colour: str, split: Split) -> str:
    return draw.choice([s for s in SHAPES if split == "held_out" or not held_out_pair(colour, s)])


def _word(draw: random.Random, split: Split) -> str:
    while True:
        word = "".join(draw.choices(LETTERS, k=draw.choices((1, 2, 3, 4, 5), (3, 3, 3, 1.5, 1.5))[0]))
        if held_out_word(word) == (split == "held_out"):
            return word


def _shape_box(draw: random.Random, width: int, height: int, others: list[Element]) -> Box | None:
    aspect = draw.uniform(0.75, 1.33)
    area = draw.uniform(0.30, 0.60) ** 2 * min(width, height) * (width * height) ** 0.5
    return _place(draw, width, height, (area * aspect) ** 0.5, (area / aspect) ** 0.5, others)


def _word_box(draw: random.Random, width: int, height: int, letters: int, others: list[Element]) -> Box | None:
    tall = draw.uniform(0.28, 0.5) * min(width, height)
    wide = min(tall * letters * PITCH, 0.92 * width)
    return _place(draw, width, height, wide, wide / letters / PITCH, others)


def _place(draw: random.Random, width: int, height: int, wide: float, tall: float, others: list[Element]) -> Box | None:
    """A box of about `wide` x `tall` pixels on the grid that hardly touches the others, or None after 60 tries."""
    cells = 1000 // GRID
    columns = max(4, min(cells - 2, round(wide / width * cells)))
    rows = max(4, min(cells - 2, round(tall / height * cells)))
    for _ in range(60):
        left, top = draw.randint(0, cells - columns), draw.randint(0, cells - rows)
        box = (top * GRID, left * GRID, (top + rows) * GRID, (left + columns) * GRID)
        if all(_overlap(box, other.box) <= 0.08 for other in others):
            return box
    return None


def _overlap(a: Box, b: Box) -> float:
    """Shared area over the smaller box's."""
    tall, wide = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if tall <= 0 or wide <= 0:
        return 0.0
    return tall * wide / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))

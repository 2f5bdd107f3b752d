"""How well a model draws the sketch world's held-out captions: backgrounds, elements in place and colour, words.

A pixel belongs to the element, or to the background, whose colour there is nearest to its own, if that is near at all.
An element's region is compared with the one where it should be seen; most of the background's pixels must belong to it.
A word is read by rendering: every letter must look more like itself than like any other letter or digit in its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ideoflow.sketch.masks import word_mask
from ideoflow.sketch.scene import Element, Sample, rgb
from ideoflow.sketch.world import LETTERS, held_out_pair, sample

NEAR = 64.0  # largest distance in 8-bit RGB at which colours count as the same; the closest two named are 93 apart
BACKGROUND_SHARE = 0.75  # of the background's pixels that must belong to it
OVERLAP = 0.5  # intersection over union from which an element counts as drawn in its place
LIKENESS = 0.5  # correlation with its rendering from which a word can be read at all
SHORT = 3  # letters of the words that are scored by themselves

Draw = Callable[[list[str], list[tuple[int, int]], list[int]], list[Image.Image]]


@dataclass(frozen=True)
class Judgement:
    """One picture against its truth."""

    background: bool
    overlaps: tuple[float, ...]  # intersection over union of each element, in order
    read: tuple[bool, ...]  # of each element, in order, whether it is a word that can be read


@dataclass(frozen=True)
class Score:
    """Rates over many pictures, each `(rate, low, high)` with its 95% interval."""

    pictures: int
    background: tuple[float, float, float]
    shapes_in_place: tuple[float, float, float]
    elements_in_place: tuple[float, float, float]  # shapes and words
    shapes_overlap: float
    elements_overlap: float
    unseen_pairs_in_place: tuple[float, float, float]  # of shapes in a colour that training never showed them in
    words_in_place: tuple[float, float, float]
    words_read: tuple[float, float, float]
    short_words_read: tuple[float, float, float]  # of up to `SHORT` letters

    def lines(self) -> Iterator[str]:
        """The score for a person to read."""
        yield f"{'pictures':34} {self.pictures}"
        for name, (rate, low, high) in (
            ("background right", self.background),
            ("element in place and colour", self.elements_in_place),
            ("  shape", self.shapes_in_place),
            ("  shape in a colour never seen on it", self.unseen_pairs_in_place),
            ("  word", self.words_in_place),
            (f"word of 1 to {SHORT} letters read right", self.short_words_read),
            ("word of 1 to 5 letters read right", self.words_read),
        ):
            yield f"{name:34} {rate:6.1%}  (95% interval {low:.1%} to {high:.1%})"
        yield f"{'mean overlap of elements (IoU)':34} {self.elements_overlap:6.3f}"
        yield f"{'mean overlap of shapes (IoU)':34} {self.shapes_overlap:6.3f}"


def judge(drawn: Image.Image, truth: Sample) -> Judgement:
    """Compare one drawn picture with the sample whose caption it was drawn from.

    Raises:
        ValueError: if the picture's size is not the sample's.
    """
    if drawn.size != (truth.width, truth.height):
        raise ValueError(f"`drawn` is {drawn.size}; the sample is {(truth.width, truth.height)}.")
    pixels = np.asarray(drawn.convert("RGB"), dtype=np.float32)
    ground = truth.background.render(truth.width, truth.height)
    # (colours, height, width): how far each pixel is from the background there, then from each element's colour
    away = np.stack(
        [np.linalg.norm(pixels - ground, axis=-1)]
        + [np.linalg.norm(pixels - np.array(rgb(e.colour), dtype=np.float32), axis=-1) for e in truth.elements]
    )
    nearest = np.where(away.min(0) <= NEAR, away.argmin(0), -1)
    behind = truth.background_mask()
    overlaps = [
        float(((nearest == i) & mask).sum() / max(1, ((nearest == i) | mask).sum()))
        for i, mask in enumerate(truth.masks(), start=1)
    ]
    background = bool((nearest[behind] == 0).mean() >= BACKGROUND_SHARE)
    return Judgement(
        background, tuple(overlaps), tuple(bool(e.word) and _reads(pixels, ground, e) for e in truth.elements)
    )


def _reads(pixels: np.ndarray, ground: np.ndarray, element: Element) -> bool:
    """Whether the word looks more like itself than like any word that differs in one letter."""
    height, width = pixels.shape[:2]
    top, left, bottom, right = element.pixel_box(width, height)
    patch, behind = pixels[top:bottom, left:right], ground[top:bottom, left:right]
    # How far each pixel lies on the way from the background's colour to the word's.
    way = np.array(rgb(element.colour), dtype=np.float32) - behind
    ink = np.clip(((patch - behind) * way).sum(-1) / (way * way).sum(-1), 0, 1)

    def likeness(word: str) -> float:
        mask = word_mask(word, element.font, right - left, bottom - top)
        a, b = ink - ink.mean(), mask - mask.mean()
        return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-6))

    word = element.word or ""
    own = likeness(word)
    others = (word[:i] + c + word[i + 1 :] for i in range(len(word)) for c in LETTERS if c != word[i])
    return own >= LIKENESS and all(likeness(other) < own for other in others)


def score(draw: Draw, samples: Sequence[Sample], caption_line: Callable[[dict], str], batch: int = 20) -> Score:
    """Draw every sample's caption, `batch` at a time, and judge the pictures.

    Args:
        draw: Takes captions, sizes `(width, height)` and seeds; gives pictures.
        samples: What to draw, usually `held_out(n)`.
        caption_line: Gives a caption's canonical line.
        batch: Pictures in one call of `draw`.
    """
    judged: list[Judgement] = []
    for begin in range(0, len(samples), batch):
        chunk = samples[begin : begin + batch]
        pictures = draw(
            [caption_line(s.caption) for s in chunk],
            [(s.width, s.height) for s in chunk],
            list(range(begin, begin + len(chunk))),
        )
        judged += [judge(p, s) for p, s in zip(pictures, chunk, strict=True)]
    elements = [e for s in samples for e in s.elements]
    overlaps = [o for j in judged for o in j.overlaps]
    drawn = list(zip(elements, overlaps, strict=True))
    shapes = [o for e, o in drawn if e.shape]
    unseen = [o for e, o in drawn if e.shape and held_out_pair(e.colour, e.shape)]
    words = [o for e, o in drawn if e.word]
    read = [(len(e.word), r) for e, r in zip(elements, (r for j in judged for r in j.read), strict=True) if e.word]
    return Score(
        pictures=len(judged),
        background=_interval([j.background for j in judged]),
        shapes_in_place=_interval([o > OVERLAP for o in shapes]),
        elements_in_place=_interval([o > OVERLAP for o in overlaps]),
        shapes_overlap=float(np.mean(shapes)),
        elements_overlap=float(np.mean(overlaps)),
        unseen_pairs_in_place=_interval([o > OVERLAP for o in unseen]),
        words_in_place=_interval([o > OVERLAP for o in words]),
        words_read=_interval([r for _, r in read]),
        short_words_read=_interval([r for n, r in read if n <= SHORT]),
    )


def held_out(count: int) -> list[Sample]:
    """The first `count` held-out pictures."""
    return [sample(i, split="held_out") for i in range(count)]


def _interval(outcomes: Sequence[bool]) -> tuple[float, float, float]:
    """The rate and Wilson's 95% interval of it."""
    if not outcomes:
        return math.nan, math.nan, math.nan
    n, z = len(outcomes), 1.96
    rate = sum(outcomes) / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    spread = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return rate, max(0.0, centre - spread), min(1.0, centre + spread)

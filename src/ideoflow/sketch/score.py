"""How well a model draws the sketch world's held-out captions: backgrounds, elements in their place and colour.

A pixel belongs to the element, or to the background, whose colour there is nearest to its own, if that is near at all.
An element's region is compared with the one where it should be seen; most of the background's pixels must belong to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .world import Sample, held_out_pair, rgb, sample

NEAR = 64.0  # largest distance in 8-bit RGB at which colours count as the same; the closest two named are 93 apart
BACKGROUND_SHARE = 0.75  # of the background's pixels that must belong to it
OVERLAP = 0.5  # intersection over union from which an element counts as drawn in its place

Draw = Callable[[list[str], list[tuple[int, int]], list[int]], list[Image.Image]]


@dataclass(frozen=True)
class Judgement:
    """One picture against its truth."""

    background: bool
    overlaps: tuple[float, ...]  # intersection over union of each element, in order


@dataclass(frozen=True)
class Score:
    """Rates over many pictures, each `(rate, low, high)` with its 95% interval."""

    pictures: int
    background: tuple[float, float, float]
    shapes_in_place: tuple[float, float, float]
    shapes_overlap: float
    unseen_pairs_in_place: tuple[float, float, float]  # of shapes in a colour that training never showed them in
    words_in_place: tuple[float, float, float]

    def lines(self) -> Iterator[str]:
        """The score for a person to read."""
        yield f"{'pictures':34} {self.pictures}"
        for name, (rate, low, high) in (
            ("background right", self.background),
            ("shape in place and colour", self.shapes_in_place),
            ("  of pairs never seen in training", self.unseen_pairs_in_place),
            ("word in place and colour", self.words_in_place),
        ):
            yield f"{name:34} {rate:6.1%}  (95% interval {low:.1%} to {high:.1%})"
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
    return Judgement(background, tuple(overlaps))


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
    return Score(
        pictures=len(judged),
        background=_interval([j.background for j in judged]),
        shapes_in_place=_interval([o > OVERLAP for o in shapes]),
        shapes_overlap=float(np.mean(shapes)),
        unseen_pairs_in_place=_interval([o > OVERLAP for o in unseen]),
        words_in_place=_interval([o > OVERLAP for o in words]),
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

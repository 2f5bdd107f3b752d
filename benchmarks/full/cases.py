"""What is drawn: pictures, captions and batches, those that the bars ask for first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """The side of the picture in pixels, the caption's tokens, pictures at once."""

    pixels: int
    caption_tokens: int
    batch: int


BAR_PIXELS, TINY_PIXELS = 1024, 64
CAPTIONS = (500, 200, 1500)
BAR_CASES = tuple(Case(BAR_PIXELS, text, 1) for text in CAPTIONS)
OTHER_CASES = tuple(
    case
    for pixels in (512, 1024, 2048)
    for batch in (1, 4)
    for text in CAPTIONS
    if (case := Case(pixels, text, batch)) not in BAR_CASES
)
TINY_BAR_CASES, TINY_OTHER_CASES = (Case(TINY_PIXELS, 5, 1),), (Case(96, 7, 2),)

"""What a caption writer gives: the caption, who wrote it, and what is to be said of it; or an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..breach import CaptionError
from ..caption import Caption


@dataclass(frozen=True)
class Written:
    """A caption that was written for somebody.

    Attributes:
        caption: keeps the schema.
        by: who wrote it, in words: the bundled model's grammar, or a language model's name.
        notes: what was mended in it, chosen, or not understood.
    """

    caption: Caption
    by: str
    notes: tuple[str, ...] = ()


# Makes a caption of words, for a picture of (width, height) pixels or of any size.
Writer = Callable[[str, tuple[int, int] | None], Written]


class WritingError(CaptionError):
    """A caption that could not be written: what was asked, what came back, and what to do.

    Attributes:
        text: what the writer gave in the end; empty where nothing came.
    """

    def __init__(self, message: str, text: str = "") -> None:
        super().__init__(message)
        self.text = text

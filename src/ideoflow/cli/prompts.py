"""What a person may give as a prompt: files, JSON, plain text, standard input, or a picture to make again."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .pictures import from_metadata, slug

FILE_TYPES = (".json", ".txt", ".png")


@dataclass(frozen=True)
class Prompt:
    """A prompt as read.

    Attributes:
        text: The characters that the model reads.
        name: Stem for file names.
        breaches: What breaks the caption schema, in words.
        recipe: The settings in a PNG, if it is one.
    """

    text: str
    name: str
    breaches: tuple[str, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)


def read_prompt(value: str, wrap: bool) -> Prompt:
    """Read one prompt of the command line.

    Args:
        value: A path ending in .json, .txt or .png, `-` for standard input, a JSON caption, or plain text.
        wrap: Whether plain text is put into a minimal JSON caption.

    Raises:
        ValueError: if it is empty, no valid JSON, or a file of a kind that cannot be read.
        OSError: if a file cannot be read.
    """
    if value == "-":
        return _from_text(sys.stdin.read(), "standard input", "picture", wrap)
    if not value.lstrip().startswith("{") and value.lower().endswith(FILE_TYPES):
        try:
            path = Path(value).expanduser()
        except RuntimeError:
            raise ValueError(f"{value}: there is no such user's home folder.") from None
        if path.suffix.lower() == ".png":
            recipe = from_metadata(path)
            return Prompt(recipe["caption"], path.stem, recipe=recipe)
        try:
            text = path.read_text(encoding="utf-8-sig")  # with or without the mark that Windows editors put first
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8 text.") from None
        return _from_text(text, str(path), path.stem, wrap)
    return _from_text(value, "the prompt", None, wrap)


def _from_text(text: str, source: str, name: str | None, wrap: bool) -> Prompt:
    """A prompt from the text of `source`; `name` is the stem for file names, taken from the text when None."""
    from ..captions import Caption

    text = text.strip()
    if not text:
        raise ValueError(f"{source} is empty: give a caption.")
    if text.startswith("{"):
        caption = Caption.parse(text)
        summary = caption.high_level_description
        breaches = tuple(
            f"{breach} (`ideoflow caption fix` does it)" if breach.certain else str(breach)
            for breach in caption.check()
        )
        return Prompt(caption.line(), name or slug(summary if isinstance(summary, str) else ""), breaches)
    if wrap:
        return Prompt(Caption.from_text(text).line(), name or slug(text))
    return Prompt(text, name or slug(text), ("it is plain text, but the models were trained on JSON captions",))

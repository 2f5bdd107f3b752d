"""Captions in the JSON schema that the model was trained on: build, parse, check, repair and write them."""

from .caption import (
    Caption,
    CaptionError,
    CaptionWarning,
    Composition,
    ObjectElement,
    Style,
    TextElement,
    prompt_line,
)
from .schema import Breach

__all__ = [
    "Breach",
    "Caption",
    "CaptionError",
    "CaptionWarning",
    "Composition",
    "ObjectElement",
    "Style",
    "TextElement",
    "prompt_line",
]

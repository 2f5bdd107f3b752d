"""Captions in the JSON schema that the model was trained on: build, parse, check, repair and write them."""

from .breach import Breach, CaptionError, CaptionWarning
from .caption import Caption
from .parts import Composition, ObjectElement, Style, TextElement
from .prompt import prompt_line

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

"""Captions whose double quotation marks a program took away, read where it is certain what they were.

LibreChat, for one, takes every `"` and every line end out of a prompt before it sends it on. Keys, boxes, colours and
brackets are known by the schema without their marks, and a text reaches to the next key or bracket. Whatever could be
read in another way is refused: a text with brackets or a backslash in it (what is left of an escaped mark, or of a line
end), a key that stands twice, one that the schema does not know. Then a caption is misread only if one of its texts
holds a whole part of a caption in this form, such as `,color_palette:[#FF0000]`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

from .breach import CaptionError
from .caption import Caption
from .reading import Found
from .schema import COMPOSITION_KEYS, STYLE_KEYS, TEXT_KEYS, TOP_KEYS
from .tolerant import MARKS

_BARE = re.compile(rf"[{{,]\s*(?:{'|'.join(TOP_KEYS)})\s*:")
_FENCE = re.compile(r"(```|~~~)[ \t]*(?:json)?", re.IGNORECASE)
_COMPACT = "compositional_deconstruction:{"
_NUMBER = r"-?(?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,9})?"
_BOX = re.compile(rf"\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}}\s*\]")
_PALETTE = re.compile(r"\[\s*(?:#[0-9A-Fa-f]{6}(?:\s*,\s*#[0-9A-Fa-f]{6})*)?\s*\]")
_WORD = re.compile(r"[A-Za-z]+")
_NULL = re.compile(r"null(?=\s*[,}])")
_STRUCTURE = re.compile(r"[{}\[\]\\]")


def lost_marks(text: str) -> bool:
    """Whether a text holds the beginning of a caption with bare keys, and no double quotation mark at all."""
    return '"' not in text and _BARE.search(text) is not None


def restore(text: str) -> Caption:
    """The caption that a text without its double quotation marks was, which keeps the schema once it is repaired.

    Args:
        text: the caption alone, or in a Markdown fence; compact or with spaces between its parts.

    Raises:
        CaptionError: with the reason, if it cannot be read, or not in one way only.
    """
    text = text.strip()
    if fence := _FENCE.match(text):
        text = text[fence.end() :].removesuffix(fence[1]).strip()
    data = _Unquoted(text).read()
    style = data.get("style_description")
    if isinstance(style, dict) and {"photo", "art_style"} <= style.keys():
        raise CaptionError("`photo` and `art_style` are both there: one may be a part of the other's text")
    caption = Caption.of_found(Found(data))
    if breaches := caption.repair().check():
        raise CaptionError(str(breaches[0]), breaches)
    return caption


class _Unquoted:
    """A reader of one caption in `text`, which must end with it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        # Without spaces between the parts, those at the edges of a text are its own.
        self.space = re.compile("" if _COMPACT in text else r"\s*")
        space = self.space.pattern
        self.unknown = re.compile(rf",{space}\w+{space}:")
        self.readers: dict[str, Callable[[], Any]] = {  # of what is no text
            "style_description": lambda: self._object(STYLE_KEYS),
            "compositional_deconstruction": lambda: self._object(COMPOSITION_KEYS),
            "elements": self._elements,
            "type": lambda: self._match(_WORD, "a type")[0],
            "bbox": lambda: json.loads(self._match(_BOX, "a box of four numbers")[0]),
            "color_palette": self._palette,
        }

    def read(self) -> dict[str, Any]:
        data = self._object(TOP_KEYS)
        if self.at < len(self.text):
            self._refuse("something follows its last bracket")
        return data

    def _refuse(self, what: str) -> NoReturn:
        raise CaptionError(f"{what} at character {self.at + 1}")

    def _match(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        found = pattern.match(self.text, self.at)
        if found is None:
            self._refuse(f"expected {what}")
        self.at = found.end()
        return found

    def _skip(self) -> None:
        self._match(self.space, "space")

    def _take(self, sign: str) -> bool:
        """Whether the sign comes next; if so, it is read."""
        self._skip()
        found = self.text.startswith(sign, self.at)
        self.at += len(sign) if found else 0
        return found

    def _object(self, keys: tuple[str, ...]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        key = re.compile(rf"({'|'.join(keys)}){self.space.pattern}:")
        if not self._take("{"):
            self._refuse("expected a brace")
        while not data or self._take(","):
            self._skip()
            name = self._match(key, f"one of {', '.join(keys)}")[1]
            if name in data:
                self._refuse(f"`{name}` stands twice before")
            self._skip()
            data[name] = self._value(name, keys)
        if not self._take("}"):
            self._refuse("expected a comma or a brace")
        return data

    def _value(self, name: str, keys: tuple[str, ...]) -> Any:
        if name not in self.readers:
            return self._text(keys)
        if null := _NULL.match(self.text, self.at):
            self.at = null.end()
            return None
        return self.readers[name]()

    def _elements(self) -> list[dict[str, Any]]:
        elements: list[dict[str, Any]] = []
        if not self._take("["):
            self._refuse("expected a list of elements")
        if self._take("]"):
            return elements
        while not elements or self._take(","):
            elements.append(self._object(TEXT_KEYS))
        if not self._take("]"):
            self._refuse("expected a comma or a bracket")
        return elements

    def _palette(self) -> list[str]:
        inner = self._match(_PALETTE, "a list of colours")[0][1:-1]
        return [colour.strip() for colour in inner.split(",") if colour.strip()]

    def _text(self, keys: tuple[str, ...]) -> str:
        space = self.space.pattern
        end = re.compile(rf",{space}(?:{'|'.join(keys)}){space}:|\}}").search(self.text, self.at)
        if end is None:
            self._refuse("a text without an end")
        text = self.text[self.at : end.start()]
        text = text.rstrip() if space else text
        if sign := _STRUCTURE.search(text):
            self._refuse(f"a text with {sign[0]!r} in it")
        if name := self.unknown.search(text):
            self._refuse(f"{name[0]!r}, which may be a key or belong to a text,")
        if text in ("null", "None"):
            self._refuse("`null`, which may be a word or none,")
        if text[:1] and text[0] in MARKS:
            self._refuse(f"{text[0]!r}, which may belong to a text or begin it,")
        self.at = end.start()
        return text

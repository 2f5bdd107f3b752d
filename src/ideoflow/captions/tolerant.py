"""JSON as people and language models write it: comments, trailing commas, other quotation marks, bare keys.

Only what can be read in one way is read. A text whose quotation marks do not say where it ends is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

MAX_DEPTH = 64  # levels of nesting; the schema has six, and Python's own limit is far off

# Marks that open and close a text where JSON has the straight double one: typographic and full-width ones.
DOUBLE = "\u201c\u201d\u201e\u201f\u00ab\u00bb\uff02"
SINGLE = "\u2018\u2019\u201a\u201b"
MARKS = DOUBLE + SINGLE + "\"'"
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?(?![0-9A-Za-z_.])")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SPACE = re.compile(r"[\s\u200b\u2060\ufeff]*")
_COMMENT = re.compile(r"//[^\n]*|#[^\n]*|/\*.*?\*/", re.DOTALL)
_COLOUR = re.compile(r"#(?:[0-9A-Fa-f]{3,4}|[0-9A-Fa-f]{6}|[0-9A-Fa-f]{8})(?!\w)")
_STRINGS = json.JSONDecoder(strict=False)
_LITERALS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}

Pairs = Callable[[list[tuple[str, Any]]], dict[str, Any]]


class Cut(json.JSONDecodeError):
    """The text ends before its last bracket."""


class Tolerant:
    """A reader of one object in a text.

    Attributes:
        slips: What is not JSON in it, in words, in the order in which it was met.
    """

    def __init__(self, text: str, pairs: Pairs = dict) -> None:
        self.text = text
        self.pairs = pairs
        self.at = 0
        self.depth = 0
        self.slips: list[str] = []

    def read(self, start: int) -> tuple[dict[str, Any], int]:
        """The object whose brace stands at `start`, and where it ends.

        Raises:
            json.JSONDecodeError: with the place, where it cannot be read; `Cut` where the text ends too early.
            RecursionError: if it is nested more than 64 levels deep.
        """
        self.at, self.depth = start, 0
        return self._object(), self.at

    def _refuse(self, message: str, at: int | None = None) -> NoReturn:
        at = self.at if at is None else at
        kind = json.JSONDecodeError if at < len(self.text) else Cut
        raise kind(message, self.text, at)

    def _slip(self, what: str) -> None:
        if what not in self.slips:
            self.slips.append(what)

    def _next(self) -> str:
        """The next character that counts; empty at the end."""
        while True:
            space = _SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.text[self.at : self.at + 2] not in ("//", "/*") and self.text[self.at : self.at + 1] != "#":
                return self.text[self.at : self.at + 1]
            if _COLOUR.match(self.text, self.at):  # read as a comment, it would be lost
                self._refuse("a colour without quotation marks")
            comment = _COMMENT.match(self.text, self.at)
            if comment is None:
                self._refuse("a comment without an end", len(self.text))
            self.at = comment.end()
            self._slip("comments")

    def _object(self) -> dict[str, Any]:
        pairs: list[tuple[str, Any]] = []

        def member() -> None:
            key = self._key()
            if self._next() != ":":
                self._refuse(f"expected a colon after the key {key!r}")
            self.at += 1
            pairs.append((key, self._value()))

        self._members("}", member)
        return self.pairs(pairs)

    def _array(self) -> list[Any]:
        values: list[Any] = []
        self._members("]", lambda: values.append(self._value()))
        return values

    def _members(self, closing: str, member: Callable[[], None]) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise RecursionError
        self.at += 1
        first = True
        while self._next() != closing:
            if not first:
                if self._next() != ",":
                    self._refuse(f"expected a comma or '{closing}'")
                self.at += 1
                if self._next() == closing:
                    self._slip("trailing commas")
                    break
            member()
            first = False
        self.at += 1
        self.depth -= 1

    def _key(self) -> str:
        if self._next() and self._next() in MARKS:
            return self._string()
        word = _WORD.match(self.text, self.at)
        if word is None:
            self._refuse("expected a key in quotation marks")
        self.at = word.end()
        self._slip("keys without quotation marks")
        return word[0]

    def _value(self) -> Any:
        first = self._next()
        if first == "{":
            return self._object()
        if first == "[":
            return self._array()
        if first and first in MARKS:
            return self._string()
        if number := _NUMBER.match(self.text, self.at):
            self.at = number.end()
            try:
                return float(number[0]) if number[1] or number[2] else int(number[0])
            except ValueError:
                self._refuse(f"a number of {len(number[0])} digits is too long", number.start())
        word = _WORD.match(self.text, self.at)
        if word is None or word[0] not in _LITERALS:
            self._refuse("expected a value")
        self.at = word.end()
        if word[0][0].isupper():
            self._slip("Python's True, False or None")
        return _LITERALS[word[0]]

    def _string(self) -> str:
        start, mark = self.at, self.text[self.at]
        if mark == '"':
            try:
                value, self.at = _STRINGS.raw_decode(self.text, start)
            except json.JSONDecodeError as error:
                self._refuse(
                    error.msg.removesuffix(" at"), len(self.text) if "Unterminated" in error.msg else error.pos
                )
            if re.search(r"[\x00-\x1f]", self.text[start : self.at]):
                self._slip("line ends inside texts")
            return value
        closing = DOUBLE + '"' if mark in DOUBLE else SINGLE + "'" if mark in SINGLE else mark
        end = re.compile(rf"(?:[^\\{re.escape(closing)}]|\\.)*", re.DOTALL).match(self.text, start + 1)
        assert end is not None  # it matches nothing too
        raw, self.at = end[0], end.end() + 1
        if end.end() >= len(self.text):
            self._refuse("a text without an end", len(self.text))
        if self._next() and self._next() not in ",:}]":
            self._refuse("a quotation mark inside a text, which cannot be told from the one that ends it", end.end())
        self._slip("single quotation marks" if mark == "'" else "typographic quotation marks")
        inner = re.sub(r"\\(.)|\"", lambda found: _escape(found[0], found[1]), raw, flags=re.DOTALL)
        try:
            return json.loads(f'"{inner}"', strict=False)
        except json.JSONDecodeError as error:
            self._refuse(error.msg.removesuffix(" at"), start)


def _escape(found: str, escaped: str | None) -> str:
    """One escape of a text in other quotation marks, as JSON writes it."""
    if escaped is None:
        return '\\"'
    return escaped if escaped in DOUBLE + SINGLE + "'" else found

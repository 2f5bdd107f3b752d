"""The captions that a local model may write, as a grammar for llguidance, made from the JSON schema.

What JSON schemas cannot say, it does: the edges of a box are in order, keys stand in theirs, there are no spaces, and
no escape gives half a character. A text that the grammar takes keeps the schema and is a canonical line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from ..boxes import RANGE
from .json_schema import LENGTH, LENGTHS, caption_schema

CHARACTER = r'[^"\\\x00-\x1F\x7F]|\\["\\n]'


@cache
def caption_grammar(layout: bool = True, lengths: tuple[tuple[str, int], ...] = ()) -> str:
    """The grammar in llguidance's form of Lark.

    Args:
        layout: As of `caption_schema`.
        lengths: Characters of texts by their keys, in place of `LENGTHS`; "" is all other keys.
    """
    return _Rules({**LENGTHS, "": LENGTH, **dict(lengths)}).of(caption_schema(layout))


class _Rules:
    def __init__(self, lengths: Mapping[str, int]) -> None:
        self.lengths = lengths
        self.lines: list[str] = []
        self.names: dict[str, str] = {}

    def of(self, schema: dict[str, Any]) -> str:
        start = self._node(schema, "")
        return "\n".join([f"start: {start}", *self.lines]) + "\n"

    def _named(self, body: str, terminal: bool = False) -> str:
        """The name of a rule, or of a terminal, with this body."""
        if body not in self.names:
            self.names[body] = f"{'T' if terminal else 'r'}{len(self.names)}"
            self.lines.append(f"{self.names[body]}: {body}")
        return self.names[body]

    def _node(self, node: dict[str, Any], key: str) -> str:
        if "anyOf" in node:
            return self._named(" | ".join(self._node(one, key) for one in node["anyOf"]))
        if "const" in node:
            return _literal(json.dumps(node["const"], ensure_ascii=False))
        if node["type"] == "object":
            return self._object(node)
        if key == "bbox":
            ordered = self._named(f"/{_ordered(0)}/ & /{_ordered(1)}/", terminal=True)
            return self._named(f'"[" {ordered} "]"')
        if node["type"] == "array":
            item = self._node(node["items"], key)
            least, most = node.get("minItems", 0), node.get("maxItems", "")
            more = f'("," {item}){{{max(least - 1, 0)},{most - 1 if most else ""}}}'
            return self._named(f'"[" {item} {more} "]"' if least else f'"[" ({item} {more})? "]"')
        if "pattern" in node:
            pattern = node["pattern"].removeprefix("^").removesuffix("$")
            return self._named(f'/"{pattern}"/', terminal=True)
        most = self.lengths.get(key, self.lengths[""])
        return self._named(f'/"({CHARACTER}){{1,{most}}}"/', terminal=True)

    def _object(self, node: dict[str, Any]) -> str:
        parts = []
        for number, (key, value) in enumerate(node["properties"].items()):
            comma = "," if number else ""
            member = f"{_literal(f'{comma}{json.dumps(key)}:')} {self._node(value, key)}"
            parts.append(member if key in node["required"] else f"({member})?")
        return self._named(" ".join(['"{"', *parts, '"}"']))


def _literal(text: str) -> str:
    return json.dumps(text)


@cache
def _ordered(axis: int) -> str:
    """Four numbers of a box of which those of one axis, 0 for y, are in order: the first is the smaller one."""
    number = _between(0, RANGE)
    others = f"{number}," if axis == 0 else ""
    return "|".join(
        f"{'' if axis == 0 else f'{number},'}{edge},{others if axis == 0 else f'{number},'}{_between(edge + 1, RANGE)}"
        + (f",{number}" if axis == 0 else "")
        for edge in range(RANGE)
    )


@cache
def _between(least: int, most: int) -> str:
    """A regular expression of the whole numbers from one to another, both below 10000, without leading zeros."""
    parts = []
    for digits in range(1, len(str(most)) + 1):
        low, high = max(least, 10 ** (digits - 1) if digits > 1 else 0), min(most, 10**digits - 1)
        if low <= high:
            parts += _of_length(str(low), str(high))
    return f"({'|'.join(parts)})"


def _of_length(low: str, high: str) -> list[str]:
    """Expressions of the numbers from `low` to `high`, which have as many digits."""
    if not low:
        return [""]
    if low == "0" * len(low) and high == "9" * len(high):
        return ["[0-9]" * len(low)]
    first, last = int(low[0]), int(high[0])
    if first == last:
        return [f"{first}{rest}" for rest in _of_length(low[1:], high[1:])]
    nines, zeros = "9" * (len(low) - 1), "0" * (len(low) - 1)
    parts = []
    if low[1:] != zeros:
        parts += [f"{first}{rest}" for rest in _of_length(low[1:], nines)]
        first += 1
    tail = []
    if high[1:] != nines:
        tail = [f"{last}{rest}" for rest in _of_length(zeros, high[1:])]
        last -= 1
    if first <= last:
        whole = f"[{first}-{last}]" if first < last else str(first)
        parts.append(whole + "[0-9]" * len(zeros))
    return parts + tail

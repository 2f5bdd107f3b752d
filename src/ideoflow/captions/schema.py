"""The caption schema: its keys in their order, JSON data in that order, and the line that is written of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_STYLE_COLOURS = 16
MAX_ELEMENT_COLOURS = 5

TOP_KEYS = ("high_level_description", "style_description", "compositional_deconstruction")
# A style has `photo` or `art_style`; left out of this order, either gives the other's.
STYLE_KEYS = ("aesthetics", "lighting", "photo", "medium", "art_style", "color_palette")
COMPOSITION_KEYS = ("background", "elements")
OBJECT_KEYS = ("type", "bbox", "desc", "color_palette")
TEXT_KEYS = ("type", "bbox", "text", "desc", "color_palette")


class Repeated(dict[str, Any]):
    """A JSON object some of whose keys stood in the text more than once; each holds its last value.

    Attributes:
        earlier: The values before the last one, of each key that stood more than once.
    """

    def __init__(self, last: Mapping[str, Any], earlier: Mapping[str, list[Any]]) -> None:
        super().__init__(last)
        self.earlier = dict(earlier)

    @classmethod
    def of_pairs(cls, pairs: Sequence[tuple[str, Any]]) -> Repeated:
        values: dict[str, list[Any]] = {}
        for key, value in pairs:
            values.setdefault(key, []).append(value)
        return cls(dict(pairs), {key: held[:-1] for key, held in values.items() if len(held) > 1})


def is_placed(caption: Any) -> bool:
    """Whether a caption, its data or its line, has a box for every element that it has; plain text has none."""
    if isinstance(caption, str):
        try:
            caption = json.loads(caption)
        except ValueError:
            return False
    return isinstance(caption, dict) and all(isinstance(one, dict) and "bbox" in one for one in elements(caption))


def element_keys(element: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys of an element in order, by its type, or by whether it has `text` where the type is unknown."""
    kind = element.get("type")
    is_text = kind == "text" or (kind != "obj" and "text" in element)
    return TEXT_KEYS if is_text else OBJECT_KEYS


def in_order(data: Any) -> Any:
    """A caption's data with its keys in the canonical order, unknown ones last, and every value as it is."""
    if not isinstance(data, dict):
        return data
    ordered = _sorted(data, TOP_KEYS)
    if isinstance(style := ordered.get("style_description"), dict):
        ordered["style_description"] = _sorted(style, STYLE_KEYS)
    if isinstance(composition := ordered.get("compositional_deconstruction"), dict):
        composition = ordered["compositional_deconstruction"] = _sorted(composition, COMPOSITION_KEYS)
        if isinstance(elements := composition.get("elements"), list):
            composition["elements"] = [
                _sorted(element, element_keys(element)) if isinstance(element, dict) else element
                for element in elements
            ]
    return ordered


def _sorted(data: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    ordered = {k: data[k] for k in keys if k in data} | {k: v for k, v in data.items() if k not in keys}
    return Repeated(ordered, data.earlier) if isinstance(data, Repeated) else ordered


def write(data: Any) -> str:
    """JSON data on one line without spaces, characters unescaped, repeated keys as often as they stood.

    Half a surrogate pair, which UTF-8 cannot hold, is escaped: the line can always be encoded.
    """
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", _written(data))


def _written(data: Any) -> str:
    if isinstance(data, dict):
        earlier = data.earlier if isinstance(data, Repeated) else {}
        members = ((key, value) for key, last in data.items() for value in (*earlier.get(key, ()), last))
        return "{" + ",".join(f"{_written(key)}:{_written(value)}" for key, value in members) + "}"
    if isinstance(data, list):
        return "[" + ",".join(map(_written, data)) + "]"
    return json.dumps(data, ensure_ascii=False)


def elements(data: Any) -> list[Any]:
    """The elements of a caption or of a composition as they stand; those of an element are itself."""
    if not isinstance(data, dict):
        return []
    composition = data.get("compositional_deconstruction", data)
    found = composition.get("elements") if isinstance(composition, dict) else None
    return found if isinstance(found, list) else [data]


def encodes(text: str) -> bool:
    """Whether UTF-8 can hold the text: whether it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

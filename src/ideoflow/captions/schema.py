"""The caption schema as one walk over plain JSON data, which finds every breach and makes the certain repairs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

MAX_STYLE_COLOURS = 16
MAX_ELEMENT_COLOURS = 5
BOX_RANGE = 1000  # boxes are in thousandths of the picture's sides
COLOUR = re.compile(r"#[0-9A-F]{6}")

TOP_KEYS = ("high_level_description", "style_description", "compositional_deconstruction")
# A style has `photo` or `art_style`; left out of this order, either gives the other's.
STYLE_KEYS = ("aesthetics", "lighting", "photo", "medium", "art_style", "color_palette")
COMPOSITION_KEYS = ("background", "elements")
OBJECT_KEYS = ("type", "bbox", "desc", "color_palette")
TEXT_KEYS = ("type", "bbox", "text", "desc", "color_palette")


@dataclass(frozen=True)
class Breach:
    """One place where a caption leaves the schema.

    Attributes:
        path: Where, like `compositional_deconstruction.elements[2].bbox`; empty for the caption itself.
        message: What stands there, and what is allowed.
        fix: What to do about it.
        certain: Whether `repair` does it: nothing but the one fix can have been meant.
    """

    path: str
    message: str
    fix: str
    certain: bool = False

    def __str__(self) -> str:
        return f"{self.path or 'the caption'}: {self.message}; {self.fix}"


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


class _Drop:
    """What a visitor returns for a value that is best left out."""


_DROP: Final = _Drop()
Visitor = Callable[[Any, str], Any]


def element_keys(element: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys of an element in order, by its type, or by whether it has `text` where the type is unknown."""
    is_text = element.get("type") == "text" or (element.get("type") != "obj" and "text" in element)
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


class Walk:
    """One walk over a caption's data: `breaches` in the schema's order, `repaired` with the certain ones mended."""

    def __init__(self, data: Any) -> None:
        self.breaches: list[Breach] = []
        self.repaired = self._caption(data)

    def _report(self, path: str, message: str, fix: str, certain: bool = False) -> None:
        self.breaches.append(Breach(path, message, fix, certain))

    def _caption(self, data: Any) -> Any:
        visitors: dict[str, Visitor] = {
            "high_level_description": self._string,
            "style_description": self._style,
            "compositional_deconstruction": self._composition,
        }
        return self._object(data, "", TOP_KEYS, ("compositional_deconstruction",), visitors)

    def _style(self, data: Any, path: str) -> Any:
        visitors = {key: self._string for key in STYLE_KEYS} | {"color_palette": self._palette(MAX_STYLE_COLOURS)}
        required = ("aesthetics", "lighting", "medium")
        if isinstance(data, dict):
            kinds = [kind for kind in ("photo", "art_style") if data.get(kind) is not None]
            if len(kinds) == 2:
                self._report(
                    path, "has both `photo` and `art_style`, of which only one is allowed", "remove one of them"
                )
            if not kinds:
                self._report(path, "has neither `photo` nor `art_style`", "add one of them")
        return self._object(data, path, STYLE_KEYS, required, visitors)

    def _composition(self, data: Any, path: str) -> Any:
        visitors: dict[str, Visitor] = {"background": self._string, "elements": self._elements}
        return self._object(data, path, COMPOSITION_KEYS, COMPOSITION_KEYS, visitors)

    def _elements(self, data: Any, path: str) -> Any:
        if not isinstance(data, list):
            self._report(path, f"is {_kind(data)}, where a list is expected", "put the elements in a list")
            return data
        return [self._element(element, f"{path}[{i}]") for i, element in enumerate(data)]

    def _element(self, data: Any, path: str) -> Any:
        keys = element_keys(data) if isinstance(data, dict) else OBJECT_KEYS
        visitors: dict[str, Visitor] = {key: self._string for key in ("text", "desc") if key in keys}
        visitors |= {"type": self._type, "bbox": self._box, "color_palette": self._palette(MAX_ELEMENT_COLOURS)}
        required = tuple(key for key in keys if key not in ("bbox", "color_palette"))
        return self._object(data, path, keys, required, visitors)

    def _object(
        self, data: Any, path: str, keys: tuple[str, ...], required: tuple[str, ...], visitors: Mapping[str, Visitor]
    ) -> Any:
        """Visit the keys of an object in canonical order; unknown ones are reported, kept and go last."""
        if not isinstance(data, dict):
            self._report(path, f"is {_kind(data)}, where an object is expected", f"give an object with {_list(keys)}")
            return data
        undecided = self._repeated_keys(data, path) if isinstance(data, Repeated) else {}
        known = [key for key in data if key in keys]
        if known != sorted(known, key=keys.index):
            order = _list([key for key in keys if key in data])
            self._report(path, f"has its keys in the order {_list(known)}", f"order them {order}", certain=True)
        repaired: dict[str, Any] = {}
        for key in keys:
            if key in undecided:
                repaired[key] = data[key]
            elif key not in data:
                if key in required:
                    self._report(_join(path, key), "is missing", f"add `{key}`")
            elif data[key] is None and key not in required:
                self._report(_join(path, key), "is null", "leave it out", certain=True)
            elif (value := visitors[key](data[key], _join(path, key))) is not _DROP:
                repaired[key] = value
        for key in data:
            if key not in keys:
                self._report(_join(path, key), f"is no key of the schema here, which knows {_list(keys)}", "remove it")
                repaired[key] = data[key]
        return Repeated(repaired, undecided) if undecided else repaired

    def _repeated_keys(self, data: Repeated, path: str) -> dict[str, list[Any]]:
        """Report the keys that stand more than once; the earlier values of those where it matters which one is kept."""
        undecided = {}
        for key, earlier in data.earlier.items():
            if {_written(value) for value in earlier} == {_written(data[key])}:
                message, fix = "stands more than once, with the same value", "keep one of them"
            else:
                message, fix = "stands more than once, with different values", "keep the one you mean"
                undecided[key] = earlier
            self._report(_join(path, key), message, fix, certain=key not in undecided)
        return undecided

    def _type(self, value: Any, path: str) -> Any:
        if value not in ("obj", "text"):
            self._report(path, f"is {_show(value)}, where 'obj' or 'text' is expected", "use one of the two")
        return value

    def _string(self, value: Any, path: str) -> Any:
        if not isinstance(value, str):
            self._report(path, f"is {_kind(value)}, where a string is expected", "write it as a string")
        elif not encodes(value):
            self._report(path, "holds half of a surrogate pair, which is no character", "write the whole character")
        return value

    def _palette(self, most: int) -> Visitor:
        def visit(value: Any, path: str) -> Any:
            if not isinstance(value, list):
                self._report(
                    path, f"is {_kind(value)}, where a list of colours is expected", "put the colours in a list"
                )
                return value
            if not value:
                self._report(path, "is empty", "leave it out", certain=True)
                return _DROP
            if len(value) > most:
                self._report(path, f"has {len(value)} colours, more than the {most} allowed", f"keep {most} or fewer")
            return [self._colour(colour, f"{path}[{i}]") for i, colour in enumerate(value)]

        return visit

    def _colour(self, value: Any, path: str) -> Any:
        if isinstance(value, str) and COLOUR.fullmatch(value):
            return value
        meant = _meant_colour(value)
        fix = f"write {meant}" if meant else "write it as upper-case #RRGGBB"
        self._report(path, f"is {_show(value)}, where upper-case #RRGGBB is expected", fix, certain=meant is not None)
        return meant or value

    def _box(self, value: Any, path: str) -> Any:
        expected = f"[y_min, x_min, y_max, x_max] in whole numbers from 0 to {BOX_RANGE}"
        if not isinstance(value, list) or len(value) != 4:
            given = f"has {len(value)} entries" if isinstance(value, list) else f"is {_kind(value)}"
            self._report(path, f"{given}, where {expected} is expected", "give four numbers, y first")
            return value
        # Written as fractions, a box that stays within 0 to 1 is in shares of the picture: 1.0 is all of it.
        scale = all(isinstance(edge, int | float) and 0 <= edge <= 1 for edge in value)
        shares = scale and any(isinstance(edge, float) for edge in value)
        if shares or not all(_is_whole(edge) for edge in value):
            fix = f"multiply by {BOX_RANGE} and round" if scale else "give whole numbers"
            self._report(path, f"is {_show(value)}, where {expected} is expected", fix)
            return value
        edges = [int(edge) for edge in value]
        clamped = [min(max(edge, 0), BOX_RANGE) for edge in edges]
        top, bottom = sorted((clamped[0], clamped[2]))
        left, right = sorted((clamped[1], clamped[3]))
        if top == bottom or left == right:
            self._report(path, f"is {_show(value)}, which encloses nothing of the picture", f"give {expected}")
            return value
        meant = [top, left, bottom, right]
        if meant != edges:
            wrong = "has a corner outside the picture" if clamped != edges else "has its corners swapped"
            self._report(path, f"is {_show(value)}, which {wrong}", f"write {meant}", certain=True)
        elif any(type(edge) is not int for edge in value):
            self._report(path, f"is {_show(value)}, where whole numbers are expected", f"write {meant}", certain=True)
        return meant


def _meant_colour(value: Any) -> str | None:
    """`#RRGGBB` if `value` can mean but one colour: lower case, the short form, or six digits without the mark."""
    if not isinstance(value, str):
        return None
    digits = value.strip().upper()
    if re.fullmatch(r"#[0-9A-F]{3}", digits):
        return "#" + "".join(2 * digit for digit in digits[1:])
    if re.fullmatch(r"#?[0-9A-F]{6}", digits):
        return "#" + digits.removeprefix("#")
    return None


def _is_whole(value: Any) -> bool:
    return (type(value) is int) or (isinstance(value, float) and value.is_integer())


def encodes(text: str) -> bool:
    """Whether UTF-8 can hold the text: whether it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _join(path: str, key: str) -> str:
    name = key if key.isprintable() else repr(key)[1:-1]  # a path is for the eye: no half characters, no line ends
    return f"{path}.{name}" if path else name


def _list(keys: Sequence[str]) -> str:
    return ", ".join(keys)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(value: Any) -> str:
    """What a value is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return f"the number {_show(value)}"
    if isinstance(value, str):
        return f"the string {_show(value)}"
    return "a list" if isinstance(value, list) else "an object"

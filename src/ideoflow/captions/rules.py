"""One walk over a caption's plain JSON data, which finds every breach of the schema and makes the certain repairs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from .boxes import convert, in_doubt, judge
from .breach import Breach
from .colours import COLOUR, meant, several
from .schema import (
    COMPOSITION_KEYS,
    MAX_ELEMENT_COLOURS,
    MAX_STYLE_COLOURS,
    OBJECT_KEYS,
    STYLE_KEYS,
    TOP_KEYS,
    Repeated,
    element_keys,
    elements,
    encodes,
    write,
)

# Keys that say nothing about the picture: the hosted prompt writer and editors add them.
TOOL_KEYS = ("aspect_ratio", "canvas", "layout", "generation", "id")
ELEMENT_TOOL_KEYS = ("id",)
PALETTE_NAMES = ("colour_palette", "palette", "colors", "colours")
# Other names of boxes. Models that are trained to find things write `bbox_2d`, with x first by their habit.
BOX_NAMES = ("bbox_2d", "box", "bounding_box", "boundingbox", "rect")
_X_FIRST = "bbox_2d"
# Other words for a key of the schema, where they do not say for certain that it is meant.
HINTS = {
    **dict.fromkeys((*BOX_NAMES, "position"), ("bbox",)),
    **dict.fromkeys(("content", "label", "name", "caption", "object"), ("desc",)),
    **dict.fromkeys(("description", "prompt"), ("desc", "high_level_description")),
    **dict.fromkeys(("color", "colour"), ("color_palette",)),
    "summary": ("high_level_description",),
    "style": ("style_description", "art_style"),
    "composition": ("compositional_deconstruction",),
    **dict.fromkeys(("objects", "items"), ("elements",)),
}


class _Drop:
    """What a visitor returns for a value that is best left out."""


_DROP: Final = _Drop()
Visitor = Callable[[Any, str], Any]


class Walk:
    """One walk over a caption's data: `breaches` in the schema's order, `repaired` with the certain ones mended.

    Args:
        data: A caption, or a part of one.
        part: Which part: "caption", "style", "composition" or "element".
        drop_unknown: Leave out keys that are not the schema's.
    """

    def __init__(self, data: Any, part: str = "caption", drop_unknown: bool = False) -> None:
        self.breaches: list[Breach] = []
        self.drop_unknown = drop_unknown
        self.sure_of_boxes = not any(
            in_doubt(element.get("bbox")) for element in elements(data) if isinstance(element, dict)
        )
        visit: dict[str, Visitor] = {
            "caption": self._caption,
            "style": self._style,
            "composition": self._composition,
            "element": self._element,
        }
        self.repaired = visit[part](data, "")

    def _report(self, path: str, message: str, fix: str, done: str = "") -> None:
        """Note a breach; `done` says what the repair did, where it is certain."""
        self.breaches.append(Breach(path, message, fix, certain=bool(done), done=done))

    def _caption(self, data: Any, path: str) -> Any:
        visitors: dict[str, Visitor] = {
            "high_level_description": self._string,
            "style_description": self._style,
            "compositional_deconstruction": self._composition,
        }
        whole, inner = "compositional_deconstruction", COMPOSITION_KEYS
        if isinstance(data, dict) and whole not in data and all(key in data for key in inner) and _once(data, *inner):
            self._report(
                whole,
                f"is missing, and {_quoted(inner)} stand outside of it",
                f"put them into `{whole}`",
                done=f"put {_quoted(inner)} into `{whole}`",
            )
            outside = {key: value for key, value in data.items() if key not in inner}
            data = _like(data, {**outside, whole: {key: data[key] for key in inner}})
        tools = TOOL_KEYS if isinstance(data, dict) and whole in data else ()
        return self._object(data, path, TOP_KEYS, (whole,), visitors, tools)

    def _style(self, data: Any, path: str) -> Any:
        visitors = {key: self._string for key in STYLE_KEYS} | {"color_palette": self._palette(MAX_STYLE_COLOURS)}
        required = ("aesthetics", "lighting", "medium")
        data = self._renamed(data, path, _palette_name(data))
        if isinstance(data, dict):
            kinds = [kind for kind in ("photo", "art_style") if data.get(kind) is not None]
            empty = [kind for kind in kinds if isinstance(data[kind], str) and not data[kind].strip()]
            if len(kinds) == 2 and len(empty) == 1 and _once(data, *empty):
                other = next(kind for kind in kinds if kind not in empty)
                self._report(
                    _join(path, empty[0]),
                    f"is empty beside `{other}`",
                    "leave it out",
                    done=f"left out the empty `{empty[0]}`",
                )
                data = _like(data, {key: value for key, value in data.items() if key != empty[0]})
            elif len(kinds) == 2:
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
        data = self._typed(data, path)
        data = self._renamed(data, path, _element_names(data) | _palette_name(data) | _box_name(data))
        data = self._without_empty_text(data, path)
        keys = element_keys(data) if isinstance(data, dict) else OBJECT_KEYS
        visitors: dict[str, Visitor] = {key: self._string for key in ("text", "desc") if key in keys}
        visitors |= {"type": self._type, "bbox": self._box, "color_palette": self._palette(MAX_ELEMENT_COLOURS)}
        required = tuple(key for key in keys if key not in ("bbox", "color_palette"))
        return self._object(data, path, keys, required, visitors, ELEMENT_TOOL_KEYS)

    def _typed(self, data: Any, path: str) -> Any:
        """An element with its type as the schema writes it, where what it has says which."""
        if not isinstance(data, dict) or not _once(data, "type"):
            return data
        given = data.get("type")
        kind = {"object": "obj", "obj": "obj", "text": "text"}.get(
            given.strip().lower() if isinstance(given, str) else ""
        )
        if kind and given != kind:
            message = f"is {_show(given)}, where 'obj' or 'text' is expected"
            self._report(_join(path, "type"), message, f"write '{kind}'", done=f"wrote '{kind}' for {_show(given)}")
            return _like(data, {**data, "type": kind})
        if "type" not in data and isinstance(data.get("text"), str) and data["text"].strip():
            self._report(
                _join(path, "type"),
                "is missing beside `text`, which only elements of type 'text' have",
                "add `type`: 'text'",
                done="added `type`: 'text'",
            )
            return _like(data, {"type": "text", **data})
        return data

    def _renamed(self, data: Any, path: str, names: Mapping[str, str]) -> Any:
        """An object with its keys renamed where they can mean but one key of the schema, which it lacks."""
        for old, new in names.items():
            if old in data and new not in data and _once(data, old):
                self._report(
                    _join(path, old),
                    f"is called `{new}` in the schema",
                    f"rename it to `{new}`",
                    done=f"renamed `{old}` to `{new}`",
                )
                data = _like(data, {new if key == old else key: value for key, value in data.items()})
        return data

    def _without_empty_text(self, data: Any, path: str) -> Any:
        """An element of type 'obj' without an empty `text`, which says that there are no letters."""
        if not isinstance(data, dict) or data.get("type") != "obj" or "text" not in data or not _once(data, "text"):
            return data
        if data["text"] is not None and data["text"] != "":
            return data
        self._report(
            _join(path, "text"),
            "is empty in an element of type 'obj', which has none",
            "leave it out",
            done="left out the empty `text`",
        )
        return _like(data, {key: value for key, value in data.items() if key != "text"})

    def _object(
        self,
        data: Any,
        path: str,
        keys: tuple[str, ...],
        required: tuple[str, ...],
        visitors: Mapping[str, Visitor],
        tools: tuple[str, ...] = (),
    ) -> Any:
        """Visit the keys of an object in canonical order; unknown ones are reported, kept and go last."""
        if not isinstance(data, dict):
            self._report(path, f"is {_kind(data)}, where an object is expected", f"give an object with {_list(keys)}")
            return data
        undecided: dict[str, list[Any]] = {}
        if isinstance(data, Repeated):
            dropped = [key for key in data if key not in keys and (key in tools or self.drop_unknown)]
            undecided = self._repeated_keys(data, path, dropped)
        known = [key for key in data if key in keys]
        if known != sorted(known, key=keys.index):
            order = _list([key for key in keys if key in data])
            message = f"has its keys in the order {_list(known)}"
            self._report(path, message, f"order them {order}", done=f"put the keys in the order {order}")
        repaired: dict[str, Any] = {}
        for key in keys:
            if key in undecided:
                repaired[key] = data[key]
            elif key not in data:
                if key in required:
                    self._report(_join(path, key), "is missing", f"add `{key}`")
            elif data[key] is None and key not in required:
                self._report(_join(path, key), "is null", "leave it out", done=f"left out `{key}`, which was null")
            elif (value := visitors[key](data[key], _join(path, key))) is not _DROP:
                repaired[key] = value
        for key in data:
            if key not in keys and not self._dropped(key, path, keys, tools):
                repaired[key] = data[key]
        return Repeated(repaired, undecided) if undecided else repaired

    def _dropped(self, key: str, path: str, keys: tuple[str, ...], tools: tuple[str, ...]) -> bool:
        """Report a key that is not the schema's; whether it is left out."""
        if key in tools:
            message, fix = "is a program's own key and says nothing about the picture", "leave it out"
        else:
            message, fix = f"is no key of the schema here, which knows {_list(keys)}", "remove it"
            close = difflib.get_close_matches(key.lower(), keys, 1, 0.8)
            if guess := close[0] if close else next((name for name in HINTS.get(key, ()) if name in keys), ""):
                fix = f"rename it to `{guess}` if that is meant, or remove it"
            if key == _X_FIRST and "bbox" in keys:
                fix = "write it as `bbox`, y first; where this has x first, as is the habit, --boxes xyxy converts it"
        dropped = key in tools or self.drop_unknown
        self._report(_join(path, key), message, fix, done=f"left out `{_printable(key)}`" if dropped else "")
        return dropped

    def _repeated_keys(self, data: Repeated, path: str, dropped: Sequence[str]) -> dict[str, list[Any]]:
        """Report the keys that stand more than once; the earlier values of those where it matters which one is kept."""
        undecided = {}
        for key, earlier in data.earlier.items():
            if key in dropped:
                continue
            if {write(value) for value in earlier} == {write(data[key])}:
                done = f"kept one of the equal values of `{_printable(key)}`"
                self._report(_join(path, key), "stands more than once, with the same value", "keep one of them", done)
            else:
                message, fix = "stands more than once, with different values", "keep the one you mean"
                self._report(_join(path, key), message, fix)
                undecided[key] = earlier
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
            if colours := _listed(value):
                found = f"is {_show(value)}" if isinstance(value, str) else "has several colours in one string"
                self._report(
                    path,
                    f"{found}, where a list of colours is expected",
                    f"write {_list(colours)}",
                    done=f"wrote the colours as a list: {_list(colours)}",
                )
                value = colours
            if not isinstance(value, list):
                self._report(
                    path, f"is {_kind(value)}, where a list of colours is expected", "put the colours in a list"
                )
                return value
            if not value:
                self._report(path, "is empty", "leave it out", done="left out the empty list")
                return _DROP
            if len(value) > most:
                self._report(path, f"has {len(value)} colours, more than the {most} allowed", f"keep {most} or fewer")
            return [self._colour(colour, f"{path}[{i}]") for i, colour in enumerate(value)]

        return visit

    def _colour(self, value: Any, path: str) -> Any:
        if isinstance(value, str) and COLOUR.fullmatch(value):
            return value
        message = f"is {_show(value)}, where upper-case #RRGGBB is expected"
        if colour := meant(value):
            self._report(path, message, f"write {colour}", done=f"wrote {colour} for {_show(value)}")
        else:
            self._report(path, message, "write it as upper-case #RRGGBB")
        return colour or value

    def _box(self, value: Any, path: str) -> Any:
        verdict = judge(value, _show(value), _kind(value), self.sure_of_boxes)
        if verdict is None:
            return value
        done = "" if verdict.meant is None else f"wrote {verdict.meant} for {_show(value)}"
        self._report(path, verdict.message, verdict.fix, done)
        return value if verdict.meant is None else verdict.meant


def _element_names(data: Any) -> dict[str, str]:
    """Which keys of an element mean which of the schema's, as far as its type and its other keys tell."""
    if not isinstance(data, dict):
        return {}
    names = {"description": "desc"}
    if "content" not in data or ("description" in data and "desc" in data):
        return names
    described = "desc" in data or "description" in data
    if data.get("type") == "text" and "text" not in data:
        return names | ({"content": "text"} if described else {})  # alone, it may be either
    return names if described else {"content": "desc"}


def _palette_name(data: Any) -> dict[str, str]:
    """The key of an object that holds colours under another name."""
    if not isinstance(data, dict):
        return {}
    found = [name for name in PALETTE_NAMES if _listed(data.get(name)) or _all_colours(data.get(name))]
    return {found[0]: "color_palette"} if len(found) == 1 else {}


def _box_name(data: Any) -> dict[str, str]:
    """The box of an element under another name, where it is the same whichever edge comes first."""
    value = data.get(_X_FIRST) if isinstance(data, dict) else None
    box = convert(value, "yxyx", None)
    return {_X_FIRST: "bbox"} if box is not None and box == convert(value, "xyxy", None) else {}


def _all_colours(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(meant, value))


def _listed(value: Any) -> list[str] | None:
    """The colours of a palette that has several in a string, if all can mean but one."""
    if isinstance(value, str):
        return several(value)
    if not isinstance(value, list) or not any(isinstance(one, str) and meant(one) is None for one in value):
        return None
    lists = [several(one) if isinstance(one, str) else [meant(one)] for one in value]
    flat = [colour for one in lists for colour in one or [None]]
    return [colour for colour in flat if colour] if None not in flat else None


def _once(data: dict[str, Any], *keys: str) -> bool:
    return not (isinstance(data, Repeated) and any(key in data.earlier for key in keys))


def _like(data: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """Changed data with the note of repeated keys that `data` has."""
    return Repeated(changed, data.earlier) if isinstance(data, Repeated) else changed


def _join(path: str, key: str) -> str:
    return f"{path}.{_printable(key)}" if path else _printable(key)


def _printable(key: str) -> str:
    return key if key.isprintable() else repr(key)[1:-1]  # for the eye: no half characters, no line ends


def _quoted(keys: Sequence[str]) -> str:
    return " and ".join(f"`{key}`" for key in keys)


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

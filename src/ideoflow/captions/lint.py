"""Advice on captions beyond the schema: what the weights may answer with a grey picture, or leave out.

`check` says what breaks the schema. A caption that keeps it may still ask for what is not drawn: letters that have no
room, boxes with x first, words in quotation marks in an object. Each line says what was seen, and the fix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from .boxes import RANGE
from .breach import Breach
from .caption import Caption
from .schema import elements

GREY = "the weights tend to answer with a grey picture"
LEAST_SIDE = 12  # thousandths of a box, below which nothing is drawn
LEAST_LETTER = (9, 18)  # width and height in thousandths of the smallest letter that can be read
MANY_ELEMENTS = 30
LONG_LINE = 8000  # characters, about the 2048 tokens that a caption may have
NO_ELEMENTS = Breach(
    "compositional_deconstruction.elements", "has none: nothing but the background is drawn", "add one"
)
_QUOTED = re.compile(r"[\"“”][^\"“”]{1,60}[\"“”]")
_HEXADECIMAL = re.compile(r"#[0-9A-Fa-f]{6}\b|#[0-9A-Fa-f]{3}\b")


def lint(caption: Caption) -> list[Breach]:
    """What breaks the schema, and what the weights may not draw as it is meant; first what matters most.

    Args:
        caption: right or wrong.

    Returns:
        Breaches as `check` lists them, and advice in the same form, none of which is certain.
    """
    return [*caption.check(), *weaknesses(caption), *advice(caption)]


def weaknesses(caption: Caption) -> list[Breach]:
    """Of what `lint` says beyond the schema: what leaves a part of the picture, or all of it, undrawn or misplaced."""
    data = caption.data()
    return [*_of_the_whole(caption, data), *_of_boxes(data), *_without_words(data)]


def advice(caption: Caption) -> list[Breach]:
    """The rest of it: what may be drawn otherwise than it is meant."""
    return list(_of_elements(caption.data()))


def lint_words(text: str) -> Breach:
    """What is to be said of plain text where a caption belongs."""
    return Breach(
        "",
        f"is plain text, {text.strip()[:40]!r}, where the model was trained on JSON captions: {GREY}",
        "write a caption of it (`ideoflow caption write`)",
    )


def _of_the_whole(caption: Caption, data: dict[str, Any]) -> Iterator[Breach]:
    if caption.check() and any(not breach.certain for breach in caption.check()):
        yield Breach("", f"is unlike what the model was trained on: {GREY}", "mend what is listed above")
    background = _composition(data).get("background")
    if isinstance(background, str) and not background.strip():
        yield Breach("compositional_deconstruction.background", "is empty", "say what lies behind the elements")
    found = elements(data)
    if not found and "compositional_deconstruction" in data:
        yield NO_ELEMENTS
    if len(found) > MANY_ELEMENTS:
        yield Breach(
            "compositional_deconstruction.elements",
            f"has {len(found)}, more than the model keeps apart",
            f"join what belongs together, {MANY_ELEMENTS} at most",
        )
    if len(caption.line()) > LONG_LINE:
        yield Breach(
            "",
            f"has {len(caption.line())} characters, which may be more than the 2048 tokens that a caption may have",
            "shorten its descriptions",
        )


def _of_boxes(data: dict[str, Any]) -> Iterator[Breach]:
    """Boxes that may have x first, all of a caption at once, and those that are too small or the same."""
    boxes = [(path, element, _box(element)) for path, element in _elements(data)]
    given = [element["bbox"] for _, element, _ in boxes if _numbers(element.get("bbox"))]
    outside = [box for box in given if max(box) > RANGE or min(box) < 0]
    if len(given) > 1 and 2 * len(outside) > len(given):
        yield Breach(
            "compositional_deconstruction.elements",
            f"has {len(outside)} of {len(given)} boxes that leave the picture, as those in pixels do, or with x first",
            "convert them all (`ideoflow caption fix --boxes xyxy --box-size WxH`)",
        )
    lines = [(element["text"], box) for _, element, box in boxes if box and _is_line(element)]
    tall = [text for text, box in lines if box[2] - box[0] > box[3] - box[1]]
    if tall and 2 * len(tall) > len(lines):
        yield Breach(
            "compositional_deconstruction.elements",
            f"has a box taller than wide for {tall[0]!r:.40}: x may come first, where the schema has y",
            "swap each pair if so (`ideoflow caption fix --boxes xyxy`)",
        )
    seen: dict[tuple[int, ...], str] = {}
    for path, _, box in boxes:
        if box is None:
            continue
        if min(box[2] - box[0], box[3] - box[1]) < LEAST_SIDE:
            yield Breach(f"{path}.bbox", f"is {list(box)}, too small for anything to be drawn", "make it larger")
        if tuple(box) in seen:
            yield Breach(f"{path}.bbox", f"is that of {seen[tuple(box)]}: one may hide the other", "move one of them")
        seen.setdefault(tuple(box), path)


def _without_words(data: dict[str, Any]) -> Iterator[Breach]:
    for path, element in _elements(data):
        text, desc = element.get("text"), element.get("desc")
        if element.get("type") == "text" and isinstance(text, str) and not text.strip():
            yield Breach(f"{path}.text", "is empty: no letters are drawn", "write the letters, or make it an object")
        if isinstance(desc, str) and not desc.strip():
            yield Breach(f"{path}.desc", "is empty", "say what it looks like")


def _of_elements(data: dict[str, Any]) -> Iterator[Breach]:
    for path, element in _elements(data):
        text, desc = element.get("text"), element.get("desc")
        box = _box(element)
        if isinstance(text, str) and box is not None and (room := _room(box)) < len(text):
            yield Breach(
                f"{path}.text", f"has {len(text)} characters, and its box has room for about {room}",
                "shorten it, or make the box larger",
            )  # fmt: skip
        if element.get("type") == "obj" and isinstance(desc, str) and (quoted := _QUOTED.search(desc)):
            yield Breach(
                f"{path}.desc",
                f"has words in quotation marks, {quoted[0]:.40}, which objects do not show reliably",
                "make an element of type 'text' of them",
            )  # fmt: skip
        if isinstance(desc, str) and (colour := _HEXADECIMAL.search(desc)) and "color_palette" not in element:
            yield Breach(
                f"{path}.desc",
                f"has the colour {colour[0]} among its words",
                "put it into `color_palette`, and name it",
            )


def _composition(data: dict[str, Any]) -> dict[str, Any]:
    inner = data.get("compositional_deconstruction")
    return inner if isinstance(inner, dict) else {}


def _elements(data: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    listed = _composition(data).get("elements")
    found = listed if isinstance(listed, list) else []
    return [
        (f"compositional_deconstruction.elements[{number}]", element)
        for number, element in enumerate(found)
        if isinstance(element, dict)
    ]


def _numbers(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(type(edge) in (int, float) for edge in box)


def _box(element: dict[str, Any]) -> Sequence[int] | None:
    """The box of an element if it is one in the schema."""
    box: Any = element.get("bbox")
    if not _numbers(box) or not all(type(edge) is int and 0 <= edge <= RANGE for edge in box):
        return None
    return box if box[0] < box[2] and box[1] < box[3] else None


def _is_line(element: dict[str, Any]) -> bool:
    """Whether an element is a line of letters, which is wider than tall unless it is set upright."""
    text, desc = element.get("text"), element.get("desc")
    if not isinstance(text, str) or "\n" in text or len(text.strip()) < 4:
        return False
    return not (isinstance(desc, str) and re.search(r"\b(vertical|upright|rotated|stacked|down the)", desc.lower()))


def _room(box: Sequence[int]) -> int:
    """Letters of the smallest size that can be read in a box."""
    wide, high = LEAST_LETTER
    return ((box[3] - box[1]) // wide) * max(1, (box[2] - box[0]) // high)

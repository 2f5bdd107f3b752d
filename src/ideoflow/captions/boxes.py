"""Boxes: every way in which people write one, which of them are certain, and converting them when told what they are.

The schema's box is `[y_min, x_min, y_max, x_max]` in thousandths. Four numbers do not say which way they are meant, so
a box is changed by itself only where no other known way of writing boxes gives these numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

RANGE = 1000  # boxes are in thousandths of the picture's sides
WHOLE = [0, 0, 1, 1]  # all of the picture in shares of it; in thousandths it is less than a pixel
EXPECTED = f"[y_min, x_min, y_max, x_max] in whole numbers from 0 to {RANGE}"

ORDERS = ("yxyx", "xyxy", "xywh", "yxhw", "cxcywh")  # that boxes can be converted from

# Names of the four edges, y first; compared in lower case without marks between words.
_EDGES = (
    ("ymin", "xmin", "ymax", "xmax"),
    ("top", "left", "bottom", "right"),
    ("y0", "x0", "y1", "x1"),
    ("y1", "x1", "y2", "x2"),
    ("miny", "minx", "maxy", "maxx"),
)
_CORNER_AND_SIZE = ("top", "left", "height", "width")


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a box.

    Attributes:
        message: What it is.
        fix: What to do about it.
        meant: The box that must have been meant, where that is certain.
    """

    message: str
    fix: str
    meant: list[int] | None = None


@dataclass(frozen=True)
class _Box:
    """Four numbers as written, y first, and whether their names say which is which."""

    edges: list[float]
    named: bool = False


def judge(value: Any, shown: str, kind: str, sure: bool) -> Verdict | None:
    """What is wrong with a box; None if it is right.

    Args:
        value: As written.
        shown: The same, for messages.
        kind: What it is in JSON's words, for messages.
        sure: Whether no box of the caption is in doubt: boxes are written in one way in all of a caption.
    """
    box = _parse(value)
    if box is None:
        given = f"is {shown if isinstance(value, list) else kind}"
        if isinstance(value, list) and len(value) != 4:
            given = f"has {len(value)} entries"
        return Verdict(f"{given}, where {EXPECTED} is expected", _hint(value))
    edges = box.edges
    shares = _are_shares(value, box)
    if shares or edges == WHOLE:
        meant = [round(RANGE * edge) for edge in edges]
        if shares and box.named and _encloses(meant):
            return Verdict(f"is {shown}, in shares of the picture", f"write {meant}", meant)
        return Verdict(
            f"is {shown}, which looks like shares of the picture, where {EXPECTED} is expected",
            f"multiply by {RANGE} and round: {meant} if y comes first",
        )
    if not all(math.isfinite(edge) and edge == int(edge) for edge in edges):
        return Verdict(f"is {shown}, where {EXPECTED} is expected", "give whole numbers")
    whole = [int(edge) for edge in edges]
    if max(whole) > RANGE:
        return _beyond(whole, shown)
    clamped = [max(edge, 0) for edge in whole]
    if not _encloses(whole):
        return _disordered(whole, shown, box.named, sure)
    if not _encloses(clamped):
        return Verdict(f"is {shown}, which encloses nothing of the picture", f"give {EXPECTED}")
    if clamped != whole:
        message = f"is {shown}, which has a corner outside the picture"
        return Verdict(message, f"write {clamped}", clamped if sure or box.named else None)
    if isinstance(value, list) and all(type(edge) is int for edge in value):
        return None
    expected = "whole numbers are" if isinstance(value, list) else "a list of four whole numbers is"
    return Verdict(f"is {shown}, where {expected} expected", f"write {whole}", whole)


def in_doubt(value: Any) -> bool:
    """Whether a box may have been written in another way than the schema's."""
    box = _parse(value)
    if box is None:
        return value is not None
    edges = box.edges
    if not all(math.isfinite(edge) and edge == int(edge) for edge in edges) or _are_shares(value, box):
        return not box.named
    return (
        max(edges) > RANGE
        or edges == WHOLE
        or (not box.named and not _encloses(edges) and bool(_other_readings(edges)))
    )


def convert(value: Any, order: str, size: tuple[float, float] | None) -> list[int] | None:
    """A box that is known to be in another form, in the schema's.

    Args:
        value: Four numbers, or a mapping of named edges, whose names win over `order`.
        order: What the numbers are: `yxyx`, `xyxy`, `xywh`, `yxhw` (a corner, then the size) or `cxcywh` (the centre).
        size: `(width, height)` that the numbers count to; None for thousandths.

    Returns:
        The box within the picture; None where the numbers give none.
    """
    box = _parse(value)
    if box is None or not all(map(math.isfinite, box.edges)):
        return None
    a, b, c, d = box.edges
    ordered = {
        "yxyx": [a, b, c, d],
        "xyxy": [b, a, d, c],
        "xywh": [b, a, b + d, a + c],
        "yxhw": [a, b, a + c, b + d],
        "cxcywh": [b - d / 2, a - c / 2, b + d / 2, a + c / 2],
    }[order]
    width, height = size or (RANGE, RANGE)
    edges = box.edges if box.named else ordered
    sides = (height, width, height, width)
    scaled = [round(RANGE * edge / side) for edge, side in zip(edges, sides, strict=True)]
    clamped = [min(max(edge, 0), RANGE) for edge in scaled]
    return clamped if _encloses(clamped) else None


def _parse(value: Any) -> _Box | None:
    if isinstance(value, str):
        inner = value.strip().removeprefix("[").removesuffix("]").removeprefix("(").removesuffix(")")
        value = [part for part in re.split(r"[\s,;]+", inner) if part]
    if isinstance(value, dict):
        named = {re.sub(r"[^a-z0-9]", "", str(key).lower()): edge for key, edge in value.items()}
        if len(named) != 4 or len(value) != 4:
            return None
        for names in _EDGES:
            if named.keys() == set(names):
                edges = [_number(named[name]) for name in names]
                return _Box([edge for edge in edges if edge is not None], True) if None not in edges else None
        if named.keys() == set(_CORNER_AND_SIZE):
            top, left, height, width = (_number(named[name]) for name in _CORNER_AND_SIZE)
            if top is not None and left is not None and height is not None and width is not None:
                return _Box([top, left, top + height, left + width], True)
        return None
    if not isinstance(value, list) or len(value) != 4:
        return None
    numbers = [_number(edge) for edge in value]
    return _Box([edge for edge in numbers if edge is not None]) if None not in numbers else None


def _number(value: Any) -> float | None:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{1,18})?", value.strip()):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _are_shares(value: Any, box: _Box) -> bool:
    """Whether a box lies within 0 to 1 and is not written in whole numbers."""
    given = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else re.split("[ ,;]", value)
    )
    fraction = any(isinstance(edge, float) or (isinstance(edge, str) and "." in edge) for edge in given)
    return fraction and all(0 <= edge <= 1 for edge in box.edges)


def _encloses(edges: Sequence[float]) -> bool:
    return edges[0] < edges[2] and edges[1] < edges[3]


def _other_readings(edges: Sequence[float]) -> list[tuple[str, list[float]]]:
    """What a box whose corners are not in order may be, beside one with its corners swapped.

    Whatever has a size above zero may be a corner and a size, if not in thousandths then in pixels.
    """
    a, b, c, d = edges
    readings: list[tuple[str, list[float]]] = []
    if c > 0 and d > 0:
        readings += [("x, y, width, height", [b, a, b + d, a + c]), ("y, x, height, width", [a, b, a + c, b + d])]
    if a < b and c < d:
        readings.append(("y_min, y_max, x_min, x_max", [a, c, b, d]))
    return readings


def _disordered(edges: list[int], shown: str, named: bool, sure: bool) -> Verdict:
    a, b, c, d = edges
    swapped = [min(a, c), min(b, d), max(a, c), max(b, d)]
    others = [] if named else _other_readings(edges)
    if min(edges) < 0 or not _encloses(swapped):
        return Verdict(f"is {shown}, which encloses nothing of the picture", f"give {EXPECTED}")
    message = f"is {shown}, which has its corners swapped"
    if named or (sure and not others):
        return Verdict(message, f"write {swapped}", swapped)
    fits = [(name, [round(edge) for edge in box]) for name, box in others if max(box) <= RANGE]
    known = [f"{box} if it is {name}" for name, box in fits] or ["something else if it is in pixels"]
    return Verdict(
        f"{message} or is written in another way",
        f"write {swapped} if its corners are swapped, {', '.join(known)} (see --boxes)",
    )


def _beyond(edges: list[int], shown: str) -> Verdict:
    far = max(edges)
    width, height = max(edges[1], edges[3]), max(edges[0], edges[2])
    if far > 1.1 * RANGE:
        return Verdict(
            f"is {shown}, which looks like pixels of a picture of {width} x {height} or more, where {EXPECTED} is"
            " expected",
            "convert it by the picture's size (see --box-size)",
        )
    clamped = [min(max(edge, 0), RANGE) for edge in edges]
    return Verdict(
        f"is {shown}, which reaches beyond {RANGE}",
        f"write {clamped} if it is in thousandths, or convert it by the picture's size if it is in pixels (see"
        " --box-size)",
    )


def _hint(value: Any) -> str:
    if isinstance(value, dict):
        return "give four numbers in a list, y first"
    return "give four numbers, y first"

"""A caption as a part of its picture has it, or a larger picture around it: boxes move with what is seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..captions import Caption, CaptionError
from ..captions.schema import elements

Window = tuple[float, float, float, float]  # left, top, right, bottom in the picture's pixels, or beyond them
THOUSANDTHS = 1000


def seen_caption(prompt: Any, size: tuple[int, int], window: Window, least: float = 0.0) -> Any:
    """The caption of what is seen through a window.

    Boxes are cut at its edges, and elements without a place in it are left out. What has no boxes stays as it is.

    Args:
        prompt: A caption in any form; plain text is given back.
        size: `(width, height)` of its picture.
        window: `(left, top, right, bottom)` in that picture's pixels; it may reach beyond.
        least: Share of an element's box that must be seen.

    Returns:
        The prompt itself where the window is the whole picture or there are no boxes, else the caption's data.
    """
    if tuple(window) == (0, 0, *size):
        return prompt
    data = data_of(prompt)
    if data is None or not any(_is_box(one) for one in elements(data)):
        return prompt
    seen = []
    for element in elements(data):
        if not _is_box(element):
            seen.append(element)
            continue
        box = _moved(element["bbox"], size, window)
        cut = tuple(min(max(edge, 0.0), THOUSANDTHS) for edge in box)
        if cut[0] < cut[2] and cut[1] < cut[3] and _area(cut) >= least * _area(box):
            seen.append({**element, "bbox": _rounded(cut)})
    composition = {**data["compositional_deconstruction"], "elements": seen}
    return {**data, "compositional_deconstruction": composition}


def data_of(prompt: Any) -> dict[str, Any] | None:
    """A prompt's data where it is a caption with a composition; None for other prompts."""
    if not isinstance(prompt, (str, Mapping, Caption)) or (isinstance(prompt, str) and "{" not in prompt):
        return None
    try:
        data = Caption.parse(prompt).data()
    except CaptionError:
        return None
    return data if isinstance(data.get("compositional_deconstruction"), dict) else None


def _is_box(element: Any) -> bool:
    box = element.get("bbox") if isinstance(element, dict) else None
    return isinstance(box, (list, tuple)) and len(box) == 4 and all(type(edge) in (int, float) for edge in box)


def _moved(box: Any, size: tuple[int, int], window: Window) -> tuple[float, ...]:
    """A box in thousandths of the picture as one in thousandths of the window."""
    left, top, right, bottom = window
    width, height = size
    across, down = width / (right - left), height / (bottom - top)
    y, x = top / height * THOUSANDTHS, left / width * THOUSANDTHS
    return (box[0] - y) * down, (box[1] - x) * across, (box[2] - y) * down, (box[3] - x) * across


def _area(box: tuple[float, ...]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _rounded(box: tuple[float, ...]) -> list[int]:
    """In whole thousandths, one at least on each side."""
    y0, x0, y1, x1 = (round(edge) for edge in box)
    y0, x0 = min(y0, THOUSANDTHS - 1), min(x0, THOUSANDTHS - 1)
    return [y0, x0, max(y1, y0 + 1), max(x1, x0 + 1)]

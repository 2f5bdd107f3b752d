"""What has changed from one caption to another: which elements, and so which parts of the picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from ..captions import CaptionError
from ..captions.schema import elements, in_order
from .caption_window import data_of

Boxes = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class CaptionChanges:
    """Elements of a caption that another has in another way.

    Attributes:
        gone: Boxes of the elements of the old caption that the new one has not, or not as they were.
        come: Boxes of the elements of the new caption that the old one had not, or not as they are.
    """

    gone: Boxes
    come: Boxes

    @property
    def boxes(self) -> Boxes:
        """Where the picture changes."""
        return tuple(dict.fromkeys((*self.gone, *self.come)))


def changes_between(before: Any, after: Any) -> CaptionChanges:
    """What has changed from one caption to another.

    An element is the same if all that is said of it is, its box included, and if it lies over and under the same
    others: of two that change places in the list, one has changed. A summary may differ in any way.

    Args:
        before: The old caption, in any form.
        after: The new one.

    Raises:
        CaptionError: a ValueError: what is no caption with elements; changes that are everywhere, such as those of the
            background; an element without a box; or nothing that has changed.
    """
    old, new = _data("before", before), _data("after", after)
    for key, where in (("background", "compositional_deconstruction"), (None, "style_description")):
        said = [(data.get(where) or {}).get(key) if key else data.get(where) for data in (old, new)]
        if said[0] != said[1]:
            raise CaptionError(
                f"the captions differ in `{key or where}`, which is everywhere in the picture: change the whole of it,"
                " with `edit_caption` or image to image, or give a mask of your own to inpaint."
            )
    lines, new_lines = ([_line(element) for element in elements(data)] for data in (old, new))
    gone: list[Any] = []
    come: list[Any] = []
    matcher = SequenceMatcher(None, lines, new_lines, autojunk=False)
    for kind, old_from, old_to, new_from, new_to in matcher.get_opcodes():
        if kind != "equal":
            gone += elements(old)[old_from:old_to]
            come += elements(new)[new_from:new_to]
    if not gone and not come:
        raise CaptionError("the captions say the same of every element: nothing is to be changed.")
    return CaptionChanges(tuple(map(_box, gone)), tuple(map(_box, come)))


def _data(name: str, prompt: Any) -> dict[str, Any]:
    data = data_of(prompt)
    if data is None:
        raise CaptionError(
            f"`{name}` is no caption with a `compositional_deconstruction`, whose elements are compared."
        )
    return data


def _line(element: Any) -> str:
    return json.dumps(element, sort_keys=True, ensure_ascii=False)


def _box(element: Any) -> tuple[float, ...]:
    if not isinstance(element, dict) or not isinstance(element.get("bbox"), (list, tuple)):
        raise CaptionError(
            f"the element {_line(in_order(element))[:80]} has changed and has no `bbox`: where it lies is not known."
            " Give it a box, or inpaint with a mask."
        )
    return tuple(element["bbox"])

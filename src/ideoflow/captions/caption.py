"""`Caption`: the schema as pydantic models for what is right, beside the data as given for what is not."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from pydantic import PrivateAttr

from .boxes import ORDERS, convert
from .breach import Breach, CaptionError
from .parts import Composition, ObjectElement, Part, Style, Text
from .paths import existing, looks_like_path, missing
from .reading import Found, data_of, find, plain, read_file
from .rules import Walk
from .schema import TOP_KEYS, elements, encodes, in_order, write


class Caption(Part):
    """What to draw, in the schema that the model was trained on.

    Built from its parts, a caption is always right. Parsed, it may break the schema: then `check` lists the breaches,
    the attributes hold the data as given, and `line` still writes it, for the model takes any string.
    """

    high_level_description: Text | None = None
    style_description: Style | None = None
    compositional_deconstruction: Composition

    _part: ClassVar[str] = "caption"
    _given: dict[str, Any] | None = PrivateAttr(default=None)  # what was parsed, when it breaks the schema
    _slips: tuple[Breach, ...] = PrivateAttr(default=())  # what the text that was parsed had beside the caption

    @classmethod
    def parse(cls, source: str | os.PathLike[str] | Mapping[str, Any] | Caption) -> Caption:
        """Read a caption, right or wrong.

        A text may hold the caption among other things: in a Markdown fence, between words, after a model's thinking,
        with comments, trailing commas or typographic quotation marks. `check` lists what was not as it should be.

        Args:
            source: A JSON string, the path of a file that holds one, a mapping, or a caption.

        Raises:
            CaptionError: if it holds no JSON object (plain text does not: see `from_text`) or several captions, holds
                what JSON cannot, or is nested more than 64 levels deep.
            OSError: if the file cannot be read.
            TypeError: if `source` is of another type.
        """
        if isinstance(source, Caption):
            return source
        if isinstance(source, os.PathLike):
            return cls._of_text(read_file(Path(source)), str(source))
        if isinstance(source, str):
            path = None if source.lstrip("\ufeff \t\r\n").startswith("{") else existing(source)
            if path is not None and not path.is_dir():
                return cls._of_text(read_file(path), source)
            return cls._of_text(source, "the caption", path_too=True)
        if isinstance(source, Mapping):
            return cls.of_found(data_of(source))
        raise TypeError(f"`source` is a {type(source).__name__}: give a JSON string, a path, a mapping or a Caption.")

    @classmethod
    def _of_text(cls, text: str, source: str, path_too: bool = False) -> Self:
        """The caption in a text; `path_too`: which may have been meant as a path."""
        found = find(text, source)
        if found is not None:
            return cls.of_found(found)
        if path_too and looks_like_path(text):
            raise CaptionError(missing(text))
        shown = f"the plain text {text.strip()[:40]!r}" if text.strip() else "empty"
        raise CaptionError(f"{source} is {shown}, not a JSON object: to draw words, wrap them with Caption.from_text.")

    @classmethod
    def from_text(cls, text: str) -> Caption:
        """Wrap plain text into a minimal caption: it becomes the description of the whole and of a single element.

        Raises:
            CaptionError: if there is no text, or it holds half of a surrogate pair.
            TypeError: if it is no string.
        """
        if not isinstance(text, str):
            raise TypeError(f"`text` is a {type(text).__name__}: give a string.")
        text = " ".join(text.split())
        if not text:
            raise CaptionError("`text` is empty: describe a picture.")
        if not encodes(text):
            raise CaptionError(
                "`text` holds half of a surrogate pair, which is no character: write the whole character."
            )
        composition = Composition(background="", elements=[ObjectElement(desc=text)])
        return cls(high_level_description=text, compositional_deconstruction=composition)

    @classmethod
    def of_found(cls, found: Found) -> Self:
        """The caption that was found in a text or a mapping; `check` lists its slips first."""
        caption = cls._of_data(found.data)
        caption._slips = tuple(found.slips)
        return caption

    @classmethod
    def _of_data(cls, data: dict[str, Any]) -> Self:
        if not Walk(data).breaches:
            return cls.model_validate(data)
        caption = cast(Self, cls.model_construct(**{key: data[key] for key in cls.model_fields if key in data}))
        caption._given = data
        return caption

    def data(self) -> dict[str, Any]:
        """The caption as plain JSON data: in canonical order when it keeps the schema, otherwise as given."""
        if self._given is not None:
            return deepcopy(self._given)
        return in_order(plain(self.model_dump(exclude_none=True, warnings=False)))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with the given top-level keys replaced, or left out where None; it is checked like a parsed caption.

        Args:
            update: New values by key, as parts or as plain data.
            deep: Without effect: the copy shares nothing with the caption.
        """
        changed = {**self.data(), **(update or {})}
        return type(self)._of_data(plain(in_order({key: value for key, value in changed.items() if value is not None})))

    def check(self) -> list[Breach]:
        """Every breach in the schema's order, each with its place and its fix; first what the text had beside JSON."""
        return [*self._slips, *Walk(self.data()).breaches]

    def repair(self, *, drop_unknown: bool = False) -> Self:
        """The caption with all certain breaches mended.

        Those are breaches that can mean only one thing: other names of keys, their order, the form of colours, corners
        of boxes that are in no other known order, empty fields, keys that programs add. What only its author can know
        is left for `check` to list. The caption itself does not change.

        Args:
            drop_unknown: Leave out all keys that are not the schema's too.
        """
        return self.mended(drop_unknown=drop_unknown)[0]

    def mended(self, *, drop_unknown: bool = False) -> tuple[Self, list[Breach]]:
        """What `repair` gives, and the breaches that it mended, each with what was `done` about it."""
        walk = Walk(self.data(), drop_unknown=drop_unknown)
        done = [*self._slips, *(breach for breach in walk.breaches if breach.certain)]
        return (self._of_data(walk.repaired) if done else self), done

    def with_boxes_from(self, order: str = "yxyx", size: tuple[float, float] | None = None) -> Self:
        """The caption with all its boxes converted from another form, for an author who knows which it is.

        Boxes that are called `bbox_2d`, as models call them that find things, are among them.

        Args:
            order: `yxyx` as in the schema, `xyxy`, `xywh` or `yxhw` (a corner, then the size) or `cxcywh` (the centre).
                Boxes whose edges are named go by their names.
            size: `(width, height)` that the boxes count to: the picture's pixels, or `(1, 1)` for shares of it; None
                for thousandths.

        Raises:
            CaptionError: naming a box that is none in this form, such as one outside the picture.
            ValueError: if `order` or `size` is none.
        """
        if order not in ORDERS:
            raise ValueError(f"`order` is {order!r}: give one of {', '.join(ORDERS)}.")
        if size is not None and not (len(size) == 2 and all(math.isfinite(side) and side > 0 for side in size)):
            raise ValueError(f"`size` is {size!r}: give two positive numbers, (width, height).")
        data = self.data()
        for number, element in enumerate(elements(data)):
            if isinstance(element, dict) and "bbox" not in element and "bbox_2d" in element:
                element["bbox"] = element.pop("bbox_2d")
            if not isinstance(element, dict) or element.get("bbox") is None:
                continue
            given, element["bbox"] = element["bbox"], convert(element["bbox"], order, size)
            if element["bbox"] is None:
                raise CaptionError(f"the box of element {number} is {given!r:.60}, which is no box as {order!r}.")
        return self.of_found(Found(data, list(self._slips)))

    def is_one(self) -> bool:
        """Whether it has any key of a caption at all, or can be repaired to have one: JSON of other things has none."""
        return not self.repair().data().keys().isdisjoint(TOP_KEYS)

    def strict(self) -> Self:
        """The caption itself.

        Raises:
            CaptionError: listing all breaches, if there are any.
        """
        if breaches := self.check():
            listed = "\n".join(f"  {breach}" for breach in breaches)
            places = "1 place" if len(breaches) == 1 else f"{len(breaches)} places"
            raise CaptionError(f"the caption breaks the schema in {places}:\n{listed}", breaches)
        return self

    def line(self) -> str:
        """The canonical line: no spaces, keys in order, characters unescaped; values as they are, right or wrong."""
        return write(in_order(self.data()))

"""Pairs of captions of the sketch world that differ in one element, each with the truth of both."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any

from ideoflow.sketch.masks import OUTLINED, SHAPES
from ideoflow.sketch.scene import COLOURS, Background, Box, Element, Sample, rgb
from ideoflow.sketch.wording import caption_of
from ideoflow.sketch.world import APART, GRID, LETTERS, sample

KINDS = ("move", "colour", "shape", "word", "remove", "add")
IN_PLACE = ("colour", "shape", "word")  # the kinds that leave the box where it is


@dataclass(frozen=True)
class Pair:
    """A picture of the world before and after one element of it changes.

    Attributes:
        kind: One of `KINDS`.
        before: The picture with its caption.
        after: The same for the changed one.
        old: Number of the element before; None if it is added.
        new: Its number after; None if it is removed.
    """

    kind: str
    before: Sample
    after: Sample
    old: int | None
    new: int | None

    @property
    def kept(self) -> list[tuple[int, int]]:
        """Numbers of the other elements, before and after."""
        before = [number for number in range(len(self.before.elements)) if number != self.old]
        after = [number for number in range(len(self.after.elements)) if number != self.new]
        return list(zip(before, after, strict=True))


def pair(index: int, kind: str, size: tuple[int, int] | None = None) -> Pair | None:
    """A pair of held-out pictures; None where that picture has no element of which it can be made.

    Args:
        index: Number of the picture.
        kind: One of `KINDS`.
        size: As of `sample`.
    """
    draw = random.Random(f"edits/{kind}/{index}")
    before = captioned(draw, sample(index, split="held_out", size=size))
    old: int | None = None
    if kind != "add":
        fit = [n for n, one in enumerate(before.elements) if kind not in ("shape", "word") or _of(kind, one)]
        if not fit:
            return None
        old = draw.choice(fit)
    changed = _changed(draw, kind, before, old)
    if changed is None:
        return None
    elements, entries = list(before.elements), list(_entries(before))
    new: int | None = None
    if kind == "remove":
        assert old is not None
        del elements[old], entries[old]
    else:
        new = len(elements) if old is None else old
        elements[new:] = [changed, *elements[new + (old is not None) :]]
        entries[new:] = [_entry(draw, before, changed), *entries[new + (old is not None) :]]
    ground = before.caption["compositional_deconstruction"]["background"]
    caption = {"compositional_deconstruction": {"background": ground, "elements": entries}}
    return Pair(kind, before, replace(before, elements=tuple(elements), caption=caption), old, new)


def pairs(count: int, kinds: tuple[str, ...] = KINDS, size: tuple[int, int] | None = None) -> list[Pair]:
    """So many pairs, of all kinds in turn."""
    found: list[Pair] = []
    index = 0
    while len(found) < count:
        made = pair(index, kinds[index % len(kinds)], size)
        found += [] if made is None else [made]
        index += 1
    return found


def _of(kind: str, element: Element) -> bool:
    return (element.word is not None) == (kind == "word")


def captioned(draw: random.Random, of: Sample) -> Sample:
    """The picture with a caption of background and elements alone, each said once."""
    ground = of.caption["compositional_deconstruction"]["background"]
    entries = [_entry(draw, of, element) for element in of.elements]
    return replace(of, caption={"compositional_deconstruction": {"background": ground, "elements": entries}})


def _entry(draw: random.Random, of: Sample, element: Element) -> dict[str, Any]:
    return caption_of(draw, of.background, [element])["compositional_deconstruction"]["elements"][0]


def _entries(of: Sample) -> list[dict[str, Any]]:
    return of.caption["compositional_deconstruction"]["elements"]


def _changed(draw: random.Random, kind: str, of: Sample, old: int | None) -> Element | None:
    """The element as it is afterwards; for one that is removed, as it was."""
    others = [element for number, element in enumerate(of.elements) if number != old]
    if old is None:
        colour, box = _colour(draw, of, others), _free(draw, others, (rows(draw), rows(draw)))
        return None if colour is None or box is None else Element(box, colour, shape=draw.choice(SHAPES))
    element = of.elements[old]
    if kind == "remove":
        return element
    if kind == "move":
        top, left, bottom, right = element.box
        box = _free(draw, others, (bottom - top, right - left))
        far = box is not None and max(abs(box[0] - top), abs(box[1] - left)) >= 200
        return replace(element, box=box) if box is not None and far else None
    if kind == "colour":
        colour = _colour(draw, of, list(of.elements))
        return None if colour is None else replace(element, colour=colour)
    if kind == "shape":
        shape = draw.choice([one for one in SHAPES if one != element.shape])
        return replace(element, shape=shape, outline=element.outline and shape in OUTLINED)
    word = element.word or ""
    place = draw.randrange(len(word))
    letter = draw.choice([one for one in LETTERS if one != word[place]])
    return replace(element, word=word[:place] + letter + word[place + 1 :])


def rows(draw: random.Random) -> int:
    """A side of a shape, in thousandths."""
    return draw.randint(12, 20) * GRID


def _colour(draw: random.Random, of: Sample, elements: list[Element]) -> str | None:
    """A named colour that nothing in the picture comes near."""
    used = [*of.background.colours, *of.background.between(), *(element.colour for element in elements)]
    free = [one for one in COLOURS if all(math.dist(rgb(one), rgb(other)) >= APART for other in used)]
    return draw.choice(free) if free else None


def _free(draw: random.Random, others: list[Element], sides: tuple[int, int]) -> Box | None:
    """A box on the grid that touches none of the others."""
    for _ in range(200):
        top = draw.randint(0, (1000 - sides[0]) // GRID) * GRID
        left = draw.randint(0, (1000 - sides[1]) // GRID) * GRID
        box = (top, left, top + sides[0], left + sides[1])
        if all(_apart(box, other.box) for other in others):
            return box
    return None


def _apart(one: Box, other: Box) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def larger(of: Sample, size: tuple[int, int], place: tuple[int, int]) -> Sample:
    """A plain picture within a larger one of the same background: its truth, with its elements where they were."""
    left, top = place

    def moved(box: Box) -> Box:
        return (
            round((box[0] * of.height / 1000 + top) * 1000 / size[1]),
            round((box[1] * of.width / 1000 + left) * 1000 / size[0]),
            round((box[2] * of.height / 1000 + top) * 1000 / size[1]),
            round((box[3] * of.width / 1000 + left) * 1000 / size[0]),
        )

    assert of.background.kind == "solid"
    elements = tuple(replace(element, box=moved(element.box)) for element in of.elements)
    entries = [{**entry, "bbox": list(one.box)} for entry, one in zip(_entries(of), elements, strict=True)]
    ground = of.caption["compositional_deconstruction"]["background"]
    caption = {"compositional_deconstruction": {"background": ground, "elements": entries}}
    return Sample(*size, Background("solid", of.background.colours), elements, caption)

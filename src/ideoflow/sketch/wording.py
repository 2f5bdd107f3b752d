"""How pictures of the sketch world are put into words: each wording is one that a person might choose."""

from __future__ import annotations

import json
import random
from typing import Any

from .scene import Background, Element

SUMMARIES = 0.35  # of the captions begin with a high-level description
STYLES = 0.15  # have a style description
PALETTES = 0.15  # of the elements whose colour has a name tell it as a palette too


def line(caption: dict[str, Any]) -> str:
    """The caption on one line, as the model is trained on it."""
    return json.dumps(caption, separators=(",", ":"), ensure_ascii=False)


def caption_of(draw: random.Random, background: Background, elements: list[Element]) -> dict[str, Any]:
    """A caption of the picture in the schema of Ideogram 4, its keys in the schema's order.

    An element whose colour is an exact one, `#RRGGBB`, tells it by its palette alone.
    """
    caption: dict[str, Any] = {}
    if elements and draw.random() < SUMMARIES:
        caption["high_level_description"] = _summary(draw, background, elements)
    if draw.random() < STYLES:
        caption["style_description"] = _style(draw, background, elements)
    caption["compositional_deconstruction"] = {
        "background": _background(draw, background),
        "elements": [_element(draw, element) for element in elements],
    }
    return caption


def _element(draw: random.Random, element: Element) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "text" if element.word else "obj", "bbox": list(element.box)}
    if element.word:
        entry["text"] = element.word
    entry["desc"] = _word(draw, element) if element.word else _shape(draw, element)
    if element.exact or draw.random() < PALETTES:
        entry["color_palette"] = [element.hexadecimal]
    return entry


def _shape(draw: random.Random, element: Element) -> str:
    shape, colour = element.shape or "", element.colour
    if element.exact:
        if element.outline:
            return draw.choice(
                (f"outline of a {shape}", f"a {shape} outline", f"an outlined {shape}", f"hollow {shape}")
            )
        return draw.choice((_article(shape), shape, f"a filled {shape}", f"a flat {shape}", f"a single {shape}"))
    if element.outline:
        return draw.choice((
            f"the outline of a {shape} in {colour}",
            f"{_article(colour)} {shape} outline",
            f"an outlined {shape}, {colour}",
            f"a hollow {colour} {shape}",
            f"{_article(shape)} drawn as a thick {colour} line",
            f"{colour} outline of a {shape}",
        ))  # fmt: skip
    return draw.choice((
        f"{_article(colour)} {shape}",
        f"{_article(colour)} {shape}",
        f"{_article(colour)} {shape}",
        f"{colour} {shape}",
        f"{_article(shape)} in {colour}",
        f"a flat {colour} {shape}",
        f"a solid {colour} {shape}",
        f"{_article(shape)} filled with {colour}",
        f"one {shape}, coloured {colour}",
        f"a simple {shape} painted {colour}",
    ))  # fmt: skip


def _word(draw: random.Random, element: Element) -> str:
    font, colour = element.font, element.colour
    if font == "sans":
        font = draw.choice(("sans", "sans", "sans serif"))
    if element.exact:
        return draw.choice(
            (f"{font} letters", f"bold letters in a {font} font", f"{font} lettering", f"a word in {font}")
        )
    return draw.choice((
        f"{colour} {font} letters",
        f"{colour} {font} lettering",
        f"bold {colour} letters in a {font} font",
        f"the word in {colour}, {font}",
        f"large {font} type in {colour}",
        f"{_article(colour)} word in bold {font} capitals",
    ))  # fmt: skip


def _background(draw: random.Random, background: Background) -> str:
    first, last = background.colours[0], background.colours[-1]
    if background.kind == "solid":
        return draw.choice((
            f"plain {first}",
            f"a solid {first} background",
            f"{first} background",
            f"all {first}",
            f"flat {first} everywhere",
            f"an empty {first} field",
            f"{_article(first)} wall",
        ))  # fmt: skip
    ends = ("top", "bottom") if background.direction == "vertical" else ("left", "right")
    if background.kind == "gradient":
        return draw.choice((
            f"a gradient from {first} at the {ends[0]} to {last} at the {ends[1]}",
            f"{first} at the {ends[0]} fading to {last} at the {ends[1]}",
            f"{ends[0]} {first}, {ends[1]} {last}, a smooth gradient",
            f"a gradient, {first} {ends[0]} into {last} {ends[1]}",
        ))  # fmt: skip
    return draw.choice((
        f"{background.direction} stripes of {first} and {last}",
        f"{first} and {last} {background.direction} stripes",
        f"four {background.direction} stripes, {first} then {last}",
        f"striped: {background.direction} bands of {first} and {last}",
    ))  # fmt: skip


def _summary(draw: random.Random, background: Background, elements: list[Element]) -> str:
    names = [_name(draw, e) for e in elements]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    ground = " and ".join(background.colours)
    if background.kind != "solid":
        ground = f"{_article(ground)} gradient" if background.kind == "gradient" else f"{ground} stripes"
    return draw.choice((
        f"{listed[0].upper()}{listed[1:]} on {ground}.",
        f"A flat graphic of {listed} on {ground}.",
        f"{listed[0].upper()}{listed[1:]} over {ground}",
        f"Simple picture: {listed}, {ground} behind.",
    ))  # fmt: skip


def _name(draw: random.Random, element: Element) -> str:
    if element.word:
        return f'"{element.word}"' if draw.random() < 0.5 else f'the word "{element.word}"'
    kind = f"{element.shape} outline" if element.outline else element.shape or ""
    return _article(kind if element.exact else f"{element.colour} {kind}")


def _style(draw: random.Random, background: Background, elements: list[Element]) -> dict[str, Any]:
    style: dict[str, Any] = {
        "aesthetics": draw.choice(("flat, simple", "clean, minimal", "bold, plain")),
        "lighting": draw.choice(("even", "none", "flat")),
        "medium": draw.choice(("graphic design", "vector art", "paper cut")),
        "art_style": draw.choice(("flat shapes", "geometric shapes", "poster")),
    }
    if draw.random() < 0.5:
        style["color_palette"] = [*background.hexadecimal, *(e.hexadecimal for e in elements)]
    return style


def _article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"

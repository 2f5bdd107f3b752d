"""What language models are told: how to write a caption of words, to describe a picture, and to change a caption."""

from __future__ import annotations

import json
import math
from typing import Any

_FORM = """The picture is drawn by a program that reads one JSON object. Answer with that object alone, on one line: \
no words before or after it, no code fence, no comments.

Its keys, in this order:
- "high_level_description": the whole picture in one sentence of at most 40 words; say what kind of picture it is.
- "style_description": an object with "aesthetics", "lighting", then for a photograph "photo" (camera, lens, framing) \
and "medium", for anything else "medium" and "art_style"; never both "photo" and "art_style". It may end with \
"color_palette", a list of at most 16 colours.
- "compositional_deconstruction": an object with "background" (what lies behind everything, in words) and "elements" \
(a list, from back to front).

An element is a thing or a piece of lettering:
{"type":"obj","bbox":[y_min,x_min,y_max,x_max],"desc":"..."}
{"type":"text","bbox":[y_min,x_min,y_max,x_max],"text":"the letters","desc":"how they look"}
Each may end with "color_palette", a list of at most 5 colours.

A box counts in thousandths of the picture, whole numbers from 0 to 1000, from its top left corner, and y comes first: \
[0,0,500,1000] is the upper half. y_min is smaller than y_max, and x_min than x_max. Colours are written #RRGGBB in \
upper case."""

_FORM_WITHOUT_LAYOUT = """The picture is drawn by a program that reads one JSON object. Answer with that object alone, \
on one line: no words before or after it, no code fence, no comments.

Its keys, in this order:
- "high_level_description": the whole picture in one sentence of at most 40 words; say what kind of picture it is.
- "compositional_deconstruction": an object with "background" (what lies behind everything, in words) and "elements" \
(a list with at least one entry, from back to front).

An element is a thing, {"type":"obj","desc":"..."}, or a piece of lettering, \
{"type":"text","text":"the letters","desc":"how they look"}."""

_CARE = """
How to do it well:
- Everything that was asked for becomes an element of its own, and nothing is added that changes the idea. What was \
counted is counted: "three cups" are three elements.
- One body is one element with its parts in its description: a horse is not a head and four legs.
- Letters that are to be read are "text" elements, with exactly the characters that were given and no others. Words in \
quotation marks are always such letters.
- What the picture stands on and what is far behind belongs into the background, not among the elements.
- Describe what can be seen: shape, material, colour, where it stands beside what. Decide: no "or", no "various", no \
"such as".
- Names of people, brands, places and works stay as they were given.
- A poster, logo or page fills the frame: its background is its own, and no wall behind it.
- Give letters room: a box for a line of letters is wider than tall, about half as wide for each letter as it is tall.
- Elements that stand apart have boxes that do not overlap; what stands on the ground ends near the bottom."""

_EXAMPLE_PHOTO: dict[str, Any] = {
    "high_level_description": "A ginger cat asleep on a blue armchair beside a tall window, a quiet indoor photograph.",
    "style_description": {
        "aesthetics": "calm, domestic, uncluttered",
        "lighting": "overcast daylight from the window on the left",
        "photo": "50 mm lens at eye height, the whole chair in frame",
        "medium": "photograph",
        "color_palette": ["#D9822B", "#2F5D8C", "#E8E4DA"],
    },
    "compositional_deconstruction": {
        "background": "A white plaster wall above pale oak boards; on the left a tall sash window with grey sky.",
        "elements": [
            {
                "type": "obj",
                "bbox": [300, 330, 930, 860],
                "desc": "A low armchair with rounded arms, upholstered in blue wool, on four short wooden legs.",
                "color_palette": ["#2F5D8C"],
            },
            {
                "type": "obj",
                "bbox": [520, 440, 700, 750],
                "desc": "A ginger cat with a white chest, curled up on the seat, its eyes closed.",
            },
        ],
    },
}
_EXAMPLE_POSTER: dict[str, Any] = {
    "high_level_description": 'A flat poster for a coffee shop: a white cup below the word "OPEN" on deep green.',
    "style_description": {
        "aesthetics": "bold, sparse, centred",
        "lighting": "none",
        "medium": "graphic design",
        "art_style": "flat shapes with hard edges",
        "color_palette": ["#1F4D3A", "#FFFFFF", "#F2B705"],
    },
    "compositional_deconstruction": {
        "background": "An even deep green from edge to edge.",
        "elements": [
            {
                "type": "text",
                "bbox": [120, 220, 330, 780],
                "text": "OPEN",
                "desc": "Wide sans serif capitals in white, evenly spaced.",
                "color_palette": ["#FFFFFF"],
            },
            {
                "type": "obj",
                "bbox": [430, 280, 860, 720],
                "desc": "A white cup from the side on a saucer, its handle to the right, three yellow lines of steam.",
                "color_palette": ["#FFFFFF", "#F2B705"],
            },
        ],
    },
}
_EXAMPLES = (
    ("my cat sleeping on the blue armchair by the window", _EXAMPLE_PHOTO),
    ("coffee shop poster that says OPEN", _EXAMPLE_POSTER),
)


def writing_instructions(layout: bool = True) -> str:
    """What a model is told that writes captions of words."""
    examples = "\n\n".join(
        f"Idea: {idea}\n{_line(example if layout else _without_layout(example))}" for idea, example in _EXAMPLES
    )
    care = _CARE if layout else _CARE[: _CARE.index("\n- Give letters room")]
    return (
        "You turn an idea for a picture into its exact description.\n\n"
        f"{_FORM if layout else _FORM_WITHOUT_LAYOUT}\n{care}\n\n{examples}"
    )


def writing_request(words: str, size: tuple[int, int] | None = None) -> str:
    """What it is asked: the words, and the picture's proportions where they are known."""
    return f"Idea: {words}" if size is None else f"The picture is {proportions(size)} (width to height).\nIdea: {words}"


def editing_instructions() -> str:
    """What a model is told that changes a caption by a wish."""
    return (
        "You change the description of a picture as somebody wishes, and nothing else in it.\n\n"
        f"{_FORM}\n\n"
        "Copy every part that the wish does not touch, character for character, boxes and colours too. What moves"
        " changes its box; what changes its colour changes its words and its palette; what is taken away is left out of"
        " the elements and of the description of the whole."
    )


def editing_request(line: str, wish: str) -> str:
    """What it is asked: the caption, and the wish."""
    return f"{line}\n\nWish: {wish}"


def describing_instructions() -> str:
    """What a model is told that describes a picture."""
    return (
        "You describe a picture so exactly that it can be drawn again.\n\n"
        f"{_FORM}\n\n"
        "Name every thing and every piece of lettering that can be made out, with a box that just encloses it. Write"
        " letters as they are in the picture. Leave out every color_palette: colours are measured."
    )


def describing_request(size: tuple[int, int]) -> str:
    """What it is asked beside the picture."""
    return f"The picture is {proportions(size)} (width to height). Describe it."


def proportions(size: tuple[int, int]) -> str:
    """`16:9` of (1920, 1080)."""
    width, height = size
    divisor = math.gcd(width, height) or 1
    return f"{width // divisor}:{height // divisor}"


def _line(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def _without_layout(example: dict[str, Any]) -> dict[str, Any]:
    composition = example["compositional_deconstruction"]
    elements = [
        {key: one[key] for key in one if key not in ("bbox", "color_palette")} for one in composition["elements"]
    ]
    return {
        "high_level_description": example["high_level_description"],
        "compositional_deconstruction": {"background": composition["background"], "elements": elements},
    }

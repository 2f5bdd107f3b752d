"""What a language model behind an endpoint is asked to do: write a caption of words, change one, describe a picture."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from ...images import flattened, upright
from ..breach import CaptionError
from ..caption import Caption
from ..lint import NO_ELEMENTS, lint
from ..schema import write as as_json
from .attempts import settle
from .endpoint import Endpoint
from .instructions import (
    describing_instructions,
    describing_request,
    editing_instructions,
    editing_request,
    writing_instructions,
    writing_request,
)
from .json_schema import caption_schema
from .measured import with_measured_colours
from .written import Written

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_SIDE = 1024  # pixels of a picture that is sent
MOST_WORDS = 20_000  # characters of what a person may ask


def write(words: str, endpoint: Endpoint, size: tuple[int, int] | None = None, *, layout: bool = True) -> Written:
    """Have a caption written of words.

    Args:
        words: What the picture is to show.
        endpoint: Who writes it; the words are sent there and nowhere else.
        size: `(width, height)` of the picture, for its proportions; None where they are open.
        layout: With a style, boxes and palettes; False for words alone.

    Raises:
        WritingError: if no caption that keeps the schema comes back.
    """
    asked = writing_request(_checked("words", words), size)
    messages = [_said("system", writing_instructions(layout)), _said("user", asked)]
    schema = caption_schema(layout)
    return settle(lambda told: endpoint.ask(told, schema), messages, endpoint.name, layout=layout)


def edit(caption: Caption, wish: str, endpoint: Endpoint) -> Written:
    """Have a caption changed by a wish, and everything else in it kept; `differences` says what changed.

    Args:
        caption: What is there; it keeps the schema.
        wish: What is to change: "make the heart blue and move it left".
        endpoint: Who changes it; both are sent there.

    Raises:
        CaptionError: if `caption` breaks the schema.
        WritingError: if no caption that keeps the schema comes back, or the same one.
    """
    caption.strict()
    messages = [
        _said("system", editing_instructions()),
        _said("user", editing_request(caption.line(), _checked("wish", wish))),
    ]
    schema = caption_schema(layout=True)
    # What the caption leaves out, the model need not write.
    if caption.style_description is None:
        schema["properties"].pop("style_description")
        schema["required"].remove("style_description")
    placed = all(one.bbox is not None for one in caption.compositional_deconstruction.elements)
    if not placed:
        for one in schema["properties"]["compositional_deconstruction"]["properties"]["elements"]["items"]["anyOf"]:
            one["required"].remove("bbox")

    def unchanged(changed: Caption) -> str:
        return "" if differences(caption, changed) else "nothing was changed"

    return settle(
        lambda told: endpoint.ask(told, schema),
        messages,
        endpoint.name,
        unchanged,
        layout=True if placed else None,
        known=[*lint(caption), NO_ELEMENTS],  # to take everything away may be the wish
    )


def describe(image: Image, endpoint: Endpoint) -> Written:
    """Have a picture described by a model that sees pictures; colours are measured from its pixels.

    Args:
        image: Sent there, no larger than `LONGEST_SIDE` and without what its file says beside the pixels: turned as its
            tags say, transparency on white.
        endpoint: Who describes it.

    Raises:
        WritingError: if no caption that keeps the schema comes back.
    """
    pixels = flattened(upright(image))
    shown = pixels.copy()
    shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    shown.info.clear()  # colour profiles and the like, which would be written along
    data = io.BytesIO()
    shown.save(data, format="PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
    request = [
        {"type": "text", "text": describing_request(pixels.size)},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    messages = [_said("system", describing_instructions()), {"role": "user", "content": request}]
    written = settle(lambda told: endpoint.ask(told, caption_schema()), messages, endpoint.name)
    measured = with_measured_colours(written.caption, pixels)
    return Written(measured, written.by, (*written.notes, "colours were measured from the pixels"))


def differences(before: Caption, after: Caption) -> list[str]:
    """What is another in one caption than in the other, a line each, for people."""
    return list(_different(before.data(), after.data(), ""))


def _different(before: Any, after: Any, path: str) -> list[str]:
    if before == after:
        return []
    name = path.removeprefix("compositional_deconstruction.") or "the caption"
    if isinstance(before, dict) and isinstance(after, dict):
        lines = []
        for key in dict.fromkeys((*before, *after)):
            inner = f"{path}.{key}" if path else key
            if key not in after:
                lines.append(f"{inner.removeprefix('compositional_deconstruction.')}: taken out")
            elif key not in before:
                lines.append(f"{inner.removeprefix('compositional_deconstruction.')}: added {_shown(after[key])}")
            else:
                lines += _different(before[key], after[key], inner)
        return lines
    if path.endswith("elements") and isinstance(before, list) and isinstance(after, list):
        return _different_elements(before, after, path)
    old, new = _shown(before), _shown(after)
    if old == new:  # cut off before they differ
        old, new = as_json(before), as_json(after)
    return [f"{name}: {old} became {new}"]


def _different_elements(before: list[Any], after: list[Any], path: str) -> list[str]:
    """Elements in pairs: first those that are the same, then those in the same place among what is left."""
    came = list(after)
    left: list[tuple[int, Any]] = []
    for number, one in enumerate(before):  # equal ones are counted: of two, one may be gone
        if one in came:
            came.remove(one)
        else:
            left.append((number, one))
    lines: list[str] = []
    for (number, old), new in zip(left, came, strict=False):
        lines += _different(old, new, f"{path}[{number}]")
    lines += [f"an element was taken out: {_shown(one)}" for _, one in left[len(came) :]]
    lines += [f"an element was added: {_shown(one)}" for one in came[len(left) :]]
    if not lines:
        lines.append("the elements are in another order")
    return lines


def _shown(value: Any) -> str:
    text = as_json(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _checked(name: str, text: str) -> str:
    if not text.strip():
        raise CaptionError(f"`{name}` is empty: say what the picture is to show.")
    if len(text) > MOST_WORDS:
        raise CaptionError(f"`{name}` has {len(text)} characters: give at most {MOST_WORDS}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CaptionError(f"`{name}` holds what is no character at place {error.start + 1}: leave it out.") from None
    return text.strip()

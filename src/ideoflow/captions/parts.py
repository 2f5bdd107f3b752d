"""The parts of a caption as pydantic models: what is built from them is always right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from .boxes import RANGE, WHOLE
from .breach import Breach, CaptionError
from .colours import COLOUR
from .reading import plain
from .rules import Walk
from .schema import MAX_ELEMENT_COLOURS, MAX_STYLE_COLOURS, encodes


def _whole_characters(text: str) -> str:
    if not encodes(text):
        raise ValueError("holds half of a surrogate pair, which is no character: write the whole character.")
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
Colour = Annotated[str, StringConstraints(pattern=f"^{COLOUR.pattern}$")]
Edge = Annotated[StrictInt, Field(ge=0, le=RANGE)]
Box = tuple[Edge, Edge, Edge, Edge]


class Part(BaseModel):
    """A part of a caption, or a whole one.

    Raises:
        CaptionError: listing, in the words of `Caption.check`, what breaks the schema.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    _part: ClassVar[str]

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _refusal(type(self).__name__, _breaches(self._part, values, error)) from None


def _breaches(part: str, values: dict[str, Any], error: ValidationError) -> list[Breach]:
    """What is wrong with the values of a part; what pydantic found where the checks of captions find nothing."""
    given = {"type": "text" if "text" in values else "obj", **values} if part == "element" else values
    try:
        found = Walk(plain({key: value for key, value in given.items() if value is not None}), part).breaches
    except CaptionError as unreadable:
        return [Breach("", str(unreadable).removesuffix("."), "give strings, numbers and lists")]
    wrong = [breach for breach in found if not breach.message.startswith("has its keys in the order")]
    return wrong or [
        Breach(".".join(map(str, one["loc"])), f"cannot be {one['input']!r:.60}", one["msg"]) for one in error.errors()
    ]


def _refusal(name: str, breaches: Sequence[Breach]) -> CaptionError:
    listed = [str(breach).replace("the caption: ", "", 1) for breach in breaches]
    if len(listed) == 1:
        return CaptionError(f"{name}: {listed[0]}.", list(breaches))
    return CaptionError("\n  ".join([f"{name} breaks the schema in {len(listed)} places:", *listed]), list(breaches))


class _Placed(Part):
    _part: ClassVar[str] = "element"

    @model_validator(mode="after")
    def _box_encloses_something(self) -> Self:
        box: Box | None = getattr(self, "bbox", None)
        if box is not None and not (box[0] < box[2] and box[1] < box[3]):
            raise ValueError(f"`bbox` is {list(box)}: expected y_min < y_max and x_min < x_max, y first.")
        if box is not None and list(box) == WHOLE:
            raise ValueError(f"`bbox` is {list(box)}, all of the picture in shares of it: write [0, 0, 1000, 1000].")
        return self


class ObjectElement(_Placed):
    """A thing in the picture.

    Attributes:
        bbox: `(y_min, x_min, y_max, x_max)` in thousandths of the picture's height and width, y first.
        desc: What it looks like.
        color_palette: At most five colours, upper-case `#RRGGBB`.
    """

    model_config = ConfigDict(json_schema_extra={"required": ["type", "desc"]})  # a default only for who builds one

    type: Literal["obj"] = "obj"
    bbox: Box | None = None
    desc: Text
    color_palette: Annotated[list[Colour], Field(min_length=1, max_length=MAX_ELEMENT_COLOURS)] | None = None


class TextElement(_Placed):
    """Lettering in the picture.

    Attributes:
        bbox: As an object's.
        text: The letters to draw.
        desc: How they look.
        color_palette: As an object's.
    """

    model_config = ConfigDict(json_schema_extra={"required": ["type", "text", "desc"]})

    type: Literal["text"] = "text"
    bbox: Box | None = None
    text: Text
    desc: Text
    color_palette: Annotated[list[Colour], Field(min_length=1, max_length=MAX_ELEMENT_COLOURS)] | None = None


Element = Annotated[ObjectElement | TextElement, Field(discriminator="type")]


class Composition(Part):
    """What is where: the background, then the elements from back to front."""

    _part: ClassVar[str] = "composition"

    background: Text
    elements: list[Element]


class Style(Part):
    """How the picture is made: either a photo or a style of art.

    Attributes:
        photo: Camera and lens, for photographs.
        art_style: The style, for anything else.
        color_palette: At most 16 colours, upper-case `#RRGGBB`.
    """

    _part: ClassVar[str] = "style"

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": [kind], "properties": {kind: {"type": "string"}}} for kind in ("photo", "art_style")]
        }
    )

    aesthetics: Text
    lighting: Text
    photo: Text | None = None
    medium: Text
    art_style: Text | None = None
    color_palette: Annotated[list[Colour], Field(min_length=1, max_length=MAX_STYLE_COLOURS)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.photo is None) == (self.art_style is None):
            given = "neither" if self.photo is None else "both"
            raise ValueError(f"a style has exactly one of `photo` and `art_style`; got {given}.")
        return self

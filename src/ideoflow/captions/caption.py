"""`Caption`: the schema as pydantic models for what is right, beside the data as given for what is not."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StrictInt, StringConstraints, model_validator

from .schema import BOX_RANGE, COLOUR, MAX_ELEMENT_COLOURS, MAX_STYLE_COLOURS, Breach, Repeated, Walk, in_order


class CaptionError(ValueError):
    """A caption that cannot be read, or that was to be strict and breaks the schema.

    Attributes:
        breaches: Every breach of the schema; empty when the caption could not be read at all.
    """

    def __init__(self, message: str, breaches: list[Breach] | None = None) -> None:
        super().__init__(message)
        self.breaches = breaches or []


class CaptionWarning(UserWarning):
    """A prompt that the model will take, but that is unlike what it was trained on."""


Colour = Annotated[str, StringConstraints(pattern=f"^{COLOUR.pattern}$")]
Edge = Annotated[StrictInt, Field(ge=0, le=BOX_RANGE)]
Box = tuple[Edge, Edge, Edge, Edge]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Placed(_Model):
    @model_validator(mode="after")
    def _box_encloses_something(self) -> Self:
        box: Box | None = getattr(self, "bbox", None)
        if box is not None and not (box[0] < box[2] and box[1] < box[3]):
            raise ValueError(f"`bbox` is {list(box)}: expected y_min < y_max and x_min < x_max, y first.")
        return self


class ObjectElement(_Placed):
    """A thing in the picture.

    Attributes:
        bbox: `(y_min, x_min, y_max, x_max)` in thousandths of the picture's height and width, y first.
        desc: What it looks like.
        color_palette: At most five colours, upper-case `#RRGGBB`.
    """

    type: Literal["obj"] = "obj"
    bbox: Box | None = None
    desc: str
    color_palette: Annotated[list[Colour], Field(min_length=1, max_length=MAX_ELEMENT_COLOURS)] | None = None


class TextElement(_Placed):
    """Lettering in the picture.

    Attributes:
        bbox: As an object's.
        text: The letters to draw.
        desc: How they look.
        color_palette: As an object's.
    """

    type: Literal["text"] = "text"
    bbox: Box | None = None
    text: str
    desc: str
    color_palette: Annotated[list[Colour], Field(min_length=1, max_length=MAX_ELEMENT_COLOURS)] | None = None


Element = Annotated[ObjectElement | TextElement, Field(discriminator="type")]


class Composition(_Model):
    """What is where: the background, then the elements from back to front."""

    background: str
    elements: list[Element]


class Style(_Model):
    """How the picture is made: either a photo or a style of art.

    Attributes:
        photo: Camera and lens, for photographs.
        art_style: The style, for anything else.
        color_palette: At most 16 colours, upper-case `#RRGGBB`.
    """

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["photo"]}, {"required": ["art_style"]}]})

    aesthetics: str
    lighting: str
    photo: str | None = None
    medium: str
    art_style: str | None = None
    color_palette: Annotated[list[Colour], Field(min_length=1, max_length=MAX_STYLE_COLOURS)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.photo is None) == (self.art_style is None):
            given = "neither" if self.photo is None else "both"
            raise ValueError(f"a style has exactly one of `photo` and `art_style`; got {given}.")
        return self


class Caption(_Model):
    """What to draw, in the schema that the model was trained on.

    Built from its parts, a caption is always right. Parsed, it may break the schema: then `check` lists the breaches,
    the attributes hold the data as given, and `line` still writes it, for the model takes any string.
    """

    high_level_description: str | None = None
    style_description: Style | None = None
    compositional_deconstruction: Composition

    _given: dict[str, Any] | None = PrivateAttr(default=None)  # what was parsed, when it breaks the schema

    @classmethod
    def parse(cls, source: str | os.PathLike[str] | Mapping[str, Any] | Caption) -> Caption:
        """Read a caption, right or wrong.

        Args:
            source: A JSON string, the path of a file that holds one, a mapping, or a caption.

        Raises:
            CaptionError: if it is no JSON object. Plain text is not: see `from_text`.
            OSError: if the file cannot be read.
            TypeError: if `source` is of another type.
        """
        if isinstance(source, Caption):
            return source
        if isinstance(source, os.PathLike):
            return cls._of_data(_read_json(_read_file(Path(source)), str(source)))
        if isinstance(source, str):
            if not source.lstrip("\ufeff \t\r\n").startswith("{") and _is_file(source):
                return cls._of_data(_read_json(_read_file(Path(source)), source))
            return cls._of_data(_read_json(source, "the caption"))
        if isinstance(source, Mapping):
            return cls._of_data(deepcopy(dict(source)))
        raise TypeError(f"`source` is a {type(source).__name__}: give a JSON string, a path, a mapping or a Caption.")

    @classmethod
    def from_text(cls, text: str) -> Caption:
        """Wrap plain text into a minimal caption: it becomes the description of the whole and of a single element.

        Raises:
            CaptionError: if there is no text.
        """
        text = " ".join(text.split())
        if not text:
            raise CaptionError("`text` is empty: describe a picture.")
        composition = Composition(background="", elements=[ObjectElement(desc=text)])
        return cls(high_level_description=text, compositional_deconstruction=composition)

    @classmethod
    def _of_data(cls, data: Any) -> Caption:
        if not isinstance(data, dict):
            shown = json.dumps(data, default=repr)[:60]
            raise CaptionError(f"a caption is a JSON object, not {shown}; for plain text see Caption.from_text.")
        if not Walk(data).breaches:
            return cls.model_validate(data)
        caption = cls.model_construct(**{key: data[key] for key in cls.model_fields if key in data})
        caption._given = data
        return caption

    def data(self) -> dict[str, Any]:
        """The caption as plain JSON data: in canonical order when it keeps the schema, otherwise as given."""
        if self._given is not None:
            return deepcopy(self._given)
        return in_order(self.model_dump(mode="json", exclude_none=True))

    def check(self) -> list[Breach]:
        """Every breach of the schema, each with its place and its fix; none for a caption built from its parts."""
        return [] if self._given is None else Walk(self._given).breaches

    def repair(self) -> Caption:
        """The caption with all certain breaches mended: order of keys, form of colours, corners of boxes, empty fields.

        What only its author can know is left for `check` to list. The caption itself does not change.
        """
        return self if self._given is None else self._of_data(Walk(deepcopy(self._given)).repaired)

    def strict(self) -> Caption:
        """The caption itself.

        Raises:
            CaptionError: listing all breaches, if there are any.
        """
        if breaches := self.check():
            listed = "\n".join(f"  {breach}" for breach in breaches)
            raise CaptionError(f"the caption breaks the schema in {len(breaches)} places:\n{listed}", breaches)
        return self

    def line(self) -> str:
        """The canonical line: no spaces, keys in order, characters unescaped; values as they are, right or wrong."""
        return json.dumps(in_order(self.data()), separators=(",", ":"), ensure_ascii=False)


def prompt_line(prompt: str | Mapping[str, Any] | Caption, *, strict: bool = False) -> str:
    """The string that the text encoder reads for a prompt.

    A string is left as it is, byte for byte, whether JSON or plain text. A mapping or a caption gives its canonical
    line. Anything unlike what the model was trained on draws a `CaptionWarning`.

    Args:
        prompt: Plain text, a JSON string, a mapping or a `Caption`.
        strict: Refuse what breaks the schema instead of warning.

    Raises:
        CaptionError: if the prompt cannot be encoded, or `strict` and it breaks the schema.
        TypeError: if it is of another type.
    """
    if isinstance(prompt, str):
        line, problem = prompt, _problem_of_string(prompt, strict)
    else:
        caption = Caption.parse(prompt)
        line, problem = caption.line(), _problem(caption, strict)
    try:
        line.encode()
    except UnicodeEncodeError as error:
        raise CaptionError(f"the prompt holds half of a surrogate pair at character {error.start}.") from None
    if problem:
        warnings.warn(problem, CaptionWarning, stacklevel=2)
    return line


def _problem(caption: Caption, strict: bool) -> str | None:
    if strict:
        caption.strict()
    breaches = caption.check()
    if not breaches:
        return None
    first = "; ".join(str(breach) for breach in breaches[:3])
    more = f"; and {len(breaches) - 3} more" if len(breaches) > 3 else ""
    return f"the caption breaks the schema that the model was trained on: {first}{more} (Caption.check lists all)"


def _problem_of_string(prompt: str, strict: bool) -> str | None:
    if not prompt.lstrip("\ufeff \t\r\n").startswith("{"):
        if strict:
            raise CaptionError(f"the prompt {prompt[:40]!r} is plain text, not a JSON caption: see Caption.from_text.")
        return (
            f"the prompt {prompt[:40]!r} is plain text; the model was trained on JSON captions: see Caption.from_text"
        )
    try:
        caption = Caption._of_data(_read_json(prompt, "the prompt"))
    except CaptionError as error:
        if strict:
            raise
        return str(error)
    if problem := _problem(caption, strict):
        return problem
    if prompt != caption.line():
        return "the prompt is a caption but not in its canonical form: Caption.parse(prompt).line() gives that"
    return None


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptionError(f"{path} is no UTF-8 text: byte {error.start} is wrong.") from None


def _is_file(text: str) -> bool:
    try:
        return len(text) < 1024 and Path(text).is_file()
    except (OSError, ValueError):  # too long a name, or a zero byte
        return False


def _read_json(text: str, source: str) -> Any:
    """Parse JSON, keeping note of repeated keys.

    Raises:
        CaptionError: with the place, if it is no JSON.
    """

    def refuse(message: str) -> NoReturn:
        hint = "" if text.lstrip().startswith("{") else " Plain text is allowed too: wrap it with Caption.from_text."
        raise CaptionError(f"{source} is no JSON: {message}.{hint}") from None

    try:
        return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        refuse(f"{error.msg} at line {error.lineno}, column {error.colno}")
    except RecursionError:
        refuse("it is nested too deeply")
    except ValueError:  # a whole number of thousands of digits
        refuse("a number in it is too long")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    return plain if len(plain) == len(pairs) else Repeated(pairs)


def _constant(name: str) -> float:
    return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}[name]

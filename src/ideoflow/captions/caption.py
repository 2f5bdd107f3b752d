"""`Caption`: the schema as pydantic models for what is right, beside the data as given for what is not."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictInt,
    StringConstraints,
    model_validator,
)

from .schema import (
    BOX_RANGE,
    COLOUR,
    MAX_ELEMENT_COLOURS,
    MAX_STYLE_COLOURS,
    Breach,
    Repeated,
    Walk,
    encodes,
    in_order,
    write,
)

MAX_DEPTH = 64  # levels of nesting; the schema has six, and Python's own limit is far off


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


def _whole_characters(text: str) -> str:
    if not encodes(text):
        raise ValueError("holds half of a surrogate pair, which is no character: write the whole character.")
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
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


class Composition(_Model):
    """What is where: the background, then the elements from back to front."""

    background: Text
    elements: list[Element]


class Style(_Model):
    """How the picture is made: either a photo or a style of art.

    Attributes:
        photo: Camera and lens, for photographs.
        art_style: The style, for anything else.
        color_palette: At most 16 colours, upper-case `#RRGGBB`.
    """

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


class Caption(_Model):
    """What to draw, in the schema that the model was trained on.

    Built from its parts, a caption is always right. Parsed, it may break the schema: then `check` lists the breaches,
    the attributes hold the data as given, and `line` still writes it, for the model takes any string.
    """

    high_level_description: Text | None = None
    style_description: Style | None = None
    compositional_deconstruction: Composition

    _given: dict[str, Any] | None = PrivateAttr(default=None)  # what was parsed, when it breaks the schema

    @classmethod
    def parse(cls, source: str | os.PathLike[str] | Mapping[str, Any] | Caption) -> Caption:
        """Read a caption, right or wrong.

        Args:
            source: A JSON string, the path of a file that holds one, a mapping, or a caption.

        Raises:
            CaptionError: if it is no JSON object (plain text is none: see `from_text`), holds what JSON cannot, or is
                nested more than 64 levels deep.
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
            return cls._of_data(_read_json(source, "the caption", "Nor is it the name of a file. "))
        if isinstance(source, Mapping):
            return cls._of_data(_plain(source))
        raise TypeError(f"`source` is a {type(source).__name__}: give a JSON string, a path, a mapping or a Caption.")

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
    def _of_data(cls, data: Any) -> Self:
        if not isinstance(data, dict):
            shown = json.dumps(data, default=repr)[:60]
            raise CaptionError(f"a caption is a JSON object, not {shown}; for plain text see Caption.from_text.")
        if not Walk(data).breaches:
            return cls.model_validate(data)
        caption = cast(Self, cls.model_construct(**{key: data[key] for key in cls.model_fields if key in data}))
        caption._given = data
        return caption

    def data(self) -> dict[str, Any]:
        """The caption as plain JSON data: in canonical order when it keeps the schema, otherwise as given."""
        if self._given is not None:
            return deepcopy(self._given)
        return in_order(_plain(self.model_dump(exclude_none=True, warnings=False)))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with the given top-level keys replaced, or left out where None; it is checked like a parsed caption.

        Args:
            update: New values by key, as parts or as plain data.
            deep: Without effect: the copy shares nothing with the caption.
        """
        changed = {**self.data(), **(update or {})}
        return type(self)._of_data(
            _plain(in_order({key: value for key, value in changed.items() if value is not None}))
        )

    def check(self) -> list[Breach]:
        """Every breach of the schema in the schema's order, each with its place and its fix."""
        return Walk(self.data()).breaches

    def repair(self) -> Self:
        """The caption with all certain breaches mended: order of keys, form of colours, corners of boxes, empty fields.

        What only its author can know is left for `check` to list. The caption itself does not change.
        """
        walk = Walk(self.data())
        return self._of_data(walk.repaired) if any(breach.certain for breach in walk.breaches) else self

    def strict(self) -> Self:
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
        return write(in_order(self.data()))


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
    elif isinstance(prompt, Mapping | Caption):
        caption = Caption.parse(prompt)
        line, problem = caption.line(), _problem(caption, strict)
    else:
        raise TypeError(f"`prompt` is a {type(prompt).__name__}: give a string, a mapping or a Caption.")
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


def _read_json(text: str, source: str, hint: str = "") -> Any:
    """Parse JSON, keeping note of repeated keys.

    Raises:
        CaptionError: with the place, if it is no JSON.
    """
    text = text.removeprefix("\ufeff")

    def refuse(message: str) -> NoReturn:
        more = (
            ""
            if text.lstrip().startswith("{")
            else f" {hint}Plain text is allowed too: wrap it with Caption.from_text."
        )
        raise CaptionError(f"{source} is no JSON: {message}.{more}") from None

    try:
        data = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        # Before Python 3.13 the parser's own words for this, the commonest slip, name the quotes of the next key.
        trailing = text[: error.pos].rstrip().endswith(",") and text[error.pos :].lstrip()[:1] in ("}", "]")
        message = "a comma stands before the closing bracket" if trailing else error.msg
        refuse(f"{message} at line {error.lineno}, column {error.colno}")
    except RecursionError:
        refuse("it is nested too deeply")
    except ValueError:  # a whole number of thousands of digits
        refuse("a number in it is too long")
    if _depth(data) > MAX_DEPTH:
        raise CaptionError(f"{source} is nested {_depth(data)} levels deep, where {MAX_DEPTH} are allowed.")
    return data


def _plain(data: Any) -> Any:
    """JSON data of its own from Python's: mappings, caption parts and arrays become plain, tuples become lists.

    Raises:
        CaptionError: if it holds what JSON cannot.
    """
    try:
        text = json.dumps(data, default=_plain_value)
    except RecursionError:
        raise CaptionError("the caption is nested too deeply.") from None
    except (TypeError, ValueError) as error:  # another type, a loop, a whole number of thousands of digits
        raise CaptionError(f"the caption holds what JSON cannot: {error}.") from None
    return _read_json(text, "the caption")


def _plain_value(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_none=True, warnings=False)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # boxes computed with numpy or torch
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is no JSON value")


def _depth(data: Any) -> int:
    """Levels of nesting; without recursion, for it guards against too many."""
    depth, level = 0, [data]
    while level:
        depth += 1
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _held(outer)]
    return depth


def _held(outer: dict[str, Any] | list[Any]) -> list[Any]:
    if isinstance(outer, Repeated):
        return [*outer.values(), *(value for values in outer.earlier.values() for value in values)]
    return list(outer.values()) if isinstance(outer, dict) else outer


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    return plain if len(plain) == len(pairs) else Repeated.of_pairs(pairs)

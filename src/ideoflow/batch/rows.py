"""Rows of a file of captions, read one by one: what each asks to be drawn, or why it cannot be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from ..captions.sent_prompt import read_prompt
from ..captions.writing.written import Writer
from ..checks import printable
from ..presets import MAX_STEPS, find_preset
from ..sizes import parse_size

MOST_BYTES = 4 * 2**20  # of a row; the longest caption that a model takes has some ten thousand characters
MOST_PICTURES = 10_000  # of a row
SEEDS = 2**64  # how many a torch generator takes
OWN_SEEDS = 2**32  # of those made of a row: programs that read JSON numbers as doubles keep them
SHOWN = 500  # characters of a row that is rejected


class RowSettings(BaseModel):
    """A row that is an object with settings of its own; whatever it leaves out, the command's options say."""

    model_config = ConfigDict(extra="forbid", strict=True)

    caption: dict[str, Any] | str = Field(validation_alias=AliasChoices("caption", "prompt"))
    size: str | None = None
    preset: str | None = None
    steps: int | None = Field(None, ge=1, le=MAX_STEPS, validation_alias=AliasChoices("steps", "num_inference_steps"))
    guidance: float | None = Field(
        None, ge=-1000, le=1000, allow_inf_nan=False, validation_alias=AliasChoices("guidance", "guidance_scale")
    )
    seed: int | None = Field(None, ge=0, lt=SEEDS)
    n: int | None = Field(None, ge=1, le=MOST_PICTURES)


@dataclass(frozen=True)
class Defaults:
    """What the command says for rows that do not say it themselves.

    Attributes:
        size: `(width, height)` in pixels.
        preset: Name of the preset.
        steps: Denoising steps; None for the preset's.
        guidance: Guidance of all steps; None for the preset's.
        seed: What seeds of rows without one are made of, beside the row.
        pictures: Pictures of each row.
        pixel_limit: Pixels that a picture may have.
    """

    size: tuple[int, int]
    preset: str
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    pictures: int = 1
    pixel_limit: int = 2048 * 2048


@dataclass(frozen=True)
class Order:
    """One picture to draw, with nothing left open.

    Attributes:
        line: Number of its row in the input, from 1.
        caption: As the model reads it.
        width: Pixels.
        height: Pixels.
        preset: Name of the preset.
        steps: Denoising steps.
        guidance: Guidance of all steps; None for the preset's.
        seed: Of its noise.
        notes: What was mended in the caption, and what breaks the schema, in words.
    """

    line: int
    caption: str
    width: int
    height: int
    preset: str
    steps: int
    guidance: float | None
    seed: int
    notes: tuple[str, ...] = ()

    def address(self, drawn_by: Mapping[str, Any]) -> str:
        """The content address: a digest of all that the picture depends on, 40 hexadecimal digits.

        Args:
            drawn_by: What tells models and adapters from others, as `drawing.drawn_by` gives it.
        """
        own = [self.caption, self.width, self.height, self.preset, self.steps, self.guidance, self.seed]
        return _digest([own, dict(drawn_by)])[:40]

    def about(self) -> dict[str, Any]:
        """What the index says of it."""
        return {
            "line": self.line,
            "caption": self.caption,
            "width": self.width,
            "height": self.height,
            "preset": self.preset,
            "steps": self.steps,
            "guidance": self.guidance,
            "seed": self.seed,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Rejected:
    """A row of which nothing, or a picture that, cannot be drawn.

    Attributes:
        line: Number of the row in the input, from 1.
        reason: Why, in words.
        row: How the row begins.
    """

    line: int
    reason: str
    row: str


@dataclass(frozen=True)
class Row:
    """What a row asks for.

    Attributes:
        line: Its number in the input, from 1.
        end: Bytes of the input up to its end.
        orders: Its pictures; none where it is rejected.
        rejected: Why nothing of it can be drawn, if nothing can.
        text: How it begins.
    """

    line: int
    end: int
    orders: tuple[Order, ...]
    rejected: Rejected | None
    text: str


@dataclass(frozen=True)
class RowReader:
    """How rows are read.

    Attributes:
        defaults: What rows leave out.
        write: Makes captions of words; None to put them into minimal ones.
        strict: Whether captions that break the schema are rejected instead of mended.
        drop_unknown: Whether keys of captions that are not the schema's are left out.
    """

    defaults: Defaults
    write: Writer | None = None
    strict: bool = False
    drop_unknown: bool = False

    def read(self, file: IO[bytes]) -> Iterator[Row]:
        """The rows of a file, one after another; empty lines are none."""
        for line, end, data in lines(file):
            text = data.decode("utf-8", "replace")[:SHOWN]
            try:
                yield Row(line, end, self.orders(line, data), None, text)
            except ValueError as error:
                yield Row(line, end, (), Rejected(line, printable(error), text), text)

    def orders(self, line: int, data: bytes) -> tuple[Order, ...]:
        """The pictures that a row asks for.

        Raises:
            ValueError: if it asks for nothing that can be drawn, in words for whoever wrote it.
        """
        settings = _settings(data)
        own = self.defaults
        width, height = parse_size(settings.size, "`size`") if settings.size is not None else own.size
        if width * height > own.pixel_limit:
            raise ValueError(f"`size` {width}x{height} has more than {own.pixel_limit} pixels (--pixel-limit).")
        preset, steps, guidance = own.preset, own.steps, own.guidance
        if settings.preset is not None:  # another preset brings its own steps
            preset, steps = _preset(settings.preset), None
        steps = settings.steps or steps or find_preset(preset).steps
        guidance = guidance if settings.guidance is None else settings.guidance
        read = read_prompt(settings.caption, drop_unknown=self.drop_unknown, write=self.write, size=(width, height))
        faults = read.warnings if read.was != "written" else read.warnings[1:]  # the first says by whom
        if self.strict and faults:
            raise ValueError(f"the caption breaks the schema (--strict): {'; '.join(faults)}")
        seed = settings.seed
        if seed is None:
            seed = int(_digest([read.line, width, height, own.seed])[:16], 16) % OWN_SEEDS
        return tuple(
            Order(line, read.line, width, height, preset, steps, guidance, (seed + i) % SEEDS, read.warnings)
            for i in range(settings.n or own.pictures)
        )


def lines(file: IO[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """`(number, bytes up to its end, text)` of each line that is not empty; of a line without end, its beginning."""
    number = end = 0
    while data := file.readline(MOST_BYTES + 1):
        number += 1
        end += len(data)
        kept = data
        while len(data) > MOST_BYTES and not data.endswith(b"\n"):  # read on to its end, and keep nothing of that
            data = file.readline(MOST_BYTES + 1)
            end += len(data)
        if number == 1:
            kept = kept.removeprefix(b"\xef\xbb\xbf")
        if kept.strip():
            yield number, end, kept


def _settings(data: bytes) -> RowSettings:
    """A row's caption and settings."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"the row has more than {MOST_BYTES // 2**20} MiB: no captions have.")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise ValueError(f"the row is not UTF-8 text: byte {error.start} is wrong.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the row is no JSON: {error.msg} at character {error.pos + 1}.") from None
    except RecursionError:
        raise ValueError("the row is nested too deeply.") from None
    if isinstance(value, str):
        return RowSettings.model_validate({"caption": value})
    if not isinstance(value, dict):
        raise ValueError(
            f"the row is {_short(value)}: give a caption (an object), words (a string), or an object with `caption`."
        )
    if not {"caption", "prompt"} & value.keys():
        return RowSettings.model_validate({"caption": value})
    try:
        return RowSettings.model_validate(value)
    except ValidationError as error:
        raise ValueError("; ".join(map(_told, error.errors()[:3]))) from None


def _told(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"][:1])
    if error["type"] == "extra_forbidden":
        known = ", ".join(RowSettings.model_fields)
        return f"`{name}` is unknown: beside a caption, a row may have {known}"
    given = f"`{name}` is {_short(error['input'])}" if name else "the row cannot be read"
    return f"{given}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def _preset(name: str) -> str:
    try:
        return find_preset(name).name
    except ValueError as error:
        raise ValueError(str(error).replace(", or pass a Preset", "")) from None


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the row has the key {key[:40]!r} twice in one object.")
        found[key] = value
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, bytes) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _digest(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()

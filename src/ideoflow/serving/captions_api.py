"""The routes of captions, for editors: check, repair, write and describe, as `ideoflow caption` does."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from ..captions import Breach, Caption, CaptionError
from ..captions.reading import data_of, find
from ..captions.sent_prompt import REBUILT, check_characters
from ..captions.unquoted import lost_marks, restore
from ..captions.writing import WritingError, Written, describe, differences, edit
from ..images import ImageError, flattened, open_image, plain_errors, upright
from .api_errors import ApiError, invalid_caption, responses
from .job_settings import MOST_TEXT, Given, read_size, wrong
from .jobs import Jobs
from .waiting import TheJobs
from .written_prompts import in_turn

MOST_PIXELS = 2**26  # of a picture that is described: a small file may unpack to a large one


async def _no_query(request: Request) -> None:
    """Refuse parameters of the address, which would do nothing: what is asked for stands in the body."""
    if name := next(iter(request.query_params), None):
        told = f"`{name[:40]}` is a parameter of the address, which has none here: put it into the body."
        raise ApiError(400, told, code="invalid_value", param=name[:40])


router = APIRouter(prefix="/v1/captions", tags=["captions"], dependencies=[Depends(_no_query)])


class CaptionBody(BaseModel):
    """A caption to look at."""

    model_config = ConfigDict(extra="forbid", strict=True)

    caption: Given = Field(description="A caption as a JSON object, or the text that holds one.")


class RepairBody(CaptionBody):
    """A caption to repair."""

    drop_unknown: bool = Field(False, description="Leave out all keys that are not the schema's.")


class BreachView(BaseModel):
    """One place where a caption leaves the schema."""

    path: str = Field(
        description="Such as compositional_deconstruction.elements[2].bbox; empty for the caption itself."
    )
    message: str = Field(description="What stands there, and what is allowed.")
    fix: str = Field(description="What to do about it.")
    repairable: bool = Field(description="Whether /v1/captions/repair does it, for nothing else can have been meant.")


class CaptionCheck(BaseModel):
    """What is said of a caption."""

    valid: bool = Field(description="Whether it keeps the schema as it stands.")
    breaches: list[BreachView]
    caption: dict[str, Any] | None = Field(description="The caption as it was read; null where none can be.")
    tokens: int | None = Field(description="Tokens that the model reads of it; null where that is not known.")


class CaptionRepair(BaseModel):
    """A repaired caption."""

    caption: dict[str, Any]
    line: str = Field(description="The same as the line that the model reads.")
    changes: list[str] = Field(description="What was done, and where.")
    breaches: list[BreachView] = Field(description="What is left, which only the caption's author can know.")


class WriteBody(BaseModel):
    """What a caption is to be written of."""

    model_config = ConfigDict(extra="forbid", strict=True)

    words: str = Field(
        min_length=1,
        max_length=MOST_TEXT,
        description="What the picture is to show, or what is to change in `caption`.",
    )
    caption: Given | None = Field(None, description="The caption that is to be changed; left out for a new one.")
    size: str | None = Field(None, description='"WxH" of the picture, for its proportions; not with `caption`.')


class EditBody(BaseModel):
    """A caption that is to be changed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    caption: Given = Field(description="A caption as a JSON object, or the text that holds one.")
    wish: str = Field(min_length=1, max_length=MOST_TEXT, description="What is to change in it.")


class DescribeBody(BaseModel):
    """A picture that is to be described."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str = Field(
        min_length=1,
        description="The picture's file of up to 50 MiB in base64, alone or as a `data:` URL.",
    )


class WrittenCaption(BaseModel):
    """A caption that was written."""

    caption: dict[str, Any]
    line: str = Field(description="The same as the line that the model reads.")
    by: str = Field(description="Who wrote it.")
    notes: list[str] = Field(description="What was not understood, chosen, or mended.")
    changes: list[str] = Field(description="What is another than in the caption that was to be changed.")


@router.post("/write", response_model=WrittenCaption, responses=responses(429, 502, 503))
async def write(request: Request, body: WriteBody, jobs: TheJobs) -> Any:
    """Write a caption of words, or change one as the words wish; nothing is drawn or kept.

    By the language model that the server was given, else by the bundled model's grammar or the model's own prompt
    enhancer, which write new captions alone.
    """
    if body.caption is None:
        return await in_turn(request, partial(_write, body.words, body.size, jobs))
    if body.size is not None:
        raise wrong("size", "`size` has no effect on a caption that is changed: leave it out.")
    return await in_turn(request, partial(_edit, body.caption, body.words, request, "words"))


@router.post("/edit", response_model=WrittenCaption, responses=responses(429, 502))
async def edit_caption(request: Request, body: EditBody) -> Any:
    """Change a caption as is wished, everything else in it kept, by the language model that the server was given."""
    return await in_turn(request, partial(_edit, body.caption, body.wish, request, "wish"))


@router.post("/describe", response_model=WrittenCaption, responses=responses(429, 502))
async def describe_picture(request: Request, body: DescribeBody) -> Any:
    """Describe a picture as a caption, by the language model that the server was given; colours are measured."""
    return await in_turn(request, partial(_describe, body.image, request))


@router.post("/check", response_model=CaptionCheck, responses=responses())
async def check(request: Request, body: CaptionBody) -> Any:
    """List every place where a caption leaves the schema."""
    return await run_in_threadpool(_check, body.caption, request.app.state.jobs)


@router.post("/repair", response_model=CaptionRepair, responses=responses())
async def repair(body: RepairBody) -> Any:
    """Mend what can mean but one thing; words become a minimal caption."""
    return await run_in_threadpool(_repair, body.caption, body.drop_unknown)


def _check(given: str | dict[str, Any], jobs: Jobs | None) -> CaptionCheck:
    try:
        caption, slips = _read(given)
    except CaptionError as error:
        return CaptionCheck(valid=False, breaches=[_whole(str(error))], caption=None, tokens=None)
    if caption is None:
        wrapped = "is plain text, and the model was trained on JSON captions"
        breach = Breach("", wrapped, "wrap it", certain=True)
        return CaptionCheck(valid=False, breaches=_views([breach]), caption=None, tokens=None)
    breaches = [*slips, *caption.check()]
    tokens = jobs.count_tokens(caption.line()) if jobs is not None else None
    return CaptionCheck(valid=not breaches, breaches=_views(breaches), caption=caption.data(), tokens=tokens)


def _repair(given: str | dict[str, Any], drop_unknown: bool) -> CaptionRepair:
    try:
        caption, slips = _read(given)
        if caption is None:
            wrapped = Caption.from_text(str(given))
            changes = ["the caption: wrapped plain text into a minimal caption"]
            return CaptionRepair(caption=wrapped.data(), line=wrapped.line(), changes=changes, breaches=[])
    except CaptionError as error:
        raise invalid_caption(error, "caption") from None
    mended, done = caption.mended(drop_unknown=drop_unknown)
    return CaptionRepair(
        caption=mended.data(),
        line=mended.line(),
        changes=[breach.mended for breach in (*slips, *done)],
        breaches=_views(mended.check()),
    )


def _write(words: str, asked: str | None, jobs: Jobs) -> WrittenCaption:
    size = read_size(asked, jobs.served.default_size) if asked is not None else None
    if jobs.write is None:
        raise _no_language_model("writes captions")
    try:
        return _written(jobs.write(words, size))
    except WritingError as error:
        raise ApiError(502, str(error), code="caption_writer_failed") from None
    except CaptionError as error:
        raise invalid_caption(error, "words") from None


def _edit(given: str | dict[str, Any], wish: str, request: Request, field: str) -> WrittenCaption:
    endpoint = request.app.state.settings.language_model
    if endpoint is None:
        raise _no_language_model("changes captions")
    try:
        before, slips = _read(given)
        if before is None:
            raise CaptionError("the caption is plain text: have a caption written of it first.")
        before, done = before.mended()
        before.strict()
    except CaptionError as error:
        raise invalid_caption(error, "caption") from None
    try:
        written = _written(edit(before, wish, endpoint), before)
    except WritingError as error:
        raise ApiError(502, str(error), code="caption_writer_failed") from None
    except CaptionError as error:
        raise invalid_caption(error, field) from None
    written.notes[:0] = [breach.mended for breach in (*slips, *done)]
    return written


def _describe(text: str, request: Request) -> WrittenCaption:
    endpoint = request.app.state.settings.language_model
    if endpoint is None:
        raise _no_language_model("sees pictures")
    try:
        sent = text.partition(",")[2] if text.startswith("data:") else text
        data = base64.b64decode("".join(sent.split()), validate=True)
        with plain_errors(), open_image(data) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ImageError(f"has {opened.width} x {opened.height} pixels, more than {MOST_PIXELS}")
            image = flattened(upright(opened))
    except (binascii.Error, ValueError) as error:
        told = "is no base64" if isinstance(error, binascii.Error) else str(error).rstrip(".")
        raise ApiError(
            400, f"`image` {told}: give a PNG, JPEG or WebP file.", code="invalid_value", param="image"
        ) from None
    try:
        return _written(describe(image, endpoint))
    except WritingError as error:
        raise ApiError(502, str(error), code="caption_writer_failed") from None


def _written(written: Written, before: Caption | None = None) -> WrittenCaption:
    return WrittenCaption(
        caption=written.caption.data(),
        line=written.caption.line(),
        by=written.by,
        notes=list(written.notes),
        changes=differences(before, written.caption) if before else [],
    )


def _no_language_model(what: str) -> ApiError:
    return ApiError(
        400, f"This server has no language model that {what}: it is started with --endpoint and --llm.",
        code="no_caption_writer",
    )  # fmt: skip


def _read(given: str | dict[str, Any]) -> tuple[Caption | None, list[Breach]]:
    """The caption that is given, None for words; and what its text had lost.

    Raises:
        CaptionError: if it means to be a caption and cannot be read, or holds what JSON or UTF-8 cannot.
    """
    slips: list[Breach] = []
    if not isinstance(given, str):
        caption = Caption.of_found(data_of(given))
    elif lost_marks(given):
        caption = restore(given)
        slips = [Breach("", "has lost its quotation marks", "put them back", certain=True, done=REBUILT)]
    elif found := find(given, "the caption"):
        caption = Caption.of_found(found)
    else:
        return None, []
    check_characters(caption.data(), "the caption")
    return caption, slips


def _whole(message: str) -> BreachView:
    return BreachView(path="", message=message, fix="write a caption as JSON", repairable=False)


def _views(breaches: Sequence[Breach]) -> list[BreachView]:
    return [
        BreachView(path=breach.path, message=breach.message, fix=breach.fix, repairable=breach.certain)
        for breach in breaches
    ]

"""The routes that check and repair captions, for editors: what `ideoflow caption` tells, with places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from ..captions import Breach, Caption, CaptionError
from ..captions.reading import data_of, find
from ..captions.unquoted import lost_marks, restore
from .api_errors import invalid_caption, responses
from .job_settings import Given
from .jobs import Jobs
from .prompts import REBUILT, check_characters

router = APIRouter(prefix="/v1/captions", tags=["captions"])


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

"""The routes of jobs, of their events and pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi import Path as PathParameter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel

from .api_errors import ApiError, responses
from .job import Job
from .job_settings import Order
from .journal import JobEvent
from .preview_files import data_url, thumbnail
from .records import FORMATS, STATUSES, Format, Status, is_job_id
from .waiting import NO_BUFFERING, TheJobs, followed
from .written_prompts import read_in_turn

MEDIA: dict[str, str] = {form: f"image/{form}" for form in FORMATS}
PATIENCE = 3.0  # seconds that a cancellation is waited for, which comes with the next step
MOST_NUMBER = 2**53  # of an event's number

router = APIRouter(prefix="/v1", tags=["jobs"])


class PictureView(BaseModel):
    """A finished picture."""

    index: int
    seed: int
    width: int
    height: int
    format: Format
    bytes: int
    url: str


class Progress(BaseModel):
    """How far a job has come, over all its pictures."""

    step: int
    steps: int
    seconds_left: float | None


class JobError(BaseModel):
    """Why a job failed."""

    type: str
    message: str


class JobView(BaseModel):
    """A job."""

    id: str
    object: Literal["job"]
    status: Status
    created_at: float
    started_at: float | None
    finished_at: float | None
    queue_position: int | None
    progress: Progress
    request: dict[str, Any]
    caption: dict[str, Any] | None
    prompt: str
    revised_prompt: str | None
    prompt_was: str
    warnings: list[str]
    stored: bool
    pictures: list[PictureView]
    error: JobError | None
    links: dict[str, str]


class JobList(BaseModel):
    """A page of jobs, the newest first."""

    data: list[JobView]
    has_more: bool


def job_id(request: Request, id: Annotated[str, PathParameter(description="The job's id.")]) -> str:
    """An id of a job, noted for the log.

    Raises:
        ApiError: with status 404 for what is none.
    """
    if not is_job_id(id):
        raise ApiError(404, f"There is no job {id[:40]!r}.", code="not_found", param="id")
    request.state.job = id
    return id


JobId = Annotated[str, Depends(job_id)]


@router.post(
    "/jobs",
    status_code=202,
    response_model=JobView,
    responses={
        200: {"model": JobView, "description": "The job of this idempotency key."},
        **responses(404, 409, 429, 502, 503),
    },
)
async def submit(
    request: Request,
    order: Order,
    jobs: TheJobs,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> Any:
    """Ask for pictures of one caption. The answer comes at once; the pictures follow."""
    digest = hashlib.sha256(json.dumps(order.model_dump()).encode()).hexdigest() if idempotency_key else None
    job = await run_in_threadpool(jobs.known, order, idempotency_key, digest)
    new = False
    if job is None:
        prompt = await read_in_turn(request, jobs, order.caption, order.size, write=order.edit is None)
        accept = partial(jobs.submit, order, prompt, idempotency_key, digest)
        job, new = await (run_in_threadpool(accept) if order.edit is None else jobs.preparing.run(request, accept))
    request.state.job = job.id
    view = await run_in_threadpool(jobs.view, job)
    return JSONResponse(view, 202 if new else 200, headers={"Location": f"/v1/jobs/{job.id}"})


@router.get("/jobs", response_model=JobList, responses=responses(404, 503))
async def find(
    jobs: TheJobs,
    status: Annotated[str | None, Query(description="Statuses, parted by commas.", max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    after: Annotated[str | None, Query(description="Id of the last job of the page before.")] = None,
    q: Annotated[str | None, Query(description="Words of the caption.", max_length=200)] = None,
) -> Any:
    """Jobs that are kept, the newest first."""
    asked = [part for part in (status or "").split(",") if part]
    statuses = [known for known in STATUSES if known in asked]
    if unknown := [part for part in asked if part not in STATUSES]:
        raise ApiError(400, f"`status` has {unknown[0][:40]!r}: give some of {', '.join(STATUSES)}.", param="status")
    if after is not None and not is_job_id(after):
        raise ApiError(400, f"`after` is {after[:40]!r}: give the id of a job.", param="after")
    found = await run_in_threadpool(jobs.page, statuses or None, limit + 1, after, q)
    views = [await run_in_threadpool(jobs.view, job) for job in found[:limit]]
    return {"data": views, "has_more": len(found) > limit}


@router.get("/jobs/{id}", response_model=JobView, responses=responses(404, 503))
async def get(id: JobId, jobs: TheJobs) -> Any:
    """A job as it is now."""
    return await run_in_threadpool(lambda: jobs.view(jobs.get(id)))


@router.delete(
    "/jobs/{id}", response_model=JobView, responses={204: {"description": "Removed."}, **responses(404, 409, 503)}
)
async def cancel(
    id: JobId,
    jobs: TheJobs,
    forget: Annotated[bool, Query(description="Remove the job and its pictures too.")] = False,
) -> Any:
    """Give up a job that is not finished: the engine is free of it with its next step."""
    job = await run_in_threadpool(jobs.get, id)
    jobs.cancel(job)
    await job.wait(PATIENCE)
    if forget:
        await run_in_threadpool(jobs.forget, job)
        return Response(status_code=204)
    return await run_in_threadpool(jobs.view, job)


@router.get(
    "/jobs/{id}/events",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Events."},
        **responses(404, 503),
    },
)
async def events(
    request: Request,
    id: JobId,
    jobs: TheJobs,
    last_event_id: Annotated[str | None, Header(max_length=40)] = None,
) -> StreamingResponse:
    """What happens to a job, as server-sent events, up to the last; after `Last-Event-ID` where that is given."""
    known = last_event_id or ""
    number = int(known) if known.isascii() and known.isdecimal() else 0
    job = await run_in_threadpool(jobs.get, id)
    return StreamingResponse(
        stream(request.app.state, job, min(number, MOST_NUMBER)), media_type="text/event-stream", headers=NO_BUFFERING
    )


async def stream(state: Any, job: Job, after: int) -> AsyncIterator[str]:
    """A job's events as text, up to the last or until the server stops; comments keep the connection alive."""
    if job.journal.ended:  # whoever comes late is told of the end alone, whatever numbers were seen
        after = min(after, job.journal.after(0)[-1].number - 1)
    async for event in followed(state, job, after):
        yield ": still here\n\n" if event is None else as_text(event)


def as_text(event: JobEvent) -> str:
    """An event as it is sent."""
    data = {"type": event.type, **event.data}
    return (
        f"id: {event.number}\nevent: {event.type}\ndata: {json.dumps(data, ensure_ascii=False, default=data_url)}\n\n"
    )


@router.get(
    "/jobs/{id}/pictures/{n}",
    response_class=Response,
    responses={
        200: {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA.values()}},
        **responses(404, 503),
    },
)
async def picture(
    id: JobId,
    n: Annotated[int, PathParameter(ge=0, le=10_000)],
    jobs: TheJobs,
    download: Annotated[bool, Query(description="Have browsers save it as a file.")] = False,
    side: Annotated[
        int | None, Query(ge=16, le=2048, description="A thumbnail: a JPEG of at most so many pixels a side.")
    ] = None,
) -> Response:
    """A finished picture. It never changes."""
    info, data = await run_in_threadpool(jobs.picture, id, n)
    form: str = info.format
    if side is not None:
        form, data = "jpeg", await run_in_threadpool(thumbnail, data, side)
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}
    if download:
        headers["Content-Disposition"] = f'attachment; filename="{id}-{n}.{form}"'
    return Response(data, media_type=MEDIA[form], headers=headers)

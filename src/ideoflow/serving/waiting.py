"""Waiting for a job: its events for as long as somebody waits for them, how it has ended, and its pictures."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import Depends, Request

from .api_errors import ApiError
from .job import Job
from .jobs import Jobs
from .journal import LAST, JobEvent
from .preparing import has_gone

NO_RETRY = {"x-should-retry": "false"}  # OpenAI's client would try twice more, in vain
LATER = {"Retry-After": "5"}
STATUS_OF_FAILURE = {"timeout": 504, "stopping": 503, "engine_failed": 503}  # of jobs that fail so; else 500
NO_BUFFERING = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # headers of a stream
_END = "end"


async def jobs_of(request: Request) -> Jobs:
    """The server's jobs.

    Raises:
        ApiError: with status 503 while the model is loaded.
    """
    state = request.app.state
    if state.failure is not None:
        raise ApiError(503, "The model could not be loaded: the log says why.", code="failed")
    if state.jobs is None:
        raise ApiError(503, "The model is being loaded.", code="loading", headers=LATER)
    jobs: Jobs = state.jobs
    return jobs


TheJobs = Annotated[Jobs, Depends(jobs_of)]


async def followed(
    state: Any, job: Job, after: int = 0, gone: asyncio.Future[None] | None = None
) -> AsyncGenerator[JobEvent | None, None]:
    """A job's events up to the last, None now and then.

    They end before the last where the server stops, or once `gone` is done.

    Args:
        state: the application's state.
        job: the job.
        after: number of the last event that is known already.
        gone: done once nobody waits any longer.
    """
    ends = [asyncio.ensure_future(state.stopping.wait()), *([gone] if gone else [])]
    events = job.journal.follow(after)
    coming: asyncio.Future[Any] | None = None
    try:
        while True:
            coming = asyncio.ensure_future(anext(events, _END))
            await asyncio.wait([coming, *ends], return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                return
            event = coming.result()
            if event is _END:
                return
            yield event
    finally:
        ends[0].cancel()
        if coming is not None and not coming.done():
            coming.cancel()  # which ends the events too
        else:
            await events.aclose()


async def watched(request: Request, jobs: Jobs, job: Job) -> AsyncGenerator[JobEvent | None, None]:
    """A job's events up to the last, None now and then; a client that goes away gives up a job that is not stored.

    Raises:
        ApiError: where the client has gone, or with status 503 where the server stops before the job has ended.
    """
    gone = asyncio.ensure_future(has_gone(request))
    last: JobEvent | None = None
    try:
        async with aclosing(followed(request.app.state, job, gone=gone)) as events:
            async for event in events:
                last = event or last
                yield event
        if last is None or last.type not in LAST:
            raise ApiError(499, "The client has gone.") if gone.done() else _stopping(job)
    finally:
        gone.cancel()
        if not job.settings.stored and not job.ended.is_set():
            jobs.cancel(job)


def _stopping(job: Job) -> ApiError:
    kept = f"{job.id} is kept, and taken up at its next start" if job.settings.stored else "ask again in a moment"
    return ApiError(503, f"The server stops before this is finished: {kept}.", code="stopping", headers=LATER)


def check_end(job: Job) -> None:
    """See that a job is finished.

    Raises:
        ApiError: telling why it is not, if so.
    """
    status, error = job.record.status, job.record.error or {}
    if status == "failed":
        kind = str(error.get("type"))
        code = STATUS_OF_FAILURE.get(kind, 500)
        headers = LATER if code == 503 else NO_RETRY
        raise ApiError(code, str(error.get("message")), code=kind, headers=headers)
    if status == "cancelled":
        raise ApiError(409, f"{job.id} was cancelled before it was finished.", code="cancelled", headers=NO_RETRY)


def picture_base64(jobs: Jobs, job: Job, index: int) -> str:
    """A finished picture's file in base64. It may be read from a disk: not for the server's event loop."""
    kept = job.data.get(index)
    data = jobs.picture(job.id, index)[1] if kept is None else kept
    return base64.b64encode(data).decode("ascii")

"""What clients of OpenAI's images API are answered: a job's pictures at once, or one after the other as events."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from .api_errors import ApiError
from .job import Job
from .jobs import Jobs
from .journal import LAST
from .openai_body import QUALITIES, ImageBody
from .preview_files import preview_base64
from .waiting import NO_BUFFERING, check_end, picture_base64, watched


async def answered(request: Request, jobs: Jobs, job: Job, body: ImageBody) -> Any:
    """The answer of a job that has been accepted: its pictures once they are there, or a stream of events."""
    request.state.job = job.id
    if body.stream:
        events = events_of(request, jobs, job, body)
        return StreamingResponse(events, media_type="text/event-stream", headers=NO_BUFFERING)
    async for _ in watched(request, jobs, job):
        pass
    check_end(job)
    return await run_in_threadpool(pictures_of, jobs, job, body, str(request.base_url))


def pictures_of(jobs: Jobs, job: Job, body: ImageBody, base: str) -> dict[str, Any]:
    """The answer to a call that does not stream.

    Args:
        jobs: the server's jobs.
        job: one that is finished.
        body: what was asked for.
        base: the server's address as the client knows it, for links.
    """
    return {
        "id": job.id,
        "created": int(job.record.created_at),
        "data": [_picture(jobs, job, index, body, base) for index in range(len(job.settings.seeds))],
        **_about(job),
        "background": "opaque",
        "usage": _usage(job),
        "prompt_was": job.record.prompt_was,
        "warnings": [*job.record.warnings, *body.remarks()],
    }


async def events_of(request: Request, jobs: Jobs, job: Job, body: ImageBody) -> AsyncIterator[str]:
    """The events of a call that streams, as the client reads them."""
    due = {index: due_steps(job.settings.steps, body.partials) for index in range(len(job.settings.seeds))}
    told = dict.fromkeys(due, 0)  # previews, by picture
    try:
        async for event in watched(request, jobs, job):
            if event is None:
                yield ": still here\n\n"
            elif event.type == "preview":
                index = event.data["picture"]
                number = told[index]
                if number < len(due[index]) and event.data["step"] >= due[index][number]:
                    told[index] += 1
                    data = await run_in_threadpool(preview_base64, event.data["image"], job.settings.format)
                    yield _event("partial_image", job, b64_json=data, partial_image_index=number, picture=index)
            elif event.type == "picture":
                index = event.data["picture"]["index"]
                yield _event("completed", job, **await run_in_threadpool(_completed, jobs, job, index, body))
            elif event.type in LAST:
                check_end(job)
    except ApiError as error:  # too late for a status
        yield f"event: error\ndata: {json.dumps(error.body)}\n\n"
    yield "data: [DONE]\n\n"


def due_steps(steps: int, partials: int) -> list[int]:
    """The steps after which previews are due, evenly spread, the last step's not among them; no more than there are."""
    return sorted({max(1, steps * number // (partials + 1)) for number in range(1, partials + 1)} - {steps})


def _event(kind: str, job: Job, **more: Any) -> str:
    name = f"{'image_edit' if job.given_pixels else 'image_generation'}.{kind}"
    data = {"type": name, "created_at": int(time.time()), "background": "opaque", **_about(job), **more}
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _completed(jobs: Jobs, job: Job, index: int, body: ImageBody) -> dict[str, Any]:
    told: dict[str, Any] = {
        "b64_json": picture_base64(jobs, job, index),
        "usage": _usage(job, 1),
        "picture": index,
        "seed": job.settings.seeds[index],
        "prompt_was": job.record.prompt_was,
        "warnings": [*job.record.warnings, *body.remarks()],
    }
    if job.record.revised_prompt is not None:
        told["revised_prompt"] = job.record.revised_prompt
    return told


def _about(job: Job) -> dict[str, Any]:
    return {
        "output_format": job.settings.format,
        "quality": QUALITIES[job.settings.preset],
        "size": f"{job.settings.width}x{job.settings.height}",
    }


def _picture(jobs: Jobs, job: Job, index: int, body: ImageBody, base: str) -> dict[str, Any]:
    told = {"seed": job.settings.seeds[index], "revised_prompt": job.record.revised_prompt}
    if body.response_format == "url":
        return {"url": f"{base.rstrip('/')}/v1/jobs/{job.id}/pictures/{index}", **told}
    return {"b64_json": picture_base64(jobs, job, index), **told}


def _usage(job: Job, pictures: int | None = None) -> dict[str, Any]:
    """Tokens of a job, or of so many of its pictures."""
    one = job.pictures[0]
    text, image = one.text_tokens, one.image_tokens * (pictures or len(job.settings.seeds))
    given = one.image_tokens if job.given_pixels else 0
    return {
        "input_tokens": text + given,
        "input_tokens_details": {"text_tokens": text, "image_tokens": given},
        "output_tokens": image,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": image},
        "total_tokens": text + given + image,
    }

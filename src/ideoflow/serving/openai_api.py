"""OpenAI's images API: whoever has its client draws with this server by changing the address."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from ..captions import CaptionError
from ..images import open_image
from ..pictures import encode_image
from .api_errors import ApiError, responses
from .job import Job
from .job_settings import wrong
from .jobs import Jobs
from .jobs_api import NO_BUFFERING, TheJobs
from .journal import LAST, JobEvent
from .openai_body import QUALITIES, ImageAnswer, ImageBody, ModelList, ModelView
from .prompts import ReadPrompt, read_prompt
from .server_settings import ServerSettings
from .serving_model import name_of_model

STAND_INS = ("gpt-image-", "dall-e-", "chatgpt-image-")  # names that some clients send whatever they are told
MOST_IMAGES = 16
MOST_IMAGE, MOST_MASK = 50 * 2**20, 4 * 2**20  # bytes
NO_RETRY = {"x-should-retry": "false"}  # the client would try twice more, in vain
STARTED = int(time.time())

router = APIRouter(prefix="/v1", tags=["OpenAI's API"])


@router.post(
    "/images/generations",
    response_model=ImageAnswer,
    response_model_exclude_none=True,
    responses={
        200: {
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
            "description": "The pictures, or a stream of image_generation.partial_image and .completed events.",
        },
        **responses(404, 409, 429, 503, 504),
    },
)
async def generate(request: Request, body: ImageBody, jobs: TheJobs) -> Any:
    """Draw pictures of one caption, and answer with them.

    Closing the connection gives up what is not drawn yet, unless links were asked for: those pictures are kept.
    """
    _check_model(body.model, request.app.state.settings)
    jobs.check_room()
    prompt = await run_in_threadpool(read, body)
    job, _ = await run_in_threadpool(jobs.submit, body.order(), prompt, field="prompt")
    request.state.job = job.id
    if body.stream:
        events = _stream(request, jobs, job, body)
        return StreamingResponse(events, media_type="text/event-stream", headers=NO_BUFFERING)
    async for event in watched(request, jobs, job):
        if event is not None and event.type in LAST:
            check_end(job)
    return await run_in_threadpool(_answer, jobs, job, body, str(request.base_url))


def read(body: ImageBody) -> ReadPrompt:
    """The prompt of a body.

    Raises:
        ApiError: with status 400 for one that cannot be drawn.
    """
    try:
        return read_prompt(body.prompt, drop_unknown=body.drop_unknown)
    except CaptionError as error:
        raise ApiError(400, str(error), code="invalid_caption", param="prompt") from None


def _check_model(name: str | None, settings: ServerSettings) -> None:
    own = name_of_model(settings)
    if name and name != own and not name.startswith(STAND_INS):
        raise ApiError(
            404, f"There is no model {name[:80]!r}: this server has {own!r}.", code="model_not_found", param="model"
        )


async def watched(request: Request, jobs: Jobs, job: Job) -> AsyncIterator[JobEvent | None]:
    """A job's events up to the last, None now and then; a client that goes away gives up a job that is not stored."""
    gone = asyncio.ensure_future(_gone(request))
    events = job.journal.follow()
    try:
        while True:
            coming = asyncio.ensure_future(anext(events, _END))
            await asyncio.wait({gone, coming}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                raise ApiError(499, "The client has gone.")
            event = coming.result()
            if isinstance(event, str):
                return
            yield event
    finally:
        gone.cancel()
        if not job.settled.stored and not job.ended.is_set():
            jobs.cancel(job)


_END = "end"


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def check_end(job: Job) -> None:
    """See that a job is finished.

    Raises:
        ApiError: telling why it is not, if so.
    """
    status, error = job.record.status, job.record.error or {}
    if status == "failed":
        late = error.get("type") == "timeout"
        raise ApiError(504 if late else 500, str(error.get("message")), code=error.get("type"), headers=NO_RETRY)
    if status == "cancelled":
        raise ApiError(409, f"{job.id} was cancelled before it was finished.", code="cancelled", headers=NO_RETRY)


def _answer(jobs: Jobs, job: Job, body: ImageBody, base: str) -> dict[str, Any]:
    return {
        "id": job.id,
        "created": int(job.record.created_at),
        "data": [_picture(jobs, job, index, body, base) for index in range(len(job.settled.seeds))],
        **_about(job),
        "background": "opaque",
        "usage": _usage(job),
        "prompt_was": job.record.prompt_was,
        "warnings": [*job.record.warnings, *body.remarks()],
    }


def _about(job: Job) -> dict[str, Any]:
    return {
        "output_format": job.settled.format,
        "quality": QUALITIES[job.settled.preset],
        "size": f"{job.settled.width}x{job.settled.height}",
    }


def _picture(jobs: Jobs, job: Job, index: int, body: ImageBody, base: str) -> dict[str, Any]:
    told = {"seed": job.settled.seeds[index], "revised_prompt": job.record.revised_prompt}
    if body.response_format == "url":
        return {"url": f"{base.rstrip('/')}/v1/jobs/{job.id}/pictures/{index}", **told}
    return {"b64_json": _base64(picture_bytes(jobs, job, index)), **told}


def picture_bytes(jobs: Jobs, job: Job, index: int) -> bytes:
    kept = job.data.get(index)
    return jobs.picture(job.id, index)[1] if kept is None else kept


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _usage(job: Job, pictures: int | None = None) -> dict[str, Any]:
    """Tokens of a job, or of so many of its pictures."""
    one = job.pictures[0]
    text, image = one.text_tokens, one.image_tokens * (pictures or len(job.settled.seeds))
    return {
        "input_tokens": text,
        "input_tokens_details": {"text_tokens": text, "image_tokens": 0},
        "output_tokens": image,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": image},
        "total_tokens": text + image,
    }


async def _stream(request: Request, jobs: Jobs, job: Job, body: ImageBody) -> AsyncIterator[str]:
    """The events of a call that streams, as the client reads them."""
    due = {index: due_steps(job.settled.steps, body.partials) for index in range(len(job.settled.seeds))}
    try:
        async for event in watched(request, jobs, job):
            if event is None:
                yield ": still here\n\n"
            elif event.type == "preview":
                index, waiting = event.data["picture"], due[event.data["picture"]]
                if waiting and event.data["step"] >= waiting[0]:
                    waiting.pop(0)
                    data = await run_in_threadpool(_converted, event.data["image"], job.settled.format)
                    number = body.partials - len(waiting) - 1
                    yield _event("partial_image", job, b64_json=data, partial_image_index=number, picture=index)
            elif event.type == "picture":
                index = event.data["picture"]["index"]
                told = await run_in_threadpool(_completed, jobs, job, index, body)
                yield _event("completed", job, **told)
            elif event.type in LAST:
                check_end(job)
    except ApiError as error:  # too late for a status
        yield f"event: error\ndata: {json.dumps(error.body)}\n\n"
    yield "data: [DONE]\n\n"


def due_steps(steps: int, partials: int) -> list[int]:
    """The steps after which previews are due, evenly spread, the last step's not among them; no more than there are."""
    return sorted({max(1, steps * number // (partials + 1)) for number in range(1, partials + 1)} - {steps})


def _event(kind: str, job: Job, **more: Any) -> str:
    name = f"image_generation.{kind}"
    data = {"type": name, "created_at": int(time.time()), "background": "opaque", **_about(job), **more}
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _completed(jobs: Jobs, job: Job, index: int, body: ImageBody) -> dict[str, Any]:
    told: dict[str, Any] = {
        "b64_json": _base64(picture_bytes(jobs, job, index)),
        "usage": _usage(job, 1),
        "picture": index,
        "seed": job.settled.seeds[index],
        "prompt_was": job.record.prompt_was,
        "warnings": [*job.record.warnings, *body.remarks()],
    }
    if job.record.revised_prompt is not None:
        told["revised_prompt"] = job.record.revised_prompt
    return told


def _converted(data_url: str, form: str) -> str:
    """A preview's `data:` URL in the format that was asked for, in base64."""
    head, _, text = data_url.partition(",")
    if head == f"data:image/{form};base64":
        return text
    with open_image(base64.b64decode(text)) as image:
        return _base64(encode_image(image.convert("RGB"), form.upper(), None))


@router.post("/images/edits", status_code=501, responses=responses(404, 501))
async def edit(
    request: Request,
    prompt: Annotated[str, Form(min_length=1, max_length=100_000, description="What the picture becomes.")],
    image: Annotated[Sequence[UploadFile], File(description="The picture, or up to 16.")] = (),
    images: Annotated[Sequence[UploadFile], File(alias="image[]", description="The same, as some clients send.")] = (),
    mask: Annotated[
        UploadFile | None, File(description="A PNG of the first picture's size; what is transparent is drawn anew.")
    ] = None,
    model: Annotated[str | None, Form(max_length=500)] = None,
    n: Annotated[int, Form(ge=1)] = 1,
    size: Annotated[str | None, Form(max_length=40)] = None,
    seed: Annotated[int | None, Form(ge=0)] = None,
) -> None:
    """Redraw a part of a picture. Not there yet: what is sent is checked, and answered with 501."""
    _check_model(model, request.app.state.settings)
    given = [*image, *images]
    if not 1 <= len(given) <= MOST_IMAGES:
        raise wrong("image", f"`image` has {len(given)} pictures: give 1 to {MOST_IMAGES}.")
    for one in given:
        if (one.size or 0) >= MOST_IMAGE:
            raise wrong("image", f"`image` has {one.size} bytes: fewer than {MOST_IMAGE} are allowed.")
    if mask is not None and (mask.size or 0) >= MOST_MASK:
        raise wrong("mask", f"`mask` has {mask.size} bytes: fewer than {MOST_MASK} are allowed.")
    message = "This server does not edit pictures yet: /v1/images/generations draws new ones."
    raise ApiError(501, message, code="not_implemented", headers=NO_RETRY)


@router.get("/models", response_model=ModelList, responses=responses())
async def models(request: Request) -> Any:
    """The models that can be asked for: the one that is served."""
    return {"object": "list", "data": [_model(request.app.state.settings)]}


@router.get("/models/{id:path}", response_model=ModelView, responses=responses(404))
async def model(request: Request, id: str) -> Any:
    """One model."""
    _check_model(id or "none", request.app.state.settings)
    return _model(request.app.state.settings)


def _model(settings: ServerSettings) -> ModelView:
    return ModelView(id=name_of_model(settings), object="model", created=STARTED, owned_by="ideoflow")

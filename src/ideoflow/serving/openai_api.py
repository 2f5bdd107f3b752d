"""OpenAI's images API: whoever has its client draws with this server by changing the address."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from ..captions import CaptionError
from .api_errors import ApiError, invalid_caption, responses
from .job_settings import wrong
from .openai_answer import events_of, pictures_of
from .openai_body import ImageAnswer, ImageBody, ModelList, ModelView
from .prompts import read_prompt
from .server_settings import MEBIBYTE, ServerSettings
from .serving_model import name_of_model
from .waiting import NO_BUFFERING, NO_RETRY, TheJobs, check_end, watched

STAND_INS = ("gpt-image-", "dall-e-", "chatgpt-image-")  # names that some clients send whatever they are told
MOST_IMAGES, MOST_MASK = 16, 4 * MEBIBYTE  # of an edit: its pictures, and the mask's bytes
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
    try:
        prompt = await run_in_threadpool(read_prompt, body.prompt, drop_unknown=body.drop_unknown)
    except CaptionError as error:
        raise invalid_caption(error, "prompt") from None
    job, _ = await run_in_threadpool(jobs.submit, body.order(), prompt, field="prompt")
    request.state.job = job.id
    if body.stream:
        events = events_of(request, jobs, job, body)
        return StreamingResponse(events, media_type="text/event-stream", headers=NO_BUFFERING)
    async for _ in watched(request, jobs, job):
        pass
    check_end(job)
    return await run_in_threadpool(pictures_of, jobs, job, body, str(request.base_url))


def _check_model(name: str | None, settings: ServerSettings) -> None:
    own = name_of_model(settings)
    if name and name != own and not name.startswith(STAND_INS):
        raise ApiError(
            404, f"There is no model {name[:80]!r}: this server has {own!r}.", code="model_not_found", param="model"
        )


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

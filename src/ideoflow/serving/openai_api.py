"""OpenAI's images API: whoever has its client draws with this server by changing the address."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from .api_errors import ApiError, responses
from .openai_answer import answered
from .openai_body import ImageAnswer, ImageBody, ModelList, ModelView
from .server_settings import ServerSettings
from .serving_model import name_of_model
from .waiting import TheJobs
from .written_prompts import read_in_turn

STAND_INS = ("gpt-image-", "dall-e-", "chatgpt-image-")  # names that some clients send whatever they are told
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
        **responses(404, 409, 429, 502, 503, 504),
    },
)
async def generate(request: Request, body: ImageBody, jobs: TheJobs) -> Any:
    """Draw pictures of one caption, and answer with them.

    Closing the connection gives up what is not drawn yet, unless links were asked for: those pictures are kept.
    """
    check_model(body.model, request.app.state.settings)
    order = body.order()
    jobs.known(order)
    prompt = await read_in_turn(request, jobs, body.prompt, order.size, drop_unknown=body.drop_unknown, field="prompt")
    job, _ = await run_in_threadpool(jobs.submit, order, prompt, field="prompt")
    return await answered(request, jobs, job, body)


def check_model(name: str | None, settings: ServerSettings) -> None:
    """See that a client asks for the model that is served, or for one that it stands in for.

    Raises:
        ApiError: with status 404 if not.
    """
    own = name_of_model(settings)
    if name and name != own and not name.startswith(STAND_INS):
        raise ApiError(
            404, f"There is no model {name[:80]!r}: this server has {own!r}.", code="model_not_found", param="model"
        )


@router.get("/models", response_model=ModelList, responses=responses())
async def models(request: Request) -> Any:
    """The models that can be asked for: the one that is served."""
    return {"object": "list", "data": [_model(request.app.state.settings)]}


@router.get("/models/{id:path}", response_model=ModelView, responses=responses(404))
async def model(request: Request, id: str) -> Any:
    """One model."""
    check_model(id or "none", request.app.state.settings)
    return _model(request.app.state.settings)


def _model(settings: ServerSettings) -> ModelView:
    return ModelView(id=name_of_model(settings), object="model", created=STARTED, owned_by="ideoflow")

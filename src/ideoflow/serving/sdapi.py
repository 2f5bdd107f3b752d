"""As much of AUTOMATIC1111's web API as programs need that draw pictures with it: text to picture, and what they probe.

Programs send it dozens of fields of samplers and scripts: those that mean nothing here are let pass.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..captions.schema import encodes
from .api_errors import ApiError, responses
from .job import Job
from .job_settings import MOST_COUNT, MOST_SIDE, SEEDS, Order, wrong
from .preview_files import preview_base64
from .records import Format
from .serving_model import name_of_model
from .waiting import TheJobs, check_end, picture_base64, watched
from .written_prompts import read_in_turn

SAMPLER = "Euler"

router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111's API"])


def _whole_characters(text: str) -> str:
    """Refuse half of a surrogate pair, which the answer could not repeat."""
    if not encodes(text):
        raise ValueError("it holds half of a surrogate pair, which is no character")
    return text


def _some_words(text: str) -> str:
    """Refuse what has nothing but spaces."""
    if not text.strip():
        raise ValueError("it is empty: describe a picture")
    return _whole_characters(text)


class DrawBody(BaseModel):
    """What is asked for. Other fields than these are let pass."""

    model_config = ConfigDict(extra="ignore", strict=True)

    prompt: Annotated[str, Field(max_length=100_000), AfterValidator(_some_words)]
    negative_prompt: Annotated[str, AfterValidator(_whole_characters)] | None = Field(
        None, description="Without effect: the model takes none."
    )
    width: Annotated[int, Field(ge=1, le=MOST_SIDE)] | None = None
    height: Annotated[int, Field(ge=1, le=MOST_SIDE)] | None = None
    steps: Annotated[int, Field(ge=1, le=MOST_COUNT)] | None = None
    cfg_scale: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-1, lt=SEEDS)] | None = Field(None, description="-1 for one drawn at random.")
    batch_size: Annotated[int, Field(ge=1, le=100)] | None = None
    n_iter: Annotated[int, Field(ge=1, le=100)] | None = None


class Drawn(BaseModel):
    """Pictures in base64, what was asked for, and what they were drawn with as a string of JSON."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class State(BaseModel):
    """How far the picture has come."""

    job: str
    job_count: int
    job_no: int
    sampling_step: int
    sampling_steps: int
    interrupted: bool
    skipped: bool


class Progress(BaseModel):
    """How far the oldest job of this API has come."""

    progress: float = Field(ge=0, le=1)
    eta_relative: float
    state: State
    current_image: str | None
    textinfo: str | None


class Options(BaseModel):
    """What can be set."""

    sd_model_checkpoint: str
    samples_format: Format


class OptionsBody(BaseModel):
    """What is to be set: the model alone, and to that which is there."""

    model_config = ConfigDict(extra="ignore", strict=True)

    sd_model_checkpoint: Annotated[str, Field(max_length=500)] | None = None


class Checkpoint(BaseModel):
    """A model."""

    title: str
    model_name: str
    hash: str | None
    sha256: str | None
    filename: str
    config: str | None


class Sampler(BaseModel):
    """A sampler."""

    name: str
    aliases: list[str]
    options: dict[str, str]


@router.post("/txt2img", response_model=Drawn, responses=responses(409, 429, 502, 503, 504))
async def draw(request: Request, body: DrawBody, jobs: TheJobs) -> Any:
    """Draw pictures of a prompt. Interrupted, it answers with those that are finished."""
    if (body.width is None) != (body.height is None):
        raise wrong("width", "`width` and `height` go together: give both, or neither.")
    size = None if body.width is None else f"{body.width}x{body.height}"
    order = Order(
        caption=body.prompt,
        size=size,
        num_inference_steps=body.steps,
        guidance_scale=body.cfg_scale,
        seed=None if body.seed == -1 else body.seed,
        n=(body.batch_size or 1) * (body.n_iter or 1),
        preview_every=1,
        stored=False,
    )
    jobs.known(order)
    prompt = await read_in_turn(request, jobs, body.prompt, size, field="prompt")
    job, _ = await run_in_threadpool(jobs.submit, order, prompt, field="prompt")
    request.state.job = job.id
    under_way = _under_way(request)
    under_way.append(job)
    try:
        async for _ in watched(request, jobs, job):
            pass
    finally:
        under_way.remove(job)
    if job.record.status != "cancelled":
        check_end(job)
    made = [picture.index for picture in job.record.pictures]
    return {
        "images": [await run_in_threadpool(picture_base64, jobs, job, index) for index in made],
        "parameters": body.model_dump(),
        "info": json.dumps(_info(job, body, made, _model(request))),
    }


def _info(job: Job, body: DrawBody, made: list[int], model: str) -> dict[str, Any]:
    """What pictures were drawn with, under the names that programs know."""
    settings, line = job.settings, job.record.prompt
    remarks = ["`negative_prompt` has no effect here"] if body.negative_prompt else []
    return {
        "prompt": line,
        "all_prompts": [line] * len(made),
        "negative_prompt": "",
        "seed": settings.seeds[0],
        "all_seeds": [settings.seeds[index] for index in made],
        "width": settings.width,
        "height": settings.height,
        "sampler_name": SAMPLER,
        "cfg_scale": settings.guidance,
        "steps": settings.steps,
        "batch_size": len(settings.seeds),
        "sd_model_name": model,
        "infotexts": [
            f"{line}\nSteps: {settings.steps}, Sampler: {SAMPLER}, Seed: {settings.seeds[index]}, Size:"
            f" {settings.width}x{settings.height}"
            for index in made
        ],
        "job": job.id,
        "warnings": [*job.record.warnings, *remarks],
    }


def _model(request: Request) -> str:
    return name_of_model(request.app.state.settings)


def _under_way(request: Request) -> list[Job]:
    """The jobs of this API that are not finished, the oldest first."""
    state = request.app.state
    if not hasattr(state, "sdapi_jobs"):
        state.sdapi_jobs = []
    jobs: list[Job] = state.sdapi_jobs
    return jobs


@router.get("/progress", response_model=Progress, responses=responses(503))
async def progress(request: Request, jobs: TheJobs, skip_current_image: bool = False) -> Any:
    """How far the oldest picture under way has come; nothing else than the jobs of this API is looked at."""
    under_way = _under_way(request)
    if not under_way:
        return _progress(0, 0, "", 0, (0, 0), None)
    job = under_way[0]
    # The picture first: what is counted afterwards has come as far as it at least.
    previews = [event.data["image"] for event in job.journal.after(0) if event.type == "preview"]
    done = (await run_in_threadpool(jobs.view, job))["progress"]
    image = preview_base64(previews[-1]) if previews and not skip_current_image else None
    share = done["step"] / done["steps"]
    steps = done["step"] % job.settings.steps, job.settings.steps
    return _progress(share, done["seconds_left"] or 0, job.id, len(under_way), steps, image)


def _progress(share: float, left: float, job: str, count: int, steps: tuple[int, int], image: str | None) -> Progress:
    state = State(
        job=job, job_count=count, job_no=0, sampling_step=steps[0], sampling_steps=steps[1], interrupted=False,
        skipped=False,
    )  # fmt: skip
    return Progress(progress=share, eta_relative=left, state=state, current_image=image, textinfo=None)


@router.post("/interrupt", response_model=dict[str, str], responses=responses(503))
async def interrupt(request: Request, jobs: TheJobs) -> Any:
    """Give up the jobs of this API, and no others."""
    for job in list(_under_way(request)):
        jobs.cancel(job)
    return {}


@router.get("/options", response_model=Options, responses=responses())
async def options(request: Request) -> Any:
    """What is set."""
    return {"sd_model_checkpoint": _model(request), "samples_format": "png"}


@router.post("/options", response_model=None, responses=responses(404))
async def set_options(request: Request, body: OptionsBody) -> None:
    """Set the model to the one that is served; anything else is let pass, except another model."""
    own = _model(request)
    if body.sd_model_checkpoint not in (None, "", own):
        message = f"There is no model {body.sd_model_checkpoint!r:.80}: this server has {own!r}."
        raise ApiError(404, message, code="model_not_found", param="sd_model_checkpoint")


@router.get("/sd-models", response_model=list[Checkpoint], responses=responses())
async def models(request: Request) -> Any:
    """The models that there are: one."""
    name = _model(request)
    return [Checkpoint(title=name, model_name=name, hash=None, sha256=None, filename=name, config=None)]


@router.get("/samplers", response_model=list[Sampler], responses=responses())
async def samplers() -> Any:
    """The samplers that there are: one."""
    return [Sampler(name=SAMPLER, aliases=["euler", "k_euler"], options={})]

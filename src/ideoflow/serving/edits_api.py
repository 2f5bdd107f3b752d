"""OpenAI's route of edits: a picture and a caption of what it becomes, by a mask, by two captions, or as a whole."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError

from ..captions import CaptionError
from ..captions.sent_prompt import read_prompt
from .api_errors import ApiError, invalid_caption, responses
from .guard import MOST_IMAGE, MOST_MASK
from .job_settings import How, wrong
from .openai_answer import answered
from .openai_api import check_model
from .openai_body import ImageAnswer, ImageBody
from .picture_changes import LARGER, PictureChange, Wanted
from .waiting import TheJobs

INDEXED = re.compile(r"image\[\d{1,4}\]")  # names that some clients give a list's pictures

router = APIRouter(prefix="/v1", tags=["OpenAI's API"])


async def _check_form(request: Request) -> list[Any]:
    """Refuse a form whose fields would be ignored: of names that are not known, given twice, or text for a file.

    Returns:
        Pictures under the names `image[0]`, `image[1]` and on, as some clients send them.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ApiError(
            400, f"The body is {kind[:60] or 'of no type'}: send multipart/form-data, with `image` as a file.",
            code="not_a_form",
        )  # fmt: skip
    known = {parameter.alias for parameter in request.scope["route"].dependant.body_params}
    indexed, seen = [], set()
    for name, value in (await request.form()).multi_items():
        is_image = INDEXED.fullmatch(name) is not None or name in ("image", "image[]")
        if name not in known and not is_image:
            raise wrong(name[:40], f"`{name[:40]}` is not known here. Known are {', '.join(sorted(known))}.")
        if (is_image or name == "mask") and isinstance(value, str):
            raise wrong(name, f"`{name}` is text: send the picture as a file of the form, with a file name.")
        if name in seen and not is_image:
            raise wrong(name, f"`{name}` is there twice: give it once.")
        seen.add(name)
        indexed += [value] if INDEXED.fullmatch(name) else []
    return indexed


@router.post(
    "/images/edits",
    response_model=ImageAnswer,
    response_model_exclude_none=True,
    responses={
        200: {
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
            "description": "The pictures, or a stream of image_edit.partial_image and .completed events.",
        },
        **responses(404, 409, 429, 503, 504),
    },
)
async def edit(
    request: Request,
    jobs: TheJobs,
    indexed: Annotated[list[UploadFile], Depends(_check_form)],
    prompt: Annotated[
        str,
        Form(min_length=1, max_length=100_000, description="A caption of what the picture becomes, as JSON; or words."),
    ],
    image: Annotated[
        Sequence[UploadFile], File(description="The picture: one, for the model draws from no others.")
    ] = (),
    images: Annotated[Sequence[UploadFile], File(alias="image[]", description="The same, as some clients send.")] = (),
    mask: Annotated[
        UploadFile | None,
        File(description="A picture of the same size; what of it changes is said by `mask_changes`."),
    ] = None,
    mask_changes: Annotated[
        Literal["transparent", "white", "black"] | None,
        Form(
            description="What of the mask changes: transparent as in OpenAI's API (if left out), white as in ComfyUI,"
            " or black."
        ),
    ] = None,
    how: Annotated[
        How | None,
        Form(
            description="inpaint: what the mask says. redraw: what differs between `before` and the prompt, and nothing"
            " else. caption: from `before` to the prompt, without a mask. image: the whole picture anew, starting from"
            " it. If left out, inpaint with a mask, redraw with `before`, inpaint with a transparent picture, else"
            " image."
        ),
    ] = None,
    before: Annotated[
        str | None, Form(max_length=100_000, description="For redraw and caption: the caption of the picture as it is.")
    ] = None,
    strength: Annotated[
        float | None,
        Form(
            ge=0, le=1, description="Share of the steps that are taken: 1, 0.6 for image, 0.9 for caption if left out."
        ),
    ] = None,
    feather: Annotated[int | None, Form(ge=0, le=256, description="Pixels over which what is drawn fades in.")] = None,
    harmonise: Annotated[
        int | None, Form(ge=0, le=4, description="Further rounds of each step, against seams; none if left out.")
    ] = None,
    model: Annotated[str | None, Form(max_length=500)] = None,
    n: Annotated[int | None, Form(ge=1)] = None,
    size: Annotated[
        str | None,
        Form(max_length=40, description='"WxH" for image and caption; else, and if left out, the picture\'s own.'),
    ] = None,
    quality: Annotated[str | None, Form(max_length=40)] = None,
    response_format: Annotated[str | None, Form(max_length=40, description="b64_json: edits are not kept.")] = None,
    output_format: Annotated[str | None, Form(max_length=40)] = None,
    output_compression: Annotated[int | None, Form()] = None,
    background: Annotated[str | None, Form(max_length=40)] = None,
    moderation: Annotated[str | None, Form(max_length=40, description="Without effect: nothing is moderated.")] = None,
    input_fidelity: Annotated[
        str | None, Form(max_length=40, description="Without effect: `strength` says it.")
    ] = None,
    user: Annotated[str | None, Form(max_length=1000, description="Without effect, and not kept.")] = None,
    stream: Annotated[bool | None, Form()] = None,
    partial_images: Annotated[int | None, Form()] = None,
    seed: Annotated[int | None, Form(ge=0)] = None,
    preset: Annotated[str | None, Form(max_length=100)] = None,
    num_inference_steps: Annotated[int | None, Form(ge=1)] = None,
    guidance_scale: Annotated[float | None, Form()] = None,
) -> Any:
    """Change a picture, and answer with what it became. What a mask leaves alone is the picture's to the last bit.

    Closing the connection gives up what is not drawn yet. Edits are not kept: they are answered, and forgotten.
    """
    check_model(model, request.app.state.settings)
    jobs.check_room()
    body = _body(
        prompt=prompt, model=model, n=n, size=size, quality=quality, response_format=response_format,
        output_format=output_format, output_compression=output_compression, background=background,
        moderation=moderation, user=user, stream=stream, partial_images=partial_images, seed=seed, preset=preset,
        num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
    )  # fmt: skip
    if body.response_format == "url":
        raise wrong(
            "response_format", "`response_format` is url: edits are not kept here. Give b64_json, or leave it out."
        )
    picture = _picture([*image, *images, *indexed])
    if mask is not None:
        _check_bytes("mask", mask, MOST_MASK)
    asked = {
        "mask": mask, "mask_changes": mask_changes, "before": before, "strength": strength, "feather": feather,
        "harmonise": harmonise,
    }  # fmt: skip
    given = {name: value for name, value in asked.items() if value is not None}
    try:
        parsed = await run_in_threadpool(read_prompt, body.prompt)
    except CaptionError as error:
        raise invalid_caption(error, "prompt") from None
    most = LARGER * request.app.state.settings.pixel_limit

    def change(line: str) -> PictureChange:
        options = given if mask is None else {**given, "mask": mask.file.read()}
        return Wanted(how, options, None if size == "auto" else size).change(picture.file.read(), line, most)

    job, _ = await jobs.preparing.run(
        request, partial(jobs.submit, body.order(), parsed, field="prompt", change=change)
    )
    return await answered(request, jobs, job, body)


def _body(**fields: Any) -> ImageBody:
    """The fields that edits share with fresh pictures.

    Raises:
        ApiError: with status 400, naming the field that does not fit.
    """
    try:
        return ImageBody(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or None
        message = first["msg"].removeprefix("Value error, ")
        raise ApiError(400, f"`{place}`: {message}.", code="invalid_value", param=place) from None


def _picture(given: Sequence[UploadFile]) -> UploadFile:
    """The picture to be changed."""
    if not given:
        raise wrong("image", "`image` is missing: give the picture to be changed.")
    if len(given) > 1:
        raise wrong(
            "image",
            f"`image` has {len(given)} pictures: give one. The model draws from a caption and one picture; there are no"
            " reference pictures for it to look at.",
        )
    _check_bytes("image", given[0], MOST_IMAGE)
    return given[0]


def _check_bytes(name: str, file: UploadFile, most: int) -> None:
    if (file.size or 0) >= most:
        raise wrong(name, f"`{name}` has {file.size} bytes: fewer than {most} are allowed.")

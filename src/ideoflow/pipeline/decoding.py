"""From latents of requests to pictures, one by one where memory does not do for all of them together."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from .. import latents as latent_tokens
from ..engine import Request
from ..engine.out_of_memory import NotEnoughMemory, out_of_memory
from ..provenance import KEY, doubt, to_text

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
logger = logging.getLogger(__name__)


def check_output_type(output_type: str) -> None:
    """See that pictures can be given in this form.

    Raises:
        ValueError: if not.
    """
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"`output_type` is {output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}.")


def stack(tensors: Sequence[Tensor]) -> Tensor | list[Tensor]:
    """One tensor where the shapes are equal, else a list."""
    return torch.stack(list(tensors)) if len({tensor.shape for tensor in tensors}) == 1 else list(tensors)


@torch.no_grad()
def decode(vae: Any, requests: Sequence[Request], latents: Sequence[Tensor]) -> list[Tensor]:
    """A picture `(3, height, width)` in [-1, 1] of the latents of each request, as its edit finishes it.

    Raises:
        NotEnoughMemory: if memory does not do for one picture alone.
    """
    try:
        pictures = latent_tokens.decode(vae, latents, [request.grid for request in requests])
        return [_finished(request, picture) for request, picture in zip(requests, pictures, strict=True)]
    except Exception as error:
        if not out_of_memory(error):
            raise
        failure = error
    traceback.clear_frames(failure.__traceback__)  # they hold what was computed so far
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(requests) > 1:
        logger.warning("Out of memory while %d pictures were decoded: they are decoded one by one.", len(requests))
        return [decode(vae, [one], [own])[0] for one, own in zip(requests, latents, strict=True)]
    height, width = (latent_tokens.PATCH * latent_tokens.scale_factor(vae) * side for side in requests[0].grid)
    raise NotEnoughMemory(
        f"Memory ran out while a picture of {width} x {height} pixels was decoded. The error's `requests`"
        " keep its latents: free memory, or call `pipe.vae.enable_tiling()`, which may leave faint seams, and then"
        " `pipe.decode_requests(error.requests)`. `pipe.fit_memory` plans for the memory that there is.",
        requests,
    ) from failure


def _finished(request: Request, picture: Tensor) -> Tensor:
    edit = request.edit
    return picture if edit is None or edit.finish is None else edit.finish(picture)


def pictures_of(vae: Any, processor: VaeImageProcessor, requests: Sequence[Request], output_type: str) -> Any:
    """Pictures of requests, as `Ideogram4PipelineOutput.images` has them.

    Raises:
        NotEnoughMemory: with all the requests, whichever it was that could not be decoded.
    """
    try:
        pictures = decode(vae, requests, [request.latents for request in requests])
    except NotEnoughMemory as error:
        error.requests = list(requests)
        raise
    stacked = stack(pictures)
    if isinstance(stacked, Tensor):
        images = processor.postprocess(stacked, output_type=output_type)
    else:
        images = [processor.postprocess(picture[None], output_type=output_type)[0] for picture in pictures]
    if output_type == "pil":
        for image, request in zip(images, requests, strict=True):
            _sign(image, request)
    return images


def _sign(image: Any, request: Request) -> None:
    """Put the settings that make a picture again into it, where they are known."""
    if request.settings is None:
        return
    settings = dict(request.settings)
    if request.step < request.steps:
        doubt(settings, "it was stopped before its last step")
    image.info[KEY] = to_text(settings)


def explained(error: Exception, request: Request) -> Exception:
    """The error of a request that could not be stepped by itself, with what to do where memory ran out."""
    if not out_of_memory(error):
        return error
    wrapped = NotEnoughMemory(
        f"Memory ran out in a step of one picture of {request.grid[0]} x {request.grid[1]} tokens by itself: draw a"
        " smaller one, let `pipe.fit_memory` plan for the memory that there is, or offload or quantize the"
        " transformers."
    )
    wrapped.__cause__ = error
    return wrapped

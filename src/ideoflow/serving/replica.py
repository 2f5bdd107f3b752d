"""A replica: the pipeline that draws the pictures of jobs, and the engine that steps them in a thread of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ..captions.sent_prompt import ReadPrompt
from ..editing import Ideogram4InpaintPipeline
from ..engine import Event, Request
from ..pipeline import Ideogram4Pipeline, preview_map_of
from .api_errors import ApiError
from .caption_length import check_length, count_tokens
from .drawing_order import DrawingOrder
from .job import Job, Picture
from .job_settings import ServedModel
from .picture_changes import PictureChange
from .worker import Worker

TOKENS_OF_A_PASS = 65_536  # sixteen pictures of 1024 x 1024 pixels, of which memory holds one pass on most devices


class Replica:
    """Draws pictures of jobs; all methods may be called from any thread.

    Args:
        pipe: the pipeline, which nobody else uses.
        served: what orders are settled by.
        on_event: called with each event of the engine, in its thread; it returns at once.
        on_pass: called after each pass with its tokens, its requests and its seconds.
        on_broken: called once, in the engine's thread, when the engine is given up.
    """

    def __init__(
        self,
        pipe: Ideogram4Pipeline,
        served: ServedModel,
        on_event: Callable[[Event], None],
        on_pass: Callable[[int, int, float], None],
        on_broken: Callable[[], None],
    ) -> None:
        self.pipe = pipe
        self.engine = pipe.engine(
            policy=served.settings.policy,
            max_tokens=served.settings.max_tokens or (TOKENS_OF_A_PASS if pipe.plan is None else None),
            output_type="pil",
            preview_every=1,
            previews=preview_map_of(pipe.vae, served.settings.data),
            cuda_graphs=served.settings.cuda_graphs,
        )
        self._served = served
        self._editor = Ideogram4InpaintPipeline.from_pipe(pipe)
        self._worker = Worker(self.engine, on_event, on_pass, on_broken)

    def start(self) -> None:
        """Begin to step."""
        self._worker.start()

    def close(self, timeout: float) -> None:
        """Let the requests that are here end, for so many seconds at most."""
        self._worker.close(timeout)

    @property
    def healthy(self) -> bool:
        """Whether requests are stepped."""
        return self._worker.healthy

    @property
    def pace(self) -> float | None:
        """Tokens a second of the latest passes; None before the first."""
        return self._worker.pace

    @property
    def backlog(self) -> float | None:
        """Seconds that the requests which are here take at the pace of late; None before the first pass."""
        return self._worker.backlog

    @property
    def waiting(self) -> list[Request]:
        """Requests that have steps before them, in the order in which the next ones are chosen."""
        return self.engine.requests

    def count_tokens(self, line: str) -> int:
        """Tokens that the model reads of a prompt's line."""
        return count_tokens(self.pipe.tokenizer, line)

    def check_length(self, prompt: ReadPrompt, field: str) -> None:
        """See that the model can read a caption of this length; arguments and errors as of the function."""
        check_length(self.pipe.tokenizer, prompt, field)

    def make(self, job: Job, change: PictureChange | None) -> None:
        """Make the requests of a job's pictures that are missing.

        Args:
            job: the job.
            change: what is done to a picture; None where pictures are drawn from the caption alone.

        Raises:
            ApiError: with status 400 where the pipeline refuses them.
        """
        order = DrawingOrder.of(job, change)
        try:
            requests = self.requests_of(order)
        except (ValueError, TypeError) as error:
            raise ApiError(400, str(error), code="invalid_value") from None
        for index, request in zip(order.indices, requests, strict=True):
            job.pictures[index] = Picture.of(request)

    def requests_of(self, order: DrawingOrder) -> list[Request]:
        """A request for each picture of an order.

        Raises:
            ValueError: where the pipeline refuses them.
            TypeError: the same.
        """
        settings, change, left = order.settings, order.change, order.seconds_left
        options: dict[str, Any] = {} if settings.guidance is None else {"guidance_scale": settings.guidance}
        if change is None:
            make = partial(self.pipe.make_requests, order.prompt, size=(settings.width, settings.height))
        else:
            make = partial(self._editor.make_edits, change, order.prompt)
        requests = make(
            num_images_per_prompt=len(order.indices),
            preset=settings.preset,
            num_inference_steps=settings.steps,
            generator=[torch.Generator().manual_seed(settings.seeds[index]) for index in order.indices],
            defer=True,
            priority=settings.priority,
            adapters=dict(settings.adapters) if self._served.adapters else None,
            deadline=None if left is None else time.monotonic() + left,
            preview_every=settings.preview_every,
            **options,
        )
        for name, request in zip(order.names, requests, strict=True):
            request.id = name
        return requests

    def add(self, requests: Sequence[Request]) -> None:
        """Let requests take part from the next step on.

        Raises:
            ValueError: a request that the engine refuses; then none takes part.
        """
        self._worker.add(requests)

    def cancel(self, request: Request) -> None:
        """Give up a request, if it is not finished."""
        self.engine.cancel(request)

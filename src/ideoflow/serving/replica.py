"""A replica: the pipeline that draws the pictures of jobs, and the engine that steps them in a thread of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..captions.sent_prompt import ReadPrompt
from ..editing import Ideogram4InpaintPipeline
from ..engine import Event, Request
from ..pipeline import Ideogram4Pipeline, preview_map_of
from ..text_encoder import CaptionTooLong, tokenise
from .api_errors import ApiError
from .job import Job, Picture
from .job_settings import MOST_TEXT, ServedModel
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
    def backlog(self) -> float | None:
        """Seconds that the requests which are here take at the pace of late; None before the first pass."""
        return self._worker.backlog

    @property
    def waiting(self) -> list[Request]:
        """Requests that have steps before them, in the order in which the next ones are chosen."""
        return self.engine.requests

    def count_tokens(self, line: str) -> int:
        """Tokens that the model reads of a prompt's line."""
        return len(tokenise(self.pipe.tokenizer, [line], max_sequence_length=len(line.encode()) + 1000)[0])

    def check_length(self, prompt: ReadPrompt, field: str) -> None:
        """See that the model can read a caption of this length; the engine may have to wait while it is tokenised.

        Args:
            prompt: the caption.
            field: what the client calls it.

        Raises:
            ApiError: with status 400 for one that is too long.
        """
        too_long = None
        if len(prompt.line) > MOST_TEXT:
            too_long = f"The caption has {len(prompt.line)} characters: give at most {MOST_TEXT}."
        else:
            try:
                tokenise(self.pipe.tokenizer, [prompt.line])
            except CaptionTooLong as error:
                too_long = str(error)
        if too_long:
            raise ApiError(400, too_long, code="invalid_caption", param=field)

    def make(self, job: Job, change: PictureChange | None) -> None:
        """Make the requests of a job's pictures that are missing.

        Args:
            job: the job.
            change: what is done to a picture; None where pictures are drawn from the caption alone.

        Raises:
            ApiError: with status 400 where the pipeline refuses them.
        """
        settings, missing = job.settings, job.missing
        options: dict[str, Any] = {} if settings.guidance is None else {"guidance_scale": settings.guidance}
        if change is None:
            make = partial(self.pipe.make_requests, job.record.prompt, size=(settings.width, settings.height))
        else:
            make = partial(self._editor.make_edits, change, job.record.prompt)
        try:
            requests = make(
                num_images_per_prompt=len(missing),
                preset=settings.preset,
                num_inference_steps=settings.steps,
                generator=[torch.Generator().manual_seed(settings.seeds[index]) for index in missing],
                defer=True,
                priority=settings.priority,
                adapters=dict(settings.adapters) if self._served.adapters else None,
                deadline=None if settings.timeout is None else time.monotonic() + _left(job),
                preview_every=settings.preview_every,
                **options,
            )
        except (ValueError, TypeError) as error:
            raise ApiError(400, str(error), code="invalid_value") from None
        for index, request in zip(missing, requests, strict=True):
            request.id = f"{job.id} picture {index}"
            job.pictures[index] = Picture.of(request)

    def add(self, job: Job) -> None:
        """Let the requests of a job take part from the next step on.

        Raises:
            ValueError: a request that the engine refuses; then none takes part.
        """
        self._worker.add(job.under_way)

    def cancel(self, request: Request) -> None:
        """Give up a request, if it is not finished."""
        self.engine.cancel(request)


def _left(job: Job) -> float:
    """Seconds of a job's time limit that are left."""
    return job.record.created_at + (job.settings.timeout or 0) - time.time()

"""Measured steps: traffic of a few steps through the engine itself, on the machine and the weights at hand."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..engine import Denoiser, Engine, Policy, Request
from ..text_encoder import encode_captions
from .cost import Cost, nearest
from .traffic import Job, parted

if TYPE_CHECKING:
    from ..pipeline import Ideogram4Pipeline

REQUESTS = 24  # that are served
STEPS = 6  # of each, at the most
WARM_UP = 4  # steps that are not counted


@torch.no_grad()
def measure(
    pipeline: Ideogram4Pipeline,
    kinds: Sequence[tuple[float, Job]],
    *,
    max_tokens: int | None = None,
    max_requests: int | None = None,
    policy: Policy = "fair",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Cost:
    """The cost model of a pipeline where it is: its steps, captions and pictures, timed and fitted.

    Requests of random numbers come one by one and take a few steps each, so that sets of many sizes are timed, with
    what it costs to change them.

    Args:
        pipeline: The pipeline; its transformers, text encoder and autoencoder are timed.
        kinds: `(weight, job)`, as `poisson` takes them.
        max_tokens: As the engine will have it.
        max_requests: As the engine will have it.
        policy: As the engine will have it.
        seed: Seed of the random numbers.
        progress: Called with the steps taken and their number, all requests' together.
    """
    draw = random.Random(seed)
    weights, jobs = parted(kinds)
    chosen = [replace(job, guidance=job.guidance[:STEPS]) for job in jobs]
    waiting = chosen + draw.choices(chosen, weights, k=max(0, REQUESTS - len(chosen)))
    total = sum(len(job.guidance) for job in waiting)

    denoiser = Denoiser(pipeline.transformer, pipeline.unconditional_transformer)
    engine = Engine(denoiser, max_tokens=max_tokens, max_requests=max_requests, policy=policy)
    job_of: dict[Request, Job] = {}
    steps: list[tuple[list[int], float]] = []
    done: dict[int, Request] = {}  # one of each number of image tokens
    taken = 0
    while waiting or not engine.idle:
        if waiting:
            job = waiting.pop(0)
            job_of[engine.add(_request(pipeline, denoiser, job, draw.randrange(2**31)))] = job
        begun = time.perf_counter()
        events = engine.step()
        _wait(denoiser)
        seconds = time.perf_counter() - begun
        for event in events:
            if event.error is not None:
                raise event.error
            if event.kind == "finished":
                done.setdefault(event.request.image_tokens, event.request)
        stepped = [(job_of[event.request], event.step) for event in events if event.kind == "step"]
        steps.append(([n for job, step in stepped for n in job.segments_of(step - 1)], seconds))
        taken += len(stepped)
        if progress is not None:
            progress(taken, total)
    counted = steps[WARM_UP:] if len(steps) >= WARM_UP + 3 else steps
    finish = [_seconds(pipeline, denoiser, request) / request.image_tokens for request in done.values()]
    start = [_seconds_of_caption(pipeline, denoiser, job.text_tokens) for job in jobs]
    return replace(
        nearest(counted),  # if all are of one size, such as those of one job a step, so are those it is asked for
        start=sum(weight * value for weight, value in zip(weights, start, strict=True)) / sum(weights),
        finish=statistics.fmean(finish),
    )


def _request(pipeline: Ideogram4Pipeline, denoiser: Denoiser, job: Job, seed: int) -> Request:
    """A request of random numbers, as large as the job."""
    generator = torch.Generator().manual_seed(seed)
    sizes = pipeline.transformer.config
    rows = next(n for n in range(math.isqrt(job.image_tokens), 0, -1) if job.image_tokens % n == 0)
    grid = (rows, job.image_tokens // rows)
    features = torch.randn(job.text_tokens, sizes.llm_features_dim, generator=generator)
    guided = any(guidance != 1 for guidance in job.guidance)
    return Request(
        conditional=denoiser.prepare_conditional(features, grid),
        unconditional=denoiser.prepare_unconditional(grid) if guided else None,
        latents=torch.randn(job.image_tokens, sizes.in_channels, generator=generator).to(denoiser.device),
        sigmas=torch.linspace(1, 0, len(job.guidance) + 1),
        guidance=job.guidance,
        grid=grid,
    )


def _seconds(pipeline: Ideogram4Pipeline, denoiser: Denoiser, request: Request) -> float:
    """Seconds of a picture of the request's latents, the second time."""
    return _second_time(lambda: pipeline.decode_requests([request]), denoiser)


def _seconds_of_caption(pipeline: Ideogram4Pipeline, denoiser: Denoiser, tokens: int) -> float:
    """Seconds of a caption of so many tokens: of one of about so many, in proportion."""
    words = "red " * max(1, tokens // 2)
    found = 0

    def encode() -> None:
        nonlocal found
        features = encode_captions(pipeline.text_encoder, pipeline.tokenizer, [words], pipeline.taps, 2**20)[0]
        found = len(denoiser.project_text(features))

    return _second_time(encode, denoiser) * tokens / found


def _second_time(work: Callable[[], object], denoiser: Denoiser) -> float:
    work()
    _wait(denoiser)
    begun = time.perf_counter()
    work()
    _wait(denoiser)
    return time.perf_counter() - begun


def _wait(denoiser: Denoiser) -> None:
    if denoiser.device.type == "cuda":
        torch.cuda.synchronize(denoiser.device)

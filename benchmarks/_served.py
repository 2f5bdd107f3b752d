"""Traffic served by the engine in real time, and all that is known of every step of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ideoflow import Ideogram4Pipeline, sketch
from ideoflow.engine import Request
from ideoflow.simulate import Cost, Job, Report, fit_cost
from ideoflow.sketch.wording import line
from tools.sketch.score import held_out

KINDS = {"small": ((96, 96), 12, 5.0), "large": ((192, 192), 48, 1.0)}  # size, steps, weight
TICK = 1e-6  # seconds by which what comes between two steps is before the second, whatever rounding does
PARTS = 10  # of a run, to show how the machine's speed changed


def make(pipe: Ideogram4Pipeline, kind: str, index: int) -> Request:
    """A request of a kind, with one of forty captions."""
    size, steps, _ = KINDS[kind]
    caption = line(held_out(40)[index % 40].caption)
    return pipe.make_requests(
        caption, size=size, num_inference_steps=steps, guidance_scale=sketch.GUIDANCE, guidance_schedule=None, mu=0.0,
        std=1.75, generator=torch.Generator().manual_seed(index),
    )[0]  # fmt: skip


def job_of(request: Request, kind: str) -> Job:
    """The simulator's counterpart of a request that has not begun."""
    return Job(request.text_tokens, request.image_tokens, request.guidance, kind=kind)


@dataclass
class Step:
    """A served step.

    Attributes:
        begun: When the engine looked for arrivals before it.
        segments: Lengths of all segments of all that ran.
        seconds: Of the engine's step alone.
        decoding: Seconds of each picture made after it, by image token.
        ended: When all that was done.
        idle: Whether nothing was left to do then.
    """

    begun: float
    segments: list[int]
    seconds: float
    decoding: list[float]
    ended: float = 0.0
    idle: bool = False


@dataclass
class Run:
    """What was served, and every step of it."""

    report: Report
    steps: list[Step]
    decoded: float  # seconds of all pictures
    added: list[float]  # when the engine was given each job

    @property
    def cost(self) -> Cost:
        """The cost model of these steps and pictures."""
        fitted = fit_cost([(step.segments, step.seconds) for step in self.steps])
        return replace(fitted, finish=statistics.fmean(value for step in self.steps for value in step.decoding))

    @property
    def spans(self) -> list[float]:
        """Seconds of each step with all that came before the next one could start."""
        after = [*(step.begun for step in self.steps[1:]), 0.0]
        return [(s.ended if s.idle else then) - s.begun for s, then in zip(self.steps, after, strict=True)]

    @property
    def outside(self) -> float:
        """Share of the busy time that was neither a step nor a picture."""
        return 1 - (sum(step.seconds for step in self.steps) + self.decoded) / sum(self.spans)

    def drift(self, cost: Cost) -> list[float]:
        """What the steps of each tenth of the run took, over what the model says of them."""
        size = -(-len(self.steps) // PARTS)
        parts = [self.steps[begin : begin + size] for begin in range(0, len(self.steps), size)]
        return [sum(s.seconds for s in part) / sum(cost.step(s.segments) for s in part) for part in parts]


def serve(
    pipe: Ideogram4Pipeline, traffic: Sequence[Job], requests: Sequence[Request], policy: str, budget: int
) -> Run:
    """Let the engine serve requests that come when the traffic says, in real time."""
    engine = pipe.engine(policy=policy, max_tokens=budget)  # type: ignore[arg-type]
    jobs = dict(zip(requests, traffic, strict=True))
    waiting = sorted(jobs.items(), key=lambda pair: -pair[1].arrival)
    steps: list[Step] = []
    added: dict[Job, float] = {}
    decoded = 0.0
    zero = time.perf_counter()
    while waiting or not engine.idle:
        now = time.perf_counter() - zero
        idle = engine.idle
        while waiting and waiting[-1][1].arrival <= now:
            request, job = waiting.pop()
            engine.add(request)
            added[job] = now if idle else now - TICK
        if engine.idle:
            time.sleep(max(0.0, waiting[-1][1].arrival - now))
            continue
        events = engine.step()
        seconds = time.perf_counter() - zero - now
        ran = [event.request for event in events if event.kind == "step"]
        steps.append(Step(now, [n for request in ran for n in jobs[request].segments], seconds, []))
        for request in (event.request for event in events if event.kind == "finished"):
            before = time.perf_counter()
            pipe.decode_requests([request])
            after = time.perf_counter()
            decoded += after - before
            steps[-1].decoding.append((after - before) / request.image_tokens)
            jobs[request].finished = after - zero
        steps[-1].ended, steps[-1].idle = time.perf_counter() - zero, engine.idle
    lasted = steps[-1].ended - traffic[0].arrival
    run = Run(Report(list(traffic), lasted, 0.0, waste=0.0), steps, decoded, [added[job] for job in traffic])
    return replace(run, report=replace(run.report, busy=sum(run.spans) / lasted))

"""A discrete-event simulator of the engine's scheduler, for traffic and machines that are not at hand.

Simulated devices run the very `Scheduler` of the engine, and a cost model says how long a step takes; `fit` finds it
from measured steps. Times are seconds.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .engine import Policy, Scheduler


@dataclass(frozen=True)
class Cost:
    """Seconds of a step: `a + b * tokens + c * sum(tokens_i ** 2)` over the segments i of all its branches.

    Attributes:
        a: of any step.
        b: of a token.
        c: of a pair of tokens that attend to each other.
        start: of a request, before its first step (its caption).
        finish: of an image token, after the last step (the picture).
    """

    a: float
    b: float
    c: float = 0.0
    start: float = 0.0
    finish: float = 0.0

    def step(self, segments: Sequence[int]) -> float:
        """Seconds of a step whose segments have these lengths."""
        return self.a + self.b * sum(segments) + self.c * sum(length**2 for length in segments)


def fit(steps: Sequence[tuple[Sequence[int], float]]) -> Cost:
    """The cost model nearest to measured steps: least squares of the error relative to the model's own prediction.

    Relative to what was measured, slow steps would count for little, and the model would be too fast on average.

    Args:
        steps: `(lengths of all segments, seconds)` of each measured step; at least three of different kinds.

    Raises:
        ValueError: if there are too few.
    """
    if len(steps) < 3:
        raise ValueError(f"`steps` holds {len(steps)}: measure at least three, of different numbers of tokens.")
    seconds = torch.tensor([value for _, value in steps], dtype=torch.float64)
    terms = torch.tensor([[1.0, sum(lengths), sum(n**2 for n in lengths)] for lengths, _ in steps], dtype=torch.float64)
    predicted = seconds.mean().expand(len(steps))
    for _ in range(4):
        numbers = _least_squares(terms / predicted[:, None], seconds / predicted)
        predicted = (terms @ numbers).clamp_min(1e-12)
    return Cost(*numbers.tolist())


def _least_squares(terms: Tensor, values: Tensor) -> Tensor:
    """The nearest combination of the terms (n, 3) to the values (n,) of which no number is below zero."""
    best, error = torch.zeros(3, dtype=torch.float64), math.inf
    for size in (3, 2, 1):
        for chosen in itertools.combinations(range(3), size):
            columns = terms[:, list(chosen)]
            found = torch.linalg.lstsq(columns, values[:, None]).solution[:, 0]
            off = float((columns @ found - values).square().sum())
            if bool((found >= 0).all()) and off < error:
                best, error = torch.zeros(3, dtype=torch.float64), off
                best[list(chosen)] = found
    return best


@dataclass(eq=False)
class Job:
    """A simulated request.

    Attributes:
        text_tokens: of its caption.
        image_tokens: of its picture.
        guidance: of each step, as a request has it; its length is the number of steps.
        kind: a name, to tell apart in reports.
        arrival: when it comes.
        priority: under the policy of that name.
        step: steps taken.
        finished: when its picture was there; None before.
    """

    text_tokens: int
    image_tokens: int
    guidance: tuple[float, ...]
    kind: str = ""
    arrival: float = 0.0
    priority: int = 0
    step: int = 0
    finished: float | None = None

    @property
    def segments(self) -> tuple[int, ...]:
        """Lengths of its segments in the next step, one for each branch."""
        conditional = self.text_tokens + self.image_tokens
        return (conditional, self.image_tokens) if self.guidance[self.step] != 1 else (conditional,)

    @property
    def tokens(self) -> int:
        """Tokens of the next step, as `Request.tokens` counts them."""
        return sum(self.segments)

    @property
    def remaining(self) -> int:
        """Tokens of all steps that it has before it."""
        guided = sum(guidance != 1 for guidance in self.guidance[self.step :])
        steps = len(self.guidance) - self.step
        return steps * (self.text_tokens + self.image_tokens) + guided * self.image_tokens

    @property
    def latency(self) -> float:
        """Seconds from its arrival to its picture."""
        if self.finished is None:
            raise ValueError(f"{self} is not finished.")
        return self.finished - self.arrival


def poisson(kinds: Sequence[tuple[float, Job]], rate: float, count: int, seed: int = 0) -> list[Job]:
    """Jobs that arrive at random, independently of each other.

    Args:
        kinds: `(weight, job)`: how often each kind comes, in proportion to the weights.
        rate: Jobs a second, on average.
        count: How many.
        seed: Of the random numbers.
    """
    draw = random.Random(seed)
    weights, jobs = [weight for weight, _ in kinds], [job for _, job in kinds]
    now, traffic = 0.0, []
    for _ in range(count):
        now += draw.expovariate(rate)
        traffic.append(replace(draw.choices(jobs, weights)[0], arrival=now))
    return traffic


def rate_of_load(kinds: Sequence[tuple[float, Job]], cost: Cost, load: float, devices: int = 1) -> float:
    """Jobs a second that keep `devices` busy for the share `load` of the time if each job ran alone."""
    total = sum(weight for weight, _ in kinds)
    alone = sum(weight * _seconds_alone(job, cost) for weight, job in kinds) / total
    return load * devices / alone


def _seconds_alone(job: Job, cost: Cost) -> float:
    steps = (replace(job, step=step) for step in range(len(job.guidance)))
    return cost.start + sum(cost.step(each.segments) for each in steps) + cost.finish * job.image_tokens


@dataclass(frozen=True)
class Report:
    """What became of traffic.

    Attributes:
        jobs: All of them, finished.
        seconds: From the first arrival to the last picture.
        busy: Share of that time in which the devices worked.
        waste: Share of the tokens computed that were padding.
    """

    jobs: list[Job] = field(repr=False)
    seconds: float
    busy: float
    waste: float

    @property
    def throughput(self) -> float:
        """Pictures a second."""
        return len(self.jobs) / self.seconds

    def percentile(self, share: float, kind: str | None = None) -> float:
        """The latency that a share of the jobs (of one kind) do not exceed: 0.95 for p95."""
        latencies = sorted(job.latency for job in self.jobs if kind is None or job.kind == kind)
        if not latencies:
            raise ValueError(f"there is no job of the kind {kind!r}")
        return latencies[min(len(latencies) - 1, math.ceil(share * len(latencies)) - 1)]

    def __str__(self) -> str:
        """Throughput, latencies, busy time and waste, one line for each kind of job."""
        kinds = list(dict.fromkeys(job.kind for job in self.jobs))
        lines = [f"{self.throughput:8.3f} pictures/s, busy {self.busy:.0%}, padding {self.waste:.0%}"]
        for kind in kinds:
            p50, p95, p99 = (self.percentile(share, kind) for share in (0.5, 0.95, 0.99))
            lines.append(f"{kind or 'all':>8}  p50 {p50:8.2f} s  p95 {p95:8.2f} s  p99 {p99:8.2f} s")
        return "\n".join(lines)


class _Device:
    """One engine: its scheduler, the jobs it has started, and the tokens that it still has to compute."""

    def __init__(self, max_tokens: int | None, max_requests: int | None, policy: Policy) -> None:
        self.scheduler: Scheduler[Job] = Scheduler(max_tokens, max_requests, policy)
        self.idle = True
        self.busy = 0.0

    @property
    def load(self) -> int:
        return sum(job.remaining for job in self.scheduler.jobs)


def simulate(
    jobs: Sequence[Job],
    cost: Cost,
    *,
    devices: int = 1,
    policy: Policy = "fair",
    max_tokens: int | None = None,
    max_requests: int | None = None,
) -> Report:
    """Let engines serve traffic; each job goes to the device with the fewest tokens before it.

    Args:
        jobs: The traffic; it is not changed.
        cost: Of a step.
        devices: How many, each with an engine of its own.
        policy: As the engine has it.
        max_tokens: As the engine has it.
        max_requests: As the engine has it.
    """
    jobs = [replace(job, step=0, finished=None) for job in sorted(jobs, key=lambda job: job.arrival)]
    fleet = [_Device(max_tokens, max_requests, policy) for _ in range(devices)]
    order = itertools.count()
    events: list[tuple[float, int, Callable[[float], None]]] = []

    def at(when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(events, (when, next(order), what))

    def arrive(job: Job) -> Callable[[float], None]:
        def happen(now: float) -> None:
            device = min(fleet, key=lambda one: one.load) if devices > 1 else fleet[0]
            device.scheduler.add(job)
            if device.idle:
                device.idle = False
                at(now, lambda now: step(device, now))  # after all that arrive at this moment

        return happen

    def step(device: _Device, now: float) -> None:
        chosen = device.scheduler.pick()
        if not chosen:
            device.idle = True
            return
        tokens = [job.tokens for job in chosen]
        seconds = cost.step([length for job in chosen for length in job.segments])
        seconds += cost.start * sum(job.step == 0 for job in chosen)
        ends = now + seconds
        device.scheduler.ran(chosen, tokens)
        for job in chosen:
            job.step += 1
            if job.step == len(job.guidance):
                ends += cost.finish * job.image_tokens
                job.finished = ends
                device.scheduler.remove(job)
        device.busy += ends - now
        at(ends, lambda now: step(device, now))

    for job in jobs:
        at(job.arrival, arrive(job))
    while events:
        now, _, happen = heapq.heappop(events)
        happen(now)
    return _report(jobs, sum(device.busy for device in fleet) / devices, waste=0.0)


def simulate_batches(jobs: Sequence[Job], cost: Cost, *, batch: int, devices: int = 1) -> Report:
    """The usual server instead: batches of equal size and steps, captions padded to the longest, run to their end.

    A device that is free takes the oldest job and up to `batch - 1` others that wait and fit with it.

    Args:
        jobs: The traffic; it is not changed.
        cost: Of a step.
        batch: The most jobs of a batch.
        devices: How many.
    """
    jobs = [replace(job, step=0, finished=None) for job in sorted(jobs, key=lambda job: job.arrival)]
    free = [0.0] * devices
    waiting: list[Job] = []
    coming = iter([*jobs, None])
    upcoming = next(coming)
    busy = computed = real = 0.0
    while waiting or upcoming is not None:
        device = min(range(devices), key=lambda i: free[i])
        now = free[device]
        if not waiting and upcoming is not None:
            now = max(now, upcoming.arrival)
        while upcoming is not None and upcoming.arrival <= now:
            waiting.append(upcoming)
            upcoming = next(coming)
        first = waiting[0]
        alike = [job for job in waiting if (job.image_tokens, job.guidance) == (first.image_tokens, first.guidance)]
        chosen = alike[:batch]
        waiting = [job for job in waiting if job not in chosen]
        longest = max(job.text_tokens for job in chosen)
        ends = now + cost.start * len(chosen)
        for step in range(len(first.guidance)):
            segments = replace(first, text_tokens=longest, step=step).segments * len(chosen)
            ends += cost.step(segments)
            computed += sum(segments)
            real += sum(sum(replace(job, step=step).segments) for job in chosen)
        ends += cost.finish * first.image_tokens * len(chosen)
        for job in chosen:
            job.step, job.finished = len(job.guidance), ends
        busy += ends - now
        free[device] = ends
    return _report(jobs, busy / devices, waste=1 - real / computed if computed else 0.0)


def _report(jobs: list[Job], busy: float, waste: float) -> Report:
    if not jobs:
        raise ValueError("`jobs` is empty: give at least one.")
    seconds = max(job.finished or 0.0 for job in jobs) - jobs[0].arrival
    return Report(jobs, seconds, busy / seconds if seconds else 0.0, waste)

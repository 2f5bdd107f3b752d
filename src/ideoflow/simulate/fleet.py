"""Simulated devices that run the very `Scheduler` of the engine, and what becomes of the traffic they serve."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ..checks import finite, whole
from ..engine import Policy, Scheduler
from .cost import Cost
from .pace import Pace
from .traffic import Job


@dataclass(frozen=True)
class Report:
    """What became of traffic.

    Attributes:
        jobs: All jobs, finished.
        seconds: Time from the first arrival to the last picture.
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
        """The latency that a share of the jobs (of one kind) do not exceed: 0.95 for p95.

        Args:
            share: Above 0; 1 gives the longest.
            kind: None for all.

        Raises:
            TypeError: if `share` is no number.
            ValueError: if it is out of range, or there is no job of the kind.
        """
        if finite("share", share, above=0) > 1:
            raise ValueError(f"`share` is {share!r}: give a number above 0 and up to 1, such as 0.95 for p95.")
        latencies = sorted(job.latency for job in self.jobs if kind is None or job.kind == kind)
        if not latencies:
            raise ValueError(f"there is no job of the kind {kind!r}")
        return latencies[math.ceil(share * len(latencies)) - 1]

    def __str__(self) -> str:
        """Throughput, latencies, busy time and waste, one line for each kind of job."""
        kinds = list(dict.fromkeys(job.kind for job in self.jobs))
        lines = [f"{self.throughput:8.3f} pictures/s, busy {self.busy:.0%}, padding {self.waste:.0%}"]
        for kind in kinds:
            p50, p95, p99 = (self.percentile(share, kind) for share in (0.5, 0.95, 0.99))
            lines.append(f"{kind or 'all':>8}  p50 {p50:8.2f} s  p95 {p95:8.2f} s  p99 {p99:8.2f} s")
        return "\n".join(lines)


class _Device:
    """One engine: its scheduler, its machine's pace, and the tokens that it still has to compute."""

    def __init__(self, max_tokens: int | None, max_requests: int | None, policy: Policy, pace: Pace) -> None:
        self.scheduler: Scheduler[Job] = Scheduler(max_tokens, max_requests, policy)
        self.pace = pace
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
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Let engines serve traffic; each job goes to the device with the fewest tokens before it.

    Args:
        jobs: The traffic; it is not changed.
        cost: Seconds of a step. Where it has a variation, each device draws slow and fast moments of its own from it.
        devices: How many devices, each with an engine of its own.
        policy: As the engine has it.
        max_tokens: As the engine has it.
        max_requests: As the engine has it.
        seed: Seed of the cost's variation. A percentile of a few hundred jobs differs from seed to seed: pool several.
        progress: Called with the jobs finished and all of them, after each that finishes.

    Raises:
        TypeError: naming the argument that is of another type.
        ValueError: naming the argument that is out of range; if there is no job, or their time is not finite.
    """
    whole("devices", devices, 1)
    jobs = _fresh(jobs)
    fleet = [_Device(max_tokens, max_requests, policy, pace) for pace in _paces(cost, devices, seed)]
    # What happens when: a job comes, or a device begins a step. In order, so a heap already; numbers part equal times.
    events: list[tuple[float, int, Job | _Device]] = [(job.arrival, number, job) for number, job in enumerate(jobs)]
    numbers = itertools.count(len(jobs))
    finished = 0
    while events:
        now, _, what = heapq.heappop(events)
        if isinstance(what, Job):
            device = min(fleet, key=lambda one: one.load) if devices > 1 else fleet[0]
            device.scheduler.add(what)
            if device.idle:
                device.idle = False
                heapq.heappush(events, (now, next(numbers), device))  # after all that arrive at this moment
            continue
        device = what
        chosen = device.scheduler.pick()
        if not chosen:
            device.idle = True
            continue
        tokens = [job.tokens for job in chosen]
        seconds = cost.step([length for job in chosen for length in job.segments])
        ends = now + device.pace.take(seconds + cost.start * sum(job.step == 0 for job in chosen))
        device.scheduler.ran(chosen, tokens)
        for job in chosen:
            job.step += 1
            if job.step == len(job.guidance):
                ends += device.pace.take(cost.finish * job.image_tokens)
                job.finished = ends
                device.scheduler.remove(job)
                finished += 1
                if progress is not None:
                    progress(finished, len(jobs))
        device.busy += ends - now
        heapq.heappush(events, (ends, next(numbers), device))
    return _report(jobs, sum(device.busy for device in fleet) / devices, waste=0.0)


def simulate_batches(jobs: Sequence[Job], cost: Cost, *, batch: int, devices: int = 1, seed: int = 0) -> Report:
    """The usual server instead: batches of equal size and steps, captions padded to the longest, run to their end.

    A device that is free takes the oldest job and up to `batch - 1` others that wait and fit with it.

    Args:
        jobs: The traffic; it is not changed.
        cost: Seconds of a step, as `simulate` takes it.
        batch: The most jobs of a batch.
        devices: How many devices.
        seed: Seed of the cost's variation.

    Raises:
        TypeError: naming the argument that is of another type.
        ValueError: naming the argument that is out of range; if there is no job, or their time is not finite.
    """
    whole("batch", batch, 1)
    whole("devices", devices, 1)
    jobs = _fresh(jobs)
    free = [jobs[0].arrival] * devices
    paces = _paces(cost, devices, seed)
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
        seconds = cost.start * len(chosen)
        padded = replace(first, text_tokens=longest)
        for step in range(len(first.guidance)):
            segments = padded.segments_of(step) * len(chosen)
            seconds += cost.step(segments)
            computed += sum(segments)
            real += sum(sum(job.segments_of(step)) for job in chosen)
        seconds += cost.finish * first.image_tokens * len(chosen)
        ends = now + paces[device].take(seconds)
        for job in chosen:
            job.step, job.finished = len(job.guidance), ends
        busy += ends - now
        free[device] = ends
    return _report(jobs, busy / devices, waste=1 - real / computed if computed else 0.0)


def _fresh(jobs: Sequence[Job]) -> list[Job]:
    """Copies that have taken no step, in the order of their arrival."""
    if not len(jobs):
        raise ValueError("`jobs` is empty: give at least one.")
    return [replace(job, step=0, finished=None) for job in sorted(jobs, key=lambda job: job.arrival)]


def _paces(cost: Cost, devices: int, seed: int) -> list[Pace]:
    return [Pace(cost.variation, f"pace {seed} of device {device}") for device in range(devices)]


def _report(jobs: list[Job], busy: float, waste: float) -> Report:
    seconds = max(job.finished for job in jobs if job.finished is not None) - jobs[0].arrival
    if not 0 < seconds < math.inf:
        raise ValueError(f"the jobs take {seconds:g} s in all: give arrivals and a `cost` of which numbers can tell.")
    return Report(jobs, seconds, busy / seconds, waste)

"""Simulated devices that run the very `Scheduler` of the engine, and what becomes of the traffic they serve."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..checks import finite, whole
from ..engine import Policy, Scheduler
from .cost import StepCost
from .pace import Pace
from .traffic import Job

MOST_FAILURES = 100  # for each job and device, before it is taken that no job is ever done


@dataclass(frozen=True)
class Report:
    """What became of traffic.

    Attributes:
        jobs: All jobs, finished.
        seconds: Time from the first arrival to the last picture.
        busy: Share of that time in which the devices worked.
        waste: Share of the tokens computed that were padding.
        failures: Devices that failed in that time.
        restarted: Jobs that were begun anew, elsewhere, since theirs failed.
    """

    jobs: list[Job] = field(repr=False)
    seconds: float
    busy: float
    waste: float
    failures: int = 0
    restarted: int = 0

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


@dataclass(frozen=True)
class Failures:
    """Devices that fail at random, each by itself, and come back.

    Attributes:
        every: Mean seconds from a device's return to its next failure.
        repair: Seconds that it is away.
    """

    every: float
    repair: float

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            TypeError: naming the number that is none.
            ValueError: naming the one that is out of range.
        """
        finite("every", self.every, above=0)
        finite("repair", self.repair, least=0)


class _Device:
    """One engine: its scheduler, its machine's pace, and the tokens that it still has to compute."""

    def __init__(
        self, number: int, max_tokens: int | None, max_requests: int | None, policy: Policy, pace: Pace
    ) -> None:
        self.number = number
        self.scheduler: Scheduler[Job] = Scheduler(max_tokens, max_requests, policy)
        self.pace = pace
        self.idle = True
        self.here = True
        self.load = 0
        self.busy = 0.0
        self.until = 0.0  # the end of the step under way
        self.ending: list[Job] = []  # jobs that are done with that step

    def step(self, now: float, cost: StepCost) -> bool:
        """Begin the next step; whether there is one."""
        chosen = self.scheduler.pick()
        self.ending = []
        self.idle = not chosen
        if not chosen:
            return False
        tokens = [job.tokens for job in chosen]
        seconds = cost.of([job.segments for job in chosen])
        ends = now + self.pace.take(seconds + cost.start * sum(job.step == 0 for job in chosen))
        self.scheduler.ran(chosen, tokens)
        self.load -= sum(tokens)
        for job in chosen:
            job.step += 1
            if job.step == len(job.guidance):
                ends += self.pace.take(cost.finish * job.image_tokens)
                job.finished = ends
                self.scheduler.remove(job)
                self.ending.append(job)
        self.busy += ends - now
        self.until = ends
        return True

    def fail(self, now: float) -> list[Job]:
        """Lose all that is here, the step under way too; the jobs, which have taken no step any more."""
        lost = [*self.ending, *self.scheduler.jobs]
        for job in self.scheduler.jobs:
            self.scheduler.remove(job)
        if not self.idle:
            self.busy -= self.until - now
        for job in lost:
            job.step, job.finished = 0, None
        self.here, self.idle, self.load, self.ending = False, True, 0, []
        return lost


class _Fleet:
    """Devices, and which of them has the fewest tokens before it."""

    def __init__(self, devices: Sequence[_Device]) -> None:
        self.devices = devices
        self._loads = [(0, device.number) for device in devices]

    def least(self) -> _Device | None:
        """The device with the fewest tokens before it, the first of several; None if all have failed."""
        while self._loads:
            load, number = self._loads[0]
            device = self.devices[number]
            if device.here and device.load == load:
                return device
            heapq.heappop(self._loads)  # it has another load since
        return None

    def changed(self, device: _Device) -> None:
        """Note another load of a device, or that it is back."""
        heapq.heappush(self._loads, (device.load, device.number))


def simulate(
    jobs: Sequence[Job],
    cost: StepCost,
    *,
    devices: int = 1,
    policy: Policy = "fair",
    max_tokens: int | None = None,
    max_requests: int | None = None,
    failures: Failures | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Let engines serve traffic; each job goes to the device with the fewest tokens before it.

    Args:
        jobs: The traffic; it is not changed.
        cost: Seconds of a step. Where it has a variation, each device draws slow and fast moments of its own from it.
        devices: How many devices, each with an engine of its own; several GPUs by a plan are one.
        policy: As the engine has it.
        max_tokens: As the engine has it.
        max_requests: As the engine has it.
        failures: Devices that fail, whose jobs are begun anew on others; None for none.
        seed: Seed of the cost's variation, and of failures. A percentile of a few hundred jobs differs from seed to
            seed: pool several.
        progress: Called with the jobs finished and all of them, after each that finishes.

    Raises:
        TypeError: naming the argument that is of another type.
        ValueError: naming the argument that is out of range; if there is no job, or their time is not finite.
    """
    whole("devices", devices, 1)
    jobs = _fresh(jobs)
    every = [
        _Device(number, max_tokens, max_requests, policy, pace)
        for number, pace in enumerate(_paces(cost, devices, seed))
    ]
    fleet = _Fleet(every)
    draw = random.Random(f"failures {seed}")
    # What happens when: a job comes, a device's step ends, or a device fails or returns. Numbers part equal times.
    events: list[tuple[float, int, str, Any]] = [(job.arrival, number, "job", job) for number, job in enumerate(jobs)]
    numbers = itertools.count(len(jobs))
    if failures is not None:
        for device in every:
            events.append((jobs[0].arrival + draw.expovariate(1 / failures.every), next(numbers), "fails", device))
        heapq.heapify(events)
    stranded: list[Job] = []  # jobs while no device is there
    finished = failed = restarted = 0
    while finished < len(jobs):
        now, _, what, about = heapq.heappop(events)
        arrived: list[Job] = []
        if what == "job":
            arrived = [about]
        elif what == "step":
            device, until = about
            if not device.here or device.until != until:
                continue  # it has failed since
            for _ in device.ending:
                finished += 1
                if progress is not None:
                    progress(finished, len(jobs))
            if device.step(now, cost):
                heapq.heappush(events, (device.until, next(numbers), "step", (device, device.until)))
            fleet.changed(device)
        elif what == "fails" and failures is not None:
            arrived = about.fail(now)
            failed += 1
            if failed > MOST_FAILURES * (len(jobs) + devices):
                raise ValueError(f"`failures` come every {failures.every:g} s: no job is done in between.")
            restarted += len(arrived)
            heapq.heappush(events, (now + failures.repair, next(numbers), "returns", about))
        elif failures is not None:
            about.here = True
            fleet.changed(about)
            arrived, stranded = stranded, []
            heapq.heappush(events, (now + draw.expovariate(1 / failures.every), next(numbers), "fails", about))
        for job in arrived:
            least = fleet.least()
            if least is None:
                stranded.append(job)
                continue
            least.scheduler.add(job)
            least.load += job.remaining
            fleet.changed(least)
            if least.idle:
                least.idle = False
                least.until, least.ending = now, []
                # After all that arrive at this moment.
                heapq.heappush(events, (now, next(numbers), "step", (least, now)))
    return _report(jobs, sum(device.busy for device in every) / devices, 0.0, failed, restarted)


def simulate_batches(jobs: Sequence[Job], cost: StepCost, *, batch: int, devices: int = 1, seed: int = 0) -> Report:
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
            seconds += cost.of([padded.segments_of(step)] * len(chosen))
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


def _paces(cost: StepCost, devices: int, seed: int) -> list[Pace]:
    return [Pace(cost.variation, f"pace {seed} of device {device}") for device in range(devices)]


def _report(jobs: list[Job], busy: float, waste: float, failures: int = 0, restarted: int = 0) -> Report:
    seconds = max(job.finished for job in jobs if job.finished is not None) - jobs[0].arrival
    if not 0 < seconds < math.inf:
        raise ValueError(f"the jobs take {seconds:g} s in all: give arrivals and a `cost` of which numbers can tell.")
    return Report(jobs, seconds, busy / seconds, waste, failures, restarted)

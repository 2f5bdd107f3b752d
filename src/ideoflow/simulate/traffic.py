"""Traffic: jobs of several kinds that arrive at random, at a rate or for a load."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..checks import all_finite, finite, whole
from .cost import StepCost

LATEST = 1e300  # seconds at the most from the first arrival to the last, on average


@dataclass(eq=False)
class Job:
    """A simulated request.

    Attributes:
        text_tokens: Tokens of its caption.
        image_tokens: Tokens of its picture.
        guidance: Guidance of each step, as a request has it; its length is the number of steps.
        kind: A name, to tell apart in reports.
        arrival: Second at which it comes.
        priority: Priority under the policy of that name.
        step: Number of steps taken.
        finished: Second at which its picture was there; None before.
    """

    text_tokens: int
    image_tokens: int
    guidance: tuple[float, ...]
    kind: str = ""
    arrival: float = 0.0
    priority: int = 0
    step: int = 0
    finished: float | None = None

    def __post_init__(self) -> None:
        """Check that it could be a request.

        Raises:
            TypeError: naming the attribute that is of another type.
            ValueError: naming the attribute that is out of range.
        """
        whole("text_tokens", self.text_tokens, 0)
        whole("image_tokens", self.image_tokens, 1)
        self.guidance = all_finite("guidance", self.guidance)
        if not self.guidance:
            raise ValueError("`guidance` is empty: give the guidance of each step, of one at least.")
        finite("arrival", self.arrival)
        finite("priority", self.priority)
        if whole("step", self.step, 0) > len(self.guidance):
            raise ValueError(f"`step` is {self.step}, but there are {len(self.guidance)} steps.")

    @property
    def segments(self) -> tuple[int, ...]:
        """Lengths of its segments in the next step, one for each branch."""
        return self.segments_of(self.step)

    def segments_of(self, step: int) -> tuple[int, ...]:
        """Lengths of its segments in a step."""
        conditional = self.text_tokens + self.image_tokens
        return (conditional, self.image_tokens) if self.guidance[step] != 1 else (conditional,)

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
        seed: Seed of the random numbers.

    Raises:
        TypeError: naming the argument that is of another type.
        ValueError: naming the argument that is out of range.
    """
    weights, jobs = parted(kinds)
    whole("count", count, 0)
    if finite("rate", rate, above=0) * LATEST < count:
        raise ValueError(f"`rate` is {rate!r}: {count} jobs at that rate take longer than there are numbers for.")
    draw = random.Random(seed)
    now, traffic = 0.0, []
    for _ in range(count):
        now += draw.expovariate(rate)
        traffic.append(replace(draw.choices(jobs, weights)[0], arrival=now))
    return traffic


def rate_of_load(kinds: Sequence[tuple[float, Job]], cost: StepCost, load: float, devices: int = 1) -> float:
    """Jobs a second that keep `devices` busy for the share `load` of the time if each job ran alone.

    Raises:
        TypeError: naming the argument that is of another type.
        ValueError: naming the argument that is out of range; if the rate is too small or large for a number.
    """
    weights, jobs = parted(kinds)
    work = finite("load", load, above=0) * whole("devices", devices, 1)
    seconds = sum(weight * seconds_alone(job, cost) for weight, job in zip(weights, jobs, strict=True)) / sum(weights)
    if not 0 < seconds < math.inf or not 0 < work / seconds < math.inf:
        raise ValueError(f"a job alone takes {seconds:g} s by `cost`: there is no rate for the load {load:g}.")
    return work / seconds


def parted(kinds: Sequence[tuple[float, Job]]) -> tuple[list[float], list[Job]]:
    """Weights and jobs of kinds.

    Raises:
        TypeError: if a weight is no number.
        ValueError: if there are no kinds, a weight is negative or not finite, or all are 0.
    """
    weights, jobs = [finite("kinds", weight, least=0) for weight, _ in kinds], [job for _, job in kinds]
    if not 0 < sum(weights) < math.inf:
        raise ValueError(f"`kinds` has the weights {weights}: give one kind at least, and a finite sum above 0.")
    return weights, jobs


def seconds_alone(job: Job, cost: StepCost) -> float:
    """Seconds of a job that has its devices to itself."""
    steps = sum(cost.of([job.segments_of(step)]) for step in range(len(job.guidance)))
    return cost.start + steps + cost.finish * job.image_tokens

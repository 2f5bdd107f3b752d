"""Traffic: jobs of several kinds that arrive at random, at a rate or for a load."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .cost import Cost


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

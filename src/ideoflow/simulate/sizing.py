"""How many GPUs traffic needs under a bound on waiting, and by which plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..checks import finite, whole
from ..engine import Policy
from .fleet import Failures, Report, simulate
from .parallel_plan import PlannedCost
from .traffic import Job, parted, poisson, seconds_alone

OF_EACH = 20  # requests that each replica is to see at least, or none would wait for another
FEWEST = 1000  # requests that are played at least


@dataclass(frozen=True)
class Sized:
    """What a plan takes.

    Attributes:
        cost: The plan, and what a step costs by it.
        alone: Seconds of a request of each kind that has a replica to itself.
        replicas: The fewest that do; None where no number up to the most does.
        report: What became of the traffic with so many; None where none do.
    """

    cost: PlannedCost
    alone: tuple[float, ...]
    replicas: int | None
    report: Report | None

    @property
    def gpus(self) -> int | None:
        """GPUs of all replicas."""
        return None if self.replicas is None else self.replicas * self.cost.plan.gpus


def fewest_replicas(
    kinds: Sequence[tuple[float, Job]],
    rate: float,
    cost: PlannedCost,
    *,
    share: float = 0.95,
    seconds: float,
    most_gpus: int = 1000,
    policy: Policy = "fair",
    max_tokens: int | None = None,
    max_requests: int | None = None,
    failures: Failures | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Sized:
    """The fewest replicas with which a share of all requests waits no longer than some seconds.

    Numbers of replicas are tried from what the work alone asks for, doubled until one does, and then halved in between:
    more replicas are taken to wait no longer, and none to do with fewer than keep up with the traffic.

    Args:
        kinds: `(weight, job)`, as `poisson` takes them.
        rate: Requests a second.
        cost: The plan, and what a step costs by it.
        share: Share of the requests: 0.95 for p95.
        seconds: The bound, from arrival to picture.
        most_gpus: GPUs that there are.
        policy: As the engine has it.
        max_tokens: As the engine has it.
        max_requests: As the engine has it.
        failures: Of replicas.
        seed: Seed of arrivals, failures and the cost's variation.
        progress: Called with the jobs finished and all of them, of each number of replicas that is tried.

    Raises:
        TypeError: naming the argument that is of another type.
        ValueError: naming the argument that is out of range.
    """
    finite("seconds", seconds, above=0)
    most = whole("most_gpus", most_gpus, 1) // cost.plan.gpus
    weights, jobs = parted(kinds)
    alone = tuple(seconds_alone(job, cost) for job in jobs)
    work, least = (
        rate * sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
        for values in (alone, [_beside_another(job, cost) for job in jobs])
    )
    found: dict[int, Report] = {}

    def does(replicas: int) -> bool:
        traffic = poisson(kinds, rate, max(FEWEST, OF_EACH * replicas), seed)
        found[replicas] = simulate(
            traffic, cost, devices=replicas, policy=policy, max_tokens=max_tokens, max_requests=max_requests,
            failures=failures, seed=seed, progress=progress,
        )  # fmt: skip
        return found[replicas].percentile(share) <= seconds

    low, high = max(0, math.ceil(least) - 1), max(1, math.ceil(work))
    if min(alone) > seconds or low >= most:
        return Sized(cost, alone, None, None)
    while not does(min(high, most)):
        low = min(high, most)
        if low == most:
            return Sized(cost, alone, None, None)
        high = 2 * high
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if does(middle) else (middle, high)
    return Sized(cost, alone, high, found[high])


def _beside_another(job: Job, cost: PlannedCost) -> float:
    """Seconds that a job adds to the steps of others that it is packed with."""
    each = cost.plan.data  # groups that have a job of their own
    added = cost.start + cost.finish * job.image_tokens
    for step in range(len(job.guidance)):
        segments = [job.segments_of(step)] * each
        added += (cost.of([*segments, *segments]) - cost.of(segments)) / each
    return added

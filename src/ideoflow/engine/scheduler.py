"""The scheduler: which jobs share the next step under a budget of tokens; a policy is the order of the jobs' keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar, get_args

from ..checks import whole

Policy = Literal["fair", "fifo", "priority"]
POLICIES: tuple[str, ...] = get_args(Policy)

CREDIT = 0.1  # what all jobs together are owed under "fair" of every token that passes, whoever comes after them
AGEING = 100  # steps of waiting that are worth one level of priority


class Job(Protocol):
    """What the scheduler has to know of a request."""

    @property
    def tokens(self) -> int:
        """Tokens of its next step."""

    @property
    def priority(self) -> int:
        """Higher goes first, under the policy of that name."""


J = TypeVar("J", bound=Job)


@dataclass(eq=False)
class _Entry(Generic[J]):
    job: J
    arrival: int  # a number of its own, growing
    key: float  # the least goes first


class Scheduler(Generic[J]):
    """Chooses, step by step, the jobs that run together.

    The jobs are taken in the order of the policy while they fit in the budget. The first always runs, alone if need be,
    so a job that keeps being first is never stuck; and under every policy each job becomes the first one at last, since
    the keys of those that come after it grow without bound while its own stands still as long as it waits.

    * "fair": the job that has had the fewest tokens goes first, so a small job passes a large one as soon as it comes.
      The count of one that comes late starts at what each of those before it has been owed so far, an equal part of
      `CREDIT` of the tokens that passed: that much of the machine is left to large jobs however many small ones come.
    * "fifo": the oldest first; a younger one joins only if every older one runs too.
    * "priority": the highest priority first; `AGEING` steps of age are worth one level.

    Under "fair" and "priority" a job that does not fit beside those before it is passed over for the step, and smaller
    ones fill the room.

    Args:
        max_tokens: Tokens of a step, both branches together; no limit if None.
        max_requests: Jobs of a step; no limit if None.
        policy: The order.

    Raises:
        TypeError: a limit that is no whole number.
        ValueError: a limit below 1, or an unknown policy.
    """

    def __init__(self, max_tokens: int | None = None, max_requests: int | None = None, policy: Policy = "fair") -> None:
        for name, limit in (("max_tokens", max_tokens), ("max_requests", max_requests)):
            if limit is not None:
                whole(name, limit, 1, ", or None for no limit")
        if policy not in POLICIES:
            raise ValueError(f"`policy` is {policy!r}: choose one of {', '.join(POLICIES)}.")
        self.max_tokens = max_tokens
        self.max_requests = max_requests
        self.policy = policy
        self._entries: dict[J, _Entry[J]] = {}
        self._arrivals = 0
        self._steps = 0
        self._owed = 0.0  # tokens that a job was owed so far which has been here from the beginning

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, job: J) -> bool:
        return job in self._entries

    def add(self, job: J) -> None:
        """Let a job wait for its first step.

        Raises:
            ValueError: if it is here already.
        """
        if job in self._entries:
            raise ValueError(f"{job} has been added already: it takes one step at a time.")
        if self.policy == "fair":
            key = self._owed
        elif self.policy == "priority":
            key = self._steps / AGEING - job.priority
        else:
            key = float(self._arrivals)
        self._entries[job] = _Entry(job, self._arrivals, key)
        self._arrivals += 1

    def remove(self, job: J) -> None:
        """Forget a job that needs no further step."""
        del self._entries[job]

    @property
    def jobs(self) -> list[J]:
        """All jobs, the oldest first."""
        return list(self._entries)

    def order(self) -> list[J]:
        """All jobs, the first to run first."""
        return [entry.job for entry in sorted(self._entries.values(), key=lambda e: (e.key, e.arrival))]

    def pick(self, jobs: Sequence[J] | None = None) -> list[J]:
        """The jobs of the next step, the first of the order first; empty if there is none.

        Args:
            jobs: Those to choose from, in an order of their own; all that were added if None.
        """
        chosen: list[J] = []
        tokens = 0
        for job in self.order() if jobs is None else jobs:
            if self.max_requests is not None and len(chosen) == self.max_requests:
                break
            if self.max_tokens is not None and chosen and tokens + job.tokens > self.max_tokens:
                if self.policy == "fifo":
                    break
                continue
            chosen.append(job)
            tokens += job.tokens
        return chosen

    def ran(self, jobs: Sequence[J], tokens: Sequence[int]) -> None:
        """Count a step that `jobs` took, of so many tokens each."""
        self._steps += 1
        self._owed += CREDIT * sum(tokens) / max(1, len(self._entries))
        if self.policy == "fair":
            for job, had in zip(jobs, tokens, strict=True):
                self._entries[job].key += had

"""Which replica draws what, how many there should be, and which goes next: rules over numbers, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar

State = Literal["starting", "ready", "leaving"]
Adapters = tuple[tuple[str, float], ...]

DEPTH = 2  # passes whose tokens a replica is given at a time: one that it takes, and one that waits
QUEUED = 20.0  # seconds of work for each replica, above which there should be one more
IDLE = 60.0  # seconds without work after which there should be one less


class Loaded(Protocol):
    """What routing looks at in a replica."""

    @property
    def state(self) -> State:
        """Whether it loads, draws, or ends what it has and then goes."""

    @property
    def generation(self) -> int:
        """How often replicas had been rolled over when it was started."""

    @property
    def outstanding(self) -> int:
        """Tokens of all steps of its requests."""

    @property
    def in_pass(self) -> int:
        """Tokens of the next step of each of its requests."""

    @property
    def adapters(self) -> Adapters | None:
        """The adapters that it draws with, or drew with last; None before its first request."""

    @property
    def pass_tokens(self) -> int:
        """Tokens of one of its passes."""


R = TypeVar("R", bound=Loaded)


def choose(replicas: Sequence[R], adapters: Adapters) -> R | None:
    """The replica that is to draw a request: of those that have room, the one with the fewest tokens before it.

    Requests of other adapters never share a pass, so one that draws with others already counts as having a pass more.
    None where no replica has room: what waits here goes to whoever has some first, and is not lost with a replica.
    """
    free = [one for one in replicas if one.state == "ready" and one.in_pass < DEPTH * one.pass_tokens]
    return min(free, key=lambda one: one.outstanding + _switching(one, adapters), default=None)


def _switching(replica: Loaded, adapters: Adapters) -> int:
    return 0 if replica.adapters in (None, adapters) else replica.pass_tokens


def next_change(
    replicas: Sequence[R], target: int, generation: int, room: bool | None
) -> R | Literal["start", "look for room"] | None:
    """The next thing to do so that there are as many replicas as there should be, all of the latest generation.

    One by one: nothing is done while a replica starts or leaves that need not be waited for. A replica of an older
    generation goes after its successor has come where the cluster has room for both, and else before.

    Args:
        replicas: those that there are.
        target: how many there should be.
        generation: the latest one.
        room: whether one more can be placed; None where that is not known.

    Returns:
        "start" for one more, "look for room", the replica that is to leave, or None.
    """
    ready = [one for one in replicas if one.state == "ready"]
    starting = [one for one in replicas if one.state == "starting"]
    old = [one for one in ready if one.generation < generation]
    if len(ready) + len(starting) < target:
        return "start"
    least_loaded = min(old or ready, key=lambda one: one.outstanding, default=None)
    if len(ready) > target:
        return least_loaded
    if not old or starting or any(one.state == "leaving" for one in replicas):
        return None
    if room is None:
        return "look for room"
    return "start" if room else least_loaded


def wanted(target: int, least: int, most: int, queue_seconds: float | None, idle_seconds: float) -> int:
    """How many replicas there should be.

    Args:
        target: how many there should have been so far.
        least: the fewest.
        most: the most.
        queue_seconds: seconds that all work here takes all replicas; None where their pace is not known.
        idle_seconds: seconds for which there has been nothing to draw.
    """
    if queue_seconds is not None and queue_seconds > QUEUED:
        target += 1
    elif idle_seconds > IDLE:
        target -= 1
    return max(least, min(most, target))


def pause(failures: int) -> float:
    """Seconds to wait after so many replicas in a row that did not start."""
    return 0.0 if failures == 0 else min(60.0, math.ldexp(1.0, failures))

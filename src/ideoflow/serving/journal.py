"""The journal of a job: what has happened to it, told to whoever follows, from any thread to any event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any

from .records import ENDED

LAST: tuple[str, ...] = ENDED  # after which nothing follows
SLACK = 32  # events that may wait for a reader before steps and previews are dropped for newer ones


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job.

    Attributes:
        number: counted from 1 within the job.
        type: queued, started, step, preview, picture, finished, failed or cancelled.
        data: what JSON can say of it, and the picture of a preview, which becomes a file when somebody looks.
        key: events of one key replace each other for those who come later; None for those that stay.
    """

    number: int
    type: str
    data: dict[str, Any]
    key: str | None = None


class Journal:
    """Events in their order. Of steps and previews only the latest of each picture stay."""

    def __init__(self, first: int = 1) -> None:
        self._events: list[JobEvent] = []
        self._next = first
        self._lock = Lock()
        self._followers: set[Callable[[JobEvent], None]] = set()

    def tell(self, type: str, data: dict[str, Any], key: str | None = None) -> None:
        """Add an event, and wake those who follow."""
        with self._lock:
            if key is not None:
                self._events = [event for event in self._events if event.key != key]
            event = JobEvent(self._next, type, data, key)
            self._events.append(event)
            self._next += 1
            for hear in self._followers:
                hear(event)

    @property
    def ended(self) -> bool:
        """Whether the last event has been told."""
        with self._lock:
            return bool(self._events) and self._events[-1].type in LAST

    def after(self, number: int) -> list[JobEvent]:
        """The events with greater numbers that are kept."""
        with self._lock:
            return [event for event in self._events if event.number > number]

    async def follow(self, number: int = 0, pause: float = 10.0) -> AsyncGenerator[JobEvent | None, None]:
        """Events after `number`, as they come, up to the last.

        Whoever reads them as fast as they come is told every one. For a slow reader no more than some tens wait: of
        steps and previews the latest of each picture, as for those who come later.

        Args:
            number: of the last event that is known already.
            pause: seconds after which None is given where nothing happens, so that a connection is kept alive.
        """
        loop = asyncio.get_running_loop()
        news = asyncio.Event()
        waiting: list[JobEvent] = []  # changed under the lock

        def hear(event: JobEvent) -> None:
            if len(waiting) >= SLACK and event.key is not None:
                waiting[:] = [one for one in waiting if one.key != event.key]
            waiting.append(event)
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(news.set)

        with self._lock:
            waiting += [event for event in self._events if event.number > number]
            ended = bool(self._events) and self._events[-1].type in LAST
            self._followers.add(hear)
        try:
            while True:
                with self._lock:
                    events, waiting[:] = waiting[:], []
                for event in events:
                    yield event
                    ended = ended or event.type in LAST
                if ended:
                    return
                try:
                    await asyncio.wait_for(news.wait(), pause)
                except TimeoutError:
                    yield None
                news.clear()
        finally:
            with self._lock:
                self._followers.discard(hear)

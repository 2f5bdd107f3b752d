"""The engine in a thread of its own: it waits for requests, steps them, and hands on what happens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from time import perf_counter

import torch

from ..engine import Engine, Event, Request
from ..engine.out_of_memory import out_of_memory

logger = logging.getLogger(__name__)

MEMORY = 0.1  # of the moving average of the pace: a pass counts for so much
FAULTS = 5  # that the engine itself may have in a row before it is given up


class Worker:
    """Runs an engine until it is closed.

    Args:
        engine: the engine, which nobody else steps.
        on_event: called with each event, in the worker's thread; it returns at once.
        on_pass: called after each pass with its tokens, its requests and its seconds.
        on_broken: called once, in the worker's thread, when the engine is given up.
    """

    def __init__(
        self,
        engine: Engine,
        on_event: Callable[[Event], None],
        on_pass: Callable[[int, int, float], None] = lambda tokens, requests, seconds: None,
        on_broken: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine = engine
        self._on_event = on_event
        self._on_pass = on_pass
        self._on_broken = on_broken
        self._pace: float | None = None  # tokens a second
        self._broken = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to step."""
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether requests are stepped."""
        return self._thread.is_alive() and not self._broken

    @property
    def pace(self) -> float | None:
        """Tokens a second of the latest passes; None before the first."""
        return self._pace

    @property
    def backlog(self) -> float | None:
        """Seconds that the requests which are here take at this pace; None before the first pass."""
        if self._pace is None:
            return None
        return sum(_remaining(request) for request in self.engine.requests) / self._pace

    def add(self, requests: Sequence[Request]) -> None:
        """Let requests take part from the next step on.

        Raises:
            ValueError: a request that the engine refuses; then none takes part.
        """
        added: list[Request] = []
        try:
            for request in requests:
                added.append(self.engine.add(request))
        except Exception:
            for request in added:
                self.engine.cancel(request)
            raise

    def close(self, timeout: float | None = None) -> bool:
        """Let the requests that are here end, and the thread with them; whether it has ended in so many seconds."""
        self.engine.close()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        faults = 0
        while self.engine.wait():
            started = perf_counter()
            try:
                events = self.engine.step()
            except Exception:
                # A request's own failure is an event: this is one of the engine, and the next step may go well.
                faults += 1
                logger.exception("the engine failed in a step")
                if faults == FAULTS:
                    self._break()
                    return
                continue
            faults = 0
            self._measure(events, perf_counter() - started)
            for event in events:
                self._on_event(event)
            if any(breaks_the_device(event.error) for event in events):
                logger.error("the device has failed, and with it all that would follow in this process")
                self._break()
                return

    def _break(self) -> None:
        self._broken = True
        for request in self.engine.requests:
            self.engine.cancel(request)
        self._on_broken()

    def _measure(self, events: Sequence[Event], seconds: float) -> None:
        stepped = [event for event in events if event.kind == "step"]
        if not stepped:
            return
        tokens = sum(event.request.tokens_of(event.step - 1) for event in stepped)
        pace = tokens / max(seconds, 1e-6)
        self._pace = pace if self._pace is None else self._pace + MEMORY * (pace - self._pace)
        self._on_pass(tokens, len(stepped), seconds)


def breaks_the_device(error: Exception | None) -> bool:
    """Whether an error is one after which nothing more can be computed in this process, such as an illegal access."""
    return isinstance(error, torch.AcceleratorError) and not out_of_memory(error)


def _remaining(request: Request) -> int:
    """Tokens of all the steps that a request has before it."""
    return sum(request.tokens_of(step) for step in range(request.step, request.steps))

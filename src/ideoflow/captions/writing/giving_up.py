"""Giving up what is being written, from another thread: where nobody waits for it any longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from .written import WritingError

Result = TypeVar("Result")


class GivenUpError(WritingError):
    """Nobody waits for the caption any longer."""

    def __init__(self) -> None:
        super().__init__("the caption is not written to its end: nobody waits for it any longer.")


class Wait:
    """Somebody's wait for what a call writes, which may be over before the call is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._interrupts: list[Callable[[], None]] = []

    def run(self, work: Callable[[], Result]) -> Result:
        """What a call gives; writers that it asks look whether this wait is over."""
        before = _WAIT.set(self)
        try:
            return work()
        finally:
            _WAIT.reset(before)

    def give_up(self) -> None:
        """Have the call end soon, with `GivenUpError`. From any thread."""
        with self._lock:
            self._over.set()
            interrupts = list(self._interrupts)
        for interrupt in interrupts:
            interrupt()

    def _add(self, interrupt: Callable[[], None]) -> None:
        with self._lock:
            self._interrupts.append(interrupt)
        if self._over.is_set():
            interrupt()


_WAIT: ContextVar[Wait | None] = ContextVar("wait", default=None)


def check_wait() -> None:
    """See that somebody still waits for what this thread writes.

    Raises:
        GivenUpError: if not.
    """
    pause(0)


def pause(seconds: float) -> None:
    """Sleep, as long as somebody still waits for what this thread writes.

    Raises:
        GivenUpError: if nobody does.
    """
    wait = _WAIT.get()
    if wait is None:
        time.sleep(seconds)
    elif wait._over.wait(seconds):
        raise GivenUpError


@contextmanager
def interrupted_by(interrupt: Callable[[], None]) -> Iterator[None]:
    """A block that is interrupted where the wait is over: by a call, from another thread, that ends what it does."""
    wait = _WAIT.get()
    if wait is not None:
        wait._add(interrupt)
    try:
        yield
    finally:
        if wait is not None:
            with wait._lock:
                wait._interrupts.remove(interrupt)

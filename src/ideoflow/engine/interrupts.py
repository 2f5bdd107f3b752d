"""The keyboard's interrupt, held back while something is written down that must be whole or not begun."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Held:
    """Holds SIGINT back while its block runs, but for what runs under `let_through`; what came meanwhile, comes after.

    Once an interrupt was let through and raised, all that follows in the block is held, so that its `finally` is whole.
    Blocks may lie within each other. Does nothing outside the main thread, where no signal comes, and where Python has
    no handler for SIGINT.
    """

    def __init__(self) -> None:
        self._handler: Callable[[int, FrameType | None], Any] | None = None  # that was there before the block
        self._came = False
        self._open = False

    def __enter__(self) -> Held:
        """Hold from here on."""
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            self._handler = handler
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Let go, and hand over what came."""
        if self._handler is None:
            return
        found = signal.signal(signal.SIGINT, self._handler)
        if found != self._note:  # the block has set another
            signal.signal(signal.SIGINT, found)
        if self._came:
            self._came = False
            self._handler(signal.SIGINT, None)

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Let interrupts come while a part of the block runs, and before it the one that came so far."""
        self._open = True
        try:
            if self._came:
                self._came = False
                self._note(signal.SIGINT, None)
            yield
        finally:
            self._open = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._open or self._handler is None:
            self._came = True
            return
        self._open = False
        self._handler(number, frame)
        self._open = True  # it did not raise

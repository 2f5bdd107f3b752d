"""Short blocks that an interrupt from the keyboard finds whole or not begun: it comes after them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold SIGINT back while the block runs, and hand it to its handler afterwards.

    Blocks may lie within each other. Does nothing outside the main thread, where no signal comes, and where Python has
    no handler for SIGINT.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        for number in came:
            handler(number, None)

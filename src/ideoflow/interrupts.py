"""Interrupts from outside: the process ends at once, the work ends in order, or the step under way is finished first.

It imports next to nothing, so that an interrupt ends the program with one line from its first moments.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from .standard_streams import INTERRUPTED, say_error


class Interrupted(KeyboardInterrupt):
    """A run was told to stop and has saved a checkpoint; the message names it."""


def end_at_interrupts() -> None:
    """Let an interrupt end the process with one line from now on, unless it is ignored, as in the background."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextmanager
def interrupts_end_it() -> Iterator[None]:
    """Let an interrupt end the process at once, with one line, where nothing is under way: in imports.

    An exception would be caught, or turned into another one, by code that tries whether something can be imported.
    """
    with _in_place_of(signal.default_int_handler, _end):
        yield


@contextmanager
def interrupts_raise() -> Iterator[None]:
    """Let an interrupt raise KeyboardInterrupt, as Python has it: for work that has to be ended in order."""
    with _in_place_of(_end, signal.default_int_handler):
        yield


@contextmanager
def noted(tell: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Inside, SIGINT and SIGTERM are noted instead of ending the process; a second SIGINT raises KeyboardInterrupt.

    A launcher may send SIGTERM after the terminal's SIGINT: that is one wish, not two. Outside of the main thread,
    where Python lets nobody take signals, nothing is noted.

    Args:
        tell: Called when the first signal comes, in the middle of whatever runs.

    Yields:
        Whether a signal came.
    """
    came: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if number == signal.SIGINT and number in came:
            raise KeyboardInterrupt
        came.append(number)
        if len(came) == 1:
            tell()

    with _handling(note, signal.SIGINT, signal.SIGTERM):
        yield lambda: bool(came)


@contextmanager
def terminated() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt, as SIGINT does."""

    def stop(_number: int, _frame: Any) -> NoReturn:
        raise KeyboardInterrupt

    with _handling(stop, signal.SIGTERM):
        yield


@contextmanager
def _in_place_of(old: Callable[..., object], new: Callable[..., object]) -> Iterator[None]:
    """Put a handler of SIGINT in the place of another one; nothing where that is not the one that is there."""
    if signal.getsignal(signal.SIGINT) is not old:
        yield
        return
    with _handling(new, signal.SIGINT):
        yield


@contextmanager
def _handling(handler: Callable[..., object], *numbers: signal.Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, kept in before.items():
            signal.signal(number, signal.SIG_DFL if kept is None else kept)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h\r\x1b[K")  # the cursor, which a spinner hides, and the spinner's line
    say_error("interrupted.")
    os._exit(INTERRUPTED)

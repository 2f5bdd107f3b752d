"""Interrupting a run: the step that is under way is finished and saved before the process ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class Interrupted(KeyboardInterrupt):
    """A run was told to stop and has saved a checkpoint; the message names it."""


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
def _handling(handler: Callable[[int, Any], None], *numbers: signal.Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, kept in before.items():
            signal.signal(number, signal.SIG_DFL if kept is None else kept)

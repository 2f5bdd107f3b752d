"""How the program begins and ends: standard streams, interrupts before there is any work, garbage, and exit codes.

It imports next to nothing itself, so that an interrupt ends it with one line from its first moments.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

FAILED, INTERRUPTED = 1, 130
# What writing to a stream that is full, closed or gone answers.
LOST_OUTPUT = (errno.ENOSPC, errno.EBADF, errno.EIO, errno.EPIPE, errno.EFBIG, errno.EDQUOT)


def run() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored, as in the background
        signal.signal(signal.SIGINT, _end)
    _open_streams()
    gc.disable()  # what is imported stays: looking through it again and again takes a quarter of the time
    from .cli import app

    gc.freeze()
    gc.enable()
    code: int | str | None = 0
    try:
        app()
    except SystemExit as end:
        code = end.code
    except OSError as error:
        if error.errno not in LOST_OUTPUT:
            raise
        code = _lost(error)
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        code = _lost(error)
    _leave(code)


def _leave(code: int | str | None) -> NoReturn:
    """End the process as the interpreter would, but for taking half a million objects apart, which takes seconds.

    Nothing is lost: threads are joined, functions at exit called, streams flushed, and every file of ours is closed by
    the block that opened it.
    """
    if isinstance(code, str):
        _say(code)
        code = FAILED
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code or 0)


@contextmanager
def interrupts_end_it() -> Iterator[None]:
    """Let an interrupt end the process at once, with one line, where nothing is under way: in imports.

    An exception would be caught, or turned into another one, by code that tries whether something can be imported.
    """
    with _handler(signal.default_int_handler, _end):
        yield


@contextmanager
def interrupts_raise() -> Iterator[None]:
    """Let an interrupt raise KeyboardInterrupt, as Python has it: for work that has to be ended in order."""
    with _handler(_end, signal.default_int_handler):
        yield


@contextmanager
def _handler(old: Callable[..., object], new: Callable[..., object]) -> Iterator[None]:
    """Put a handler of interrupts in the place of another one; nothing where that is not the one that is there."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not old:
        yield
        return
    signal.signal(signal.SIGINT, new)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


def silence() -> None:
    """Have what is still to be written to standard output go nowhere: it cannot be written, and that has been said."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h\r\x1b[K")  # the cursor, which a spinner hides, and the spinner's line
    _say("interrupted.")
    os._exit(INTERRUPTED)


def _lost(error: OSError | ValueError) -> int:
    """Say that output is lost; a reader that went away, such as `head`, knows."""
    if getattr(error, "errno", None) != errno.EPIPE:
        _say(f"standard output cannot be written: {getattr(error, 'strerror', None) or error}.")
    silence()
    return FAILED


def _say(message: str) -> None:
    try:
        sys.stderr.write(f"error: {message}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def _open_streams() -> None:
    """Put something in the place of standard streams that are closed, or files opened later would get their numbers.

    From a closed input nothing is read; writing to a closed output fails, as it should; closed errors are not heard.
    """
    for number, name, how in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, how)  # takes the lowest number that is free
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal has no characters for

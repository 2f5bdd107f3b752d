"""How the program begins and ends: standard streams, interrupts before there is any work, garbage, and exit codes.

It imports next to nothing itself, so that an interrupt ends it with one line from its first moments.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

from .interrupts import end_at_interrupts
from .standard_streams import FAILED, LOST_OUTPUT, open_streams, say_error, silence


def run() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    end_at_interrupts()
    open_streams()
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
        say_error(code)
        code = FAILED
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code or 0)


def _lost(error: OSError | ValueError) -> int:
    """Say that output is lost; a reader that went away, such as `head`, knows."""
    if getattr(error, "errno", None) != errno.EPIPE:
        say_error(f"standard output cannot be written: {getattr(error, 'strerror', None) or error}.")
    silence()
    return FAILED

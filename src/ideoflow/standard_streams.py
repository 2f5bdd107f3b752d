"""Standard streams that are closed, full or gone, and the exit codes of the program. Imports next to nothing."""

from __future__ import annotations

import errno
import os
import sys

# Exit codes: 0 done; 1 the work itself failed; 2 something given was wrong; 130 interrupted from the keyboard.
FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130
# What writing to a stream that is full, closed or gone answers.
LOST_OUTPUT = (errno.ENOSPC, errno.EBADF, errno.EIO, errno.EPIPE, errno.EFBIG, errno.EDQUOT)


def open_streams() -> None:
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


def silence() -> None:
    """Have what is still to be written to standard output go nowhere: it cannot be written, and that has been said."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def say_error(message: str) -> None:
    """Write one line to standard error, if it can be written."""
    try:
        sys.stderr.write(f"error: {message}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass

"""What the commands say and how they end: progress and warnings on standard error, exit codes without tracebacks."""

from __future__ import annotations

import errno
import gc
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from .._imports import quietly
from ..checks import printable
from ..interrupts import interrupts_end_it
from ..standard_streams import FAILED, INTERRUPTED, LOST_OUTPUT, WRONG_INPUT, silence

# What may go wrong without a mistake of the user's, by the exception's name: its packages are slow to import.
_OUT_OF_MEMORY = "out of memory: {} Try a smaller size, fewer pictures at once or another --dtype."
_NO_HUB = "cannot reach the model hub ({}): check the connection, or name a local path."
_FAILURES = {
    "MemoryError": _OUT_OF_MEMORY,
    "OutOfMemoryError": _OUT_OF_MEMORY,  # torch
    "RankLost": "{}",
    "ConnectError": _NO_HUB,  # httpx
    "ConnectTimeout": _NO_HUB,
    "ReadTimeout": _NO_HUB,
}


# What torch and its libraries say in a plain RuntimeError where memory ran out.
_NO_MEMORY = ("DefaultCPUAllocator", "can't allocate memory", "could not create a primitive", "out of memory")
# What no better input would help against: a full disk, a failing one.
_NOT_THE_INPUT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Printer(Console):
    """A console on which text from outside shows its control characters and terminal escapes instead of acting.

    Standard output that cannot be written ends the command with one line; errors that cannot are not heard.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        """As that of rich."""
        try:
            super().print(*map(_inert, objects), **options)
        except OSError as error:
            if error.errno not in LOST_OUTPUT:
                raise
            if not self.stderr:
                _lost(error)


def _inert(value: Any) -> Any:
    return "\n".join(map(printable, value.split("\n"))) if isinstance(value, str) else value


out = Printer(highlight=False, soft_wrap=True, emoji=False)
err = Printer(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def write(text: str) -> None:
    """Write text to standard output as it is, in UTF-8 like the files that it may go to, whatever the terminal's."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())
        sys.stdout.flush()
    except OSError as error:
        _lost(error)


def _lost(error: OSError) -> NoReturn:
    """End the command: standard output cannot be written. A reader that went away, such as `head`, is not told."""
    silence()
    if error.errno == errno.EPIPE:
        raise typer.Exit(FAILED)
    fail(f"standard output cannot be written: {error.strerror}.", FAILED)


def shown(text: object) -> str:
    """Text from outside as part of what is printed: on one line, without effect on the terminal, and no markup."""
    return escape(printable(text))


def fail(message: str, code: int = WRONG_INPUT) -> NoReturn:
    """Print an error to standard error and end the command with `code`."""
    err.print(f"[bold red]error:[/] {_as_one(message)}")
    raise typer.Exit(code)


def warn(message: str) -> None:
    """Print a warning to standard error."""
    err.print(f"[yellow]warning:[/] {_as_one(message)}")


def _as_one(message: str) -> str:
    """A message for print; what follows a line end in it is indented, so that it cannot pass for another message."""
    return escape(message).replace("\n", "\n  ")


@contextmanager
def starting(what: str) -> Iterator[None]:
    """Import packages that take seconds: a line on a terminal says so, and an interrupt ends the program at once."""
    program = gc.get_freeze_count() > 0  # and not a function that a test calls
    with err.status(escape(printable(what))), interrupts_end_it(), quietly():
        if program:
            gc.disable()
        try:
            yield
        finally:
            if program:
                gc.freeze()
                gc.enable()


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show the library's warnings as the command's own, and nothing of other packages' warnings and progress."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module="ideoflow")
        warnings.showwarning = lambda message, *_: warn(str(message))
        yield


def _no_hub(error: BaseException | None) -> BaseException | None:
    """The failure to reach the hub that `error` comes from: diffusers wraps it in an OSError about its cache."""
    while error and _FAILURES.get(type(error).__name__) != _NO_HUB:
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn the errors that a user can cause into one line and an exit code; bugs keep their traceback."""
    try:
        with quietly():
            yield
    except OSError as error:
        if unreachable := _no_hub(error):
            fail(_NO_HUB.format(unreachable), FAILED)
        named = error.filename and error.strerror
        told = f"{printable(error.filename)}: {error.strerror}" if named else error.strerror or str(error)
        fail(told, FAILED if error.errno in _NOT_THE_INPUT else WRONG_INPUT)
    except ValueError as error:
        if unreachable := _no_hub(error):
            fail(f"{_NO_HUB.format(unreachable)}\n{error}", FAILED)
        fail(str(error), FAILED if type(error).__name__ == "WritingError" else WRONG_INPUT)  # a language model's fault
    except FloatingPointError as error:
        fail(str(error), FAILED)
    except KeyboardInterrupt:
        fail("interrupted; what is written already is whole.", INTERRUPTED)
    except Exception as error:
        message = _FAILURES.get(type(error).__name__)
        if message is None and isinstance(error, ImportError) and "pip install" in str(error):
            message = "{}"
        if message is None and isinstance(error, RuntimeError) and any(said in str(error) for said in _NO_MEMORY):
            message = _OUT_OF_MEMORY
        if message is None:
            raise
        fail(message.format(error), FAILED)

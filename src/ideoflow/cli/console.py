"""What the commands say and how they end: progress and warnings on standard error, exit codes without tracebacks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from .._imports import quietly

# Exit codes: 0 done; 1 the work itself failed; 2 something given was wrong; 130 interrupted from the keyboard.
FAILED = 1
WRONG_INPUT = 2
INTERRUPTED = 130

# What may go wrong without a mistake of the user's, by the exception's name: its packages are slow to import.
_OUT_OF_MEMORY = "out of memory: {} Try a smaller size, fewer pictures at once or another --dtype."
_NO_HUB = "cannot reach the model hub ({}): check the connection, or name a local path."
_FAILURES = {
    "MemoryError": _OUT_OF_MEMORY,
    "OutOfMemoryError": _OUT_OF_MEMORY,  # torch
    "ConnectError": _NO_HUB,  # httpx
    "ConnectTimeout": _NO_HUB,
    "ReadTimeout": _NO_HUB,
}

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def fail(message: str, code: int = WRONG_INPUT) -> NoReturn:
    """Print an error to standard error and end the command with `code`."""
    err.print(f"[bold red]error:[/] {escape(message)}")
    raise typer.Exit(code)


def warn(message: str) -> None:
    """Print a warning to standard error."""
    err.print(f"[yellow]warning:[/] {escape(message)}")


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
        error = error.__cause__ or error.__context__
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
        fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except ValueError as error:
        fail(str(error))
    except FloatingPointError as error:
        fail(str(error), FAILED)
    except KeyboardInterrupt:
        fail("interrupted; pictures already written are whole.", INTERRUPTED)
    except Exception as error:
        message = _FAILURES.get(type(error).__name__)
        if message is None:
            raise
        fail(message.format(error), FAILED)

"""Errors that are nobody's bug end a command with one line and a code; bugs keep their traceback."""

from __future__ import annotations

import errno

import pytest
import typer

from ideoflow.cli.console import FAILED, INTERRUPTED, WRONG_INPUT, plain_errors


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (MemoryError(), FAILED, "out of memory"),
        (RuntimeError("could not create a primitive"), FAILED, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), FAILED, "out of memory"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), FAILED, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), FAILED, "a.png: No space left on device"),
        (OSError(errno.ENOENT, "No such file or directory", "a"), WRONG_INPUT, "a: No such file"),
        (OSError(errno.EIO, "Input/output error"), FAILED, "error: Input/output error"),
        (OSError("nothing like it"), WRONG_INPUT, "nothing like it"),
        (ValueError("`x` is 3"), WRONG_INPUT, "`x` is 3"),
        (FloatingPointError("not finite"), FAILED, "not finite"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_may_go_wrong_is_one_line_and_a_code(capsys, error, code, says):
    with pytest.raises(typer.Exit) as end, plain_errors():
        raise error
    told = capsys.readouterr().err
    assert end.value.exit_code == code and says in told and len(told.splitlines()) == 1


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("x"), TypeError("x")])
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)), plain_errors():
        raise error

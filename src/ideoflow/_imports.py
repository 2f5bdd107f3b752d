"""Importing diffusers without the remarks of libraries that it imports along and that may never be used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

# bitsandbytes and torchao, where they are installed, say which of their kernels this machine has no use for.
_TALKATIVE = ("bitsandbytes", "torchao", "torch.utils._pytree", "diffusers.quantizers")


@contextmanager
def quietly() -> Iterator[None]:
    """Let nothing below an error through from those libraries' loggers."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

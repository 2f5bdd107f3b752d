"""Imports that wait until they are needed, and without the remarks of libraries that come along."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# bitsandbytes and torchao, where they are installed, say which of their kernels this machine has no use for.
_TALKATIVE = ("bitsandbytes", "torchao", "torch.utils._pytree", "diffusers.quantizers")


@contextmanager
def quietly() -> Iterator[None]:
    """Let nothing below an error through from those libraries' loggers."""
    import logging

    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def bars(shown: bool) -> Iterator[None]:
    """Let diffusers and transformers show the bars of what they load, or none, as on what is no terminal."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    active = [library for library in (of_diffusers, of_transformers) if library.is_progress_bar_enabled()]
    for library in active if not shown else ():
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in active:
            library.enable_progress_bar()


def lazily(
    package: str, names_of: Mapping[str, tuple[str, ...]], renamed: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """A package's `__getattr__` (PEP 562), which imports the module that holds a name when the name is asked for.

    Args:
        package: The package's `__name__`.
        names_of: The names that each module gives to the package; modules as in `from .module import name`.
        renamed: New names by the old ones, which work for one version, with a FutureWarning.
    """
    module_of = {name: module for module, names in names_of.items() for name in names}

    def get(name: str) -> Any:
        if renamed is not None and name in renamed:
            warn_renamed(f"{package}.{name}", f"{package}.{renamed[name]}")
            return getattr(sys.modules[package], renamed[name])
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with quietly():
            value = getattr(importlib.import_module(module_of[name], package), name)
        setattr(sys.modules[package], name, value)
        return value

    return get


def warn_renamed(old: str, new: str) -> None:
    """Say in a FutureWarning, where the caller of the caller is, that a name works for one version more."""
    message = f"`{old}` is called `{new}` now: the old name goes in the next version."
    warnings.warn(message, FutureWarning, stacklevel=3)

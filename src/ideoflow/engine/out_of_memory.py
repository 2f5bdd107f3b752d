"""Telling whether memory ran out, and the error that says what to do."""

from __future__ import annotations

import errno
from typing import Any

import torch

# What the libraries beneath torch say, each in a RuntimeError of its own. oneDNN says nothing of memory: it fails to
# create a primitive. That there is no primitive for some types is another message, of the primitive's descriptor.
_SIGNS = (
    "DefaultCPUAllocator",
    "out of memory",
    "bad_alloc",
    "Cannot allocate memory",
    "STATUS_ALLOC_FAILED",
    "could not create a primitive",
    "could not create a memory",
)
_OTHER = "primitive descriptor"


class NotEnoughMemory(torch.OutOfMemoryError):
    """Memory ran out, and nothing that changes no picture helped.

    Attributes:
        requests: Those whose steps are taken and whose latents can be decoded another way; empty if it was a step.
    """

    def __init__(self, message: str, requests: Any = ()) -> None:
        super().__init__(message)
        self.requests = list(requests)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error)
    return isinstance(error, RuntimeError) and _OTHER not in text and any(sign in text for sign in _SIGNS)

"""Telling whether memory ran out."""

from __future__ import annotations

import torch


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on a device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)

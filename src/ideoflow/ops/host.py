"""The host: where numbers are made that are to be the same on every device, and where looking at values is free."""

from __future__ import annotations

import torch
from torch import Tensor

HOST = torch.device("cpu")


def is_readable(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be looked at without waiting for a device, and while no graph is recorded."""
    return tensor.device == HOST and not torch.compiler.is_compiling()

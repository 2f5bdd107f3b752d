"""Whether a fast way may be taken: what none of them can compute, and leaves to plain torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def may_be_fast(*tensors: Tensor) -> bool:
    """Whether these are bare numbers, on which nothing is asked but the values; the first one's device counts.

    Fast ways have rules neither for torch.func's transforms nor for autocast, which decides types by torch's own ops.
    """
    return are_bare(*tensors) and not is_transformed() and not torch.is_autocast_enabled(tensors[0].device.type)


def are_bare(*tensors: Tensor) -> bool:
    """Whether none is of a subclass, which may be sharded, quantized or without memory: a kernel sees none of this."""
    for tensor in tensors:  # of every launch: a generator takes as long as all the rest
        kind = type(tensor)
        if kind is not Tensor and kind is not nn.Parameter:
            return False
    return True


def is_transformed() -> bool:
    """Whether torch.func's transforms or forward-mode gradients are at work: values may then stand for others."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether a gradient will be asked of what is computed from these."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)

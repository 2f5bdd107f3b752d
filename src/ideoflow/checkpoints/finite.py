"""Looking for values that are not finite, in little memory."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import CheckpointError

AT_ONCE = 2**20  # values


class Finite:
    """A check of tensors on the CPU. It keeps one small buffer: the allocator would scatter many over its heap."""

    def __init__(self) -> None:
        self._bits = torch.empty(AT_ONCE, dtype=torch.uint8)

    def __call__(self, tensor: Tensor, what: str) -> None:
        """Raise a CheckpointError that begins with `what` where a value is infinite or not a number."""
        if not tensor.is_floating_point():
            return
        for values in tensor.flatten().split(AT_ONCE):
            if (
                values.dtype == torch.float8_e4m3fn
            ):  # without infinity; all bits but the sign are set in what is no number
                bits = torch.bitwise_and(values.view(torch.uint8), 0x7F, out=self._bits[: len(values)])
                finite = bool(bits.amax() != 0x7F)
            else:
                low, high = torch.aminmax(values.to(torch.float32) if values.dtype.itemsize == 1 else values)
                finite = bool(torch.isfinite(low) and torch.isfinite(high))
            if not finite:
                raise CheckpointError(
                    f"{what} holds values that are not finite: the file is damaged, or never was good."
                )

"""NVIDIA's 4-bit floating point: layers that keep it, and the values of its codes.

A value is `e2m1 * e4m3 * float32`: a code of four bits (sign, two bits of exponent, one of mantissa), a scale in float8
for each 16 values of a row, and one scale of the weight. The layers of this file keep the even column of two in the low
four bits of a byte, and the scales row by row: NVIDIA Model Optimizer's order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .expanded_linear import ExpandedLinear

GROUP = 16  # values that share a scale
AT_ONCE = 2**22  # values that are expanded at once, so that what this takes stays small


class Nvfp4Linear(ExpandedLinear):
    """A linear layer that keeps NVFP4.

    Args:
        codes: (out, in / 2) bytes of two codes.
        scales: (out, in / 16) in float8_e4m3fn.
        scale: () in float32.
        dtype: The type of an adapter's weights that come to lie on the layer.
    """

    weight_scale: Tensor
    weight_scale_2: Tensor

    def __init__(self, codes: Tensor, scales: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        super().__init__(codes, 2 * codes.shape[1], codes.shape[0], dtype)
        self.register_buffer("weight_scale", scales)
        self.register_buffer("weight_scale_2", scale)

    def expanded(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) in `dtype`."""
        return expand(self.weight.data, self.weight_scale, self.weight_scale_2, dtype)


def expand(codes: Tensor, scales: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The values (out, in) of codes and scales as `Nvfp4Linear` keeps them, in float32 and rounded to `dtype` once."""
    rows, width = codes.shape[0], 2 * codes.shape[1]
    expanded = torch.empty(rows, width, dtype=dtype, device=codes.device)
    step = max(1, AT_ONCE // width)
    for begin in range(0, rows, step):
        some = slice(begin, begin + step)
        pairs = torch.stack((codes[some] & 15, codes[some] >> 4), dim=-1)
        of_groups = scales[some].to(torch.float32) * scale
        groups = values(pairs).view(-1, width // GROUP, GROUP) * of_groups[..., None]
        expanded[some] = groups.view(-1, width)
    return expanded


def values(codes: Tensor) -> Tensor:
    """What codes from 0 to 15 stand for, in float32; by their bits, so that no table has to be on the device."""
    exponent, mantissa = (codes >> 1) & 3, codes & 1
    # Without an exponent, the mantissa is a half; else one and a half of it, times a power of two.
    small, large = mantissa.to(torch.float32) / 2, torch.ldexp(1 + mantissa.to(torch.float32) / 2, exponent.int() - 1)
    return torch.where(exponent == 0, small, large) * (1 - 2 * (codes >> 3).to(torch.float32))

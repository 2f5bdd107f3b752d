"""int8 weights that were rotated before they were rounded, so that no single large entry takes all the steps of a row.

The rotation is by a Hadamard matrix in groups along the input: `w_rotated = w @ H` in each group, with `H` symmetric
and its own inverse, so that `x @ w.T = (x @ H) @ w_rotated.T`. From Ashkboos et al., "QuaRot" (2024); the regular
matrix, in which every row has the same sum, is that of ComfyUI's files ("ConvRot").
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from .linear import Linear
from .quantized_linear import Int8Linear
from .rows import Rows, expand


class RotatedInt8Linear(Int8Linear):
    """An int8 layer whose weight lies rotated, and which rotates its input.

    Attributes:
        group: Entries along the input that are rotated together; a power of four that divides its width.
    """

    group: int

    def forward(self, x: Tensor | Rows) -> Tensor:
        """(..., in) to (..., out) in the type of `x`."""
        x = x.expand() if isinstance(x, Rows) else x
        return super().forward(rotate(x, self.group))

    def dequantize(self) -> Tensor:
        """The weight (out, in), rotated back, in `compute_dtype`."""
        return self._weight(self.compute_dtype)

    @torch.no_grad()
    def to_linear(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """An ordinary layer with the weight, rotated back, in `dtype`, `compute_dtype` by default."""
        dtype = dtype or self.compute_dtype
        linear = Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(self._weight(dtype), requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.to(dtype), requires_grad=False)
        return linear.train(self.training)

    def _weight(self, dtype: torch.dtype) -> Tensor:
        return rotate(expand(self.weight, self.weight_scale, torch.float32), self.group).to(dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group={self.group}"


def rotate(x: Tensor, group: int) -> Tensor:
    """Rotate groups of the last dimension, in float32 and rounded once; done twice, it gives `x` again."""
    groups = x.to(torch.float32).unflatten(-1, (-1, group))
    return (groups @ hadamard(group, x.device)).flatten(-2).to(x.dtype)


@cache
@torch.inference_mode(False)  # or what is kept could never be a part of a product with gradients
def hadamard(size: int, device: torch.device) -> Tensor:
    """The regular Hadamard matrix of a power of four, with rows of length 1, in float32."""
    four = torch.ones(4, 4) - 2 * torch.eye(4).flip(1)
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(matrix, four)
    return (matrix / size**0.5).to(device)

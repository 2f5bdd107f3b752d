"""Rows in one byte an entry and a scale for each: what quantized products read, and weights are kept in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}  # magnitudes that a row's largest is scaled to
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # of a row of zeros, which it leaves zeros


@dataclass(frozen=True, eq=False)
class Rows:
    """Tokens that were rounded for a product: `values * scales[:, None]`.

    Attributes:
        values: (tokens, channels) in float8_e4m3fn or int8.
        scales: (tokens,) float32; not finite for a token that is not.
        dtype: the type of what was rounded, in which a product of it is given.
    """

    values: Tensor
    scales: Tensor
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.values)

    def index_select(self, dim: int, index: Tensor) -> Rows:
        """Some of the tokens; `dim` is 0, as of a tensor."""
        # Not every torch indexes float8.
        values = self.values.view(torch.uint8).index_select(dim, index).view(self.values.dtype)
        return Rows(values, self.scales.index_select(dim, index), self.dtype)

    def expand(self) -> Tensor:
        """(tokens, channels) in `dtype`."""
        return expand(self.values, self.scales, self.dtype)


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round each row to `dtype`, scaled so that its largest magnitude is the largest that `dtype` is used for.

    Args:
        x: (rows, columns).
        dtype: float8_e4m3fn or int8.

    Returns:
        The rows (rows, columns) in `dtype` and their scales (rows,) float32; `rows * scales[:, None]` is about `x`. A
        row that is not finite has a scale that is not finite.
    """
    # On the CPU many times faster than aminmax, or a norm, over rows.
    scale = (x.abs().amax(1).to(torch.float32) / LARGEST[dtype]).clamp_min(SMALLEST_SCALE)
    scaled = x / scale[:, None]
    return (scaled.round_() if dtype == torch.int8 else scaled).to(dtype), scale


def expand(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight * scale[:, None]`, computed in float32 or wider and rounded to `dtype` once."""
    # Every value of both types is exact in bfloat16 and float16; the product in place is computed in float32.
    return weight.to(dtype).mul_(scale[:, None])

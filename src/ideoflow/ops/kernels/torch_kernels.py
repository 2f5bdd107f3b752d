"""The element-wise parts of a block in plain torch: what every norm, device, type and gradient can use."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Norm = Callable[[Tensor], Tensor]


def norm_scale(norm: Norm, x: Tensor, scale: Tensor, row: Tensor | None = None) -> Tensor:
    """See `ideoflow.ops.kernels.norm_scale`."""
    return norm(x) * at_tokens(scale, row)


def gate_norm_add(norm: Norm, h: Tensor, y: Tensor, gate: Tensor, row: Tensor | None = None) -> Tensor:
    """See `ideoflow.ops.kernels.gate_norm_add`."""
    return h + at_tokens(gate, row) * norm(y)


def norm_rotate(norm: Norm, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `ideoflow.ops.kernels.norm_rotate`."""
    return rotate(norm(x), cos, sin)


def swiglu(x1: Tensor, x3: Tensor) -> Tensor:
    """See `ideoflow.ops.kernels.swiglu`."""
    return F.silu(x1) * x3


def at_tokens(x: Tensor, row: Tensor | None) -> Tensor:
    """Give each token its row: (times, n) to (tokens, n), or (1, n), which broadcasts, if there is one alone."""
    return x if row is None or x.shape[0] == 1 else x.index_select(0, row)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the channel pairs (i, i + head_dim / 2) of each head.

    Args:
        x: (tokens, heads, head_dim) queries or keys.
        cos: (tokens, head_dim) from `rotary_tables`.
        sin: (tokens, head_dim) from `rotary_tables`, negated in the first half.
    """
    first, second = x.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    return x * cos[:, None] + swapped * sin[:, None]

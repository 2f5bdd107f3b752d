"""The element-wise parts of a block in plain torch: what every device, type and gradient can use."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...model.rope import rotate


def norm_scale(x: Tensor, weight: Tensor, eps: float, scale: Tensor, row: Tensor | None = None) -> Tensor:
    """See `ideoflow.ops.kernels.norm_scale`."""
    return _norm(x, weight, eps) * _at_tokens(scale, row)


def gate_norm_add(h: Tensor, y: Tensor, weight: Tensor, eps: float, gate: Tensor, row: Tensor | None = None) -> Tensor:
    """See `ideoflow.ops.kernels.gate_norm_add`."""
    return h + _at_tokens(gate, row) * _norm(y, weight, eps)


def norm_rotate(x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """See `ideoflow.ops.kernels.norm_rotate`."""
    return rotate(_norm(x, weight, eps), cos, sin)


def swiglu(x1: Tensor, x3: Tensor) -> Tensor:
    """See `ideoflow.ops.kernels.swiglu`."""
    return F.silu(x1) * x3


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The model's norm: in the type of its weight, because what autocast hands it is narrower."""
    return F.rms_norm(x.to(weight.dtype), weight.shape, weight, eps)


def _at_tokens(modulation: Tensor, row: Tensor | None) -> Tensor:
    return modulation if row is None else modulation.index_select(0, row)

"""Tensor parallelism: each rank has whole heads and a part of the feed-forward channels, and sums bring them together.

Of `to_q`, `to_k`, `to_v`, `w1` and `w3` a rank keeps rows (outputs), of `to_out` and `w2` the columns (inputs) that
match; two sums a block. Norms, modulation, embeddings and the final layer are small, and every rank has all of them:
the norms over the hidden width need whole tokens, and those of queries and keys are one for all heads.

The plan is torch's `parallelize_module` with styles whose weights stay plain tensors, which the kernels, the fused
projections and the quantized layers here take; DTensor's would go through its dispatch at each product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from ..model import Ideogram4Transformer2DModel
from ..ops.linear import Linear
from ..ops.quantized_linear import QuantizedLinear
from ..ops.rotated_linear import RotatedInt8Linear
from .exchanges import Exchanges


class RowsOfOutputs(ParallelStyle):
    """A linear layer of which each rank keeps some outputs: rows of its weight, their scales and their biases."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        layer = _checked(module)
        ranks, rank = device_mesh.size(), device_mesh.get_local_rank()
        for name in (*layer.row_tensors, "bias"):
            own = getattr(layer, name, None)
            if own is not None:
                _replace(layer, name, own.detach().chunk(ranks)[rank].clone())
        layer.out_features //= ranks
        return layer


class ColumnsOfInputs(ParallelStyle):
    """A linear layer of which each rank keeps the columns of some inputs; what the ranks give is summed."""

    def __init__(self, ranks: Exchanges) -> None:
        super().__init__()
        self.ranks = ranks

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        layer = _checked(module)
        assert layer.bias is None  # it would be added by every rank
        ranks, rank = device_mesh.size(), device_mesh.get_local_rank()
        _replace(layer, "weight", layer.weight.detach().chunk(ranks, dim=1)[rank].clone())
        layer.in_features //= ranks
        layer.register_forward_hook(self._sum)
        return layer

    def _sum(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return self.ranks.sum("sums", output)


def check_tensor(transformer: nn.Module) -> None:
    """See that the layers of the blocks can be shared out.

    Raises:
        ValueError: naming the first layer that cannot.
    """
    for name, layer in transformer.named_modules():
        if name.startswith("layers.") and isinstance(layer, nn.Linear):
            _checked(layer, name)
        elif name.startswith("layers.") and hasattr(layer, "base_layer"):
            raise ValueError(f"{name} has adapters, which a plan with `tensor` cannot share: fuse them first.")


def share_tensors(transformer: Ideogram4Transformer2DModel, mesh: DeviceMesh, ranks: Exchanges) -> None:
    """Keep this rank's part of the blocks' weights, and have its products summed with the other ranks'.

    Args:
        transformer: One branch, whole and the same in each rank; the parts that are not this rank's are let go of.
        mesh: Of one dimension, the ranks that share it.
        ranks: Exchanges of the same ranks.

    Raises:
        ValueError: as `check_tensor`.
    """
    check_tensor(transformer)
    plan: dict[str, ParallelStyle] = {f"attention.{name}": RowsOfOutputs() for name in ("to_q", "to_k", "to_v")}
    plan |= {f"feed_forward.{name}": RowsOfOutputs() for name in ("w1", "w3")}
    plan |= {name: ColumnsOfInputs(ranks) for name in ("attention.to_out.0", "feed_forward.w2")}
    transformer.unfuse_projections()
    with torch.no_grad():
        for block in transformer.layers:
            parallelize_module(block, mesh, plan)
            attention: Any = block.attention
            attention.num_heads //= mesh.size()


def _checked(layer: nn.Module, name: str = "") -> Any:
    # Columns of a rotated weight belong to groups of inputs that its layer rotates together.
    if not isinstance(layer, (Linear, QuantizedLinear)) or isinstance(layer, RotatedInt8Linear):
        raise ValueError(
            f"{name or 'a layer'} is a {type(layer).__name__}, which a plan with `tensor` cannot share: its weights are"
            " neither plain nor in fp8 or int8 of `pipe.quantize`. Load them with `dequantize=True`, or share by"
            " guidance and context alone."
        )
    return layer


def _replace(layer: nn.Module, name: str, part: Tensor) -> None:
    part = part.contiguous()
    setattr(layer, name, nn.Parameter(part, requires_grad=False) if name in layer._parameters else part)

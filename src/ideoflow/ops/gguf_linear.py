"""Layers that keep GGUF's blocks, and the values of blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.quantizers.gguf import GGUFQuantizer
from torch import Tensor, nn

from .gguf_blocks import QUANTIZED
from .linear import Linear, linear

AT_ONCE = 2**22  # values that are expanded at once, so that what this takes stays small


class GgufLinear(nn.Linear):
    """A linear layer that keeps GGUF's blocks and expands them to its input's type for each product.

    Unlike diffusers' layer of this kind, which expands to float16, it rounds once. It is an `nn.Linear` to adapters;
    the weight takes no gradient, the input and the bias do. Its state dict holds the bytes of the blocks.

    Args:
        blocks: Bytes of all blocks, row by row.
        kind: Their type, such as "Q8_0".
        in_features: Width of the input.
        out_features: Width of the output.
        dtype: The type of an adapter's weights that come to lie on the layer.
    """

    waits_for_device = True  # constants are copied there for each product, which no CUDA graph can record

    def __init__(self, blocks: Tensor, kind: str, in_features: int, out_features: int, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # nn.Linear's would draw weights
        self.in_features, self.out_features, self.kind, self.compute_dtype = in_features, out_features, kind, dtype
        self.weight = nn.Parameter(blocks, requires_grad=False)
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out) in the type of `x`."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return _ExpandedProduct.apply(x, None if self.bias is None else self.bias.to(x.dtype), self)

    def expanded(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) in `dtype`."""
        return expand(self.weight.data, self.kind, (self.out_features, self.in_features), dtype)

    @property
    def W_q(self) -> Tensor:
        """peft's sign (taken from HQQ) that `dequantize` gives the weight; DoRA would norm the stored one otherwise."""
        return self.weight

    def dequantize(self) -> Tensor:
        """The weight (out, in) in `compute_dtype`."""
        return self.expanded(self.compute_dtype)

    def to_linear(self) -> nn.Linear:
        """An ordinary layer with the expanded weight in `compute_dtype`. It takes no gradient."""
        layer = Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(self.dequantize(), requires_grad=False)
        layer.bias = self.bias
        return layer.train(self.training)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GgufLinear:
        self.compute_dtype = fn(torch.empty(1, dtype=self.compute_dtype, device=self.weight.device)).dtype
        return super()._apply(fn, recurse)  # bytes stay bytes

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kind={self.kind}"


class _ExpandedProduct(torch.autograd.Function):
    """The product by the expanded weight, which the backward pass expands again: autograd would keep every layer's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: GgufLinear) -> Tensor:
        ctx.layer = layer
        return linear(x, layer.expanded(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        needs_x, needs_bias, _ = ctx.needs_input_grad
        return (
            linear(grad, ctx.layer.expanded(grad.dtype).t()) if needs_x else None,
            grad.flatten(0, -2).sum(0) if needs_bias else None,
            None,
        )


class Quantizer(GGUFQuantizer):
    """What diffusers asks of a model with such layers: whether it can be saved, and to expand them."""

    @property
    def is_serializable(self) -> bool:
        raise ValueError(
            "A model that keeps GGUF's blocks cannot be saved: load it with `dequantize=True`, or call its"
            " `dequantize()` first."
        )

    def _dequantize(self, model: nn.Module) -> nn.Module:
        for name in [name for name, layer in model.named_modules() if isinstance(layer, GgufLinear)]:
            model.set_submodule(name, model.get_submodule(name).to_linear())  # type: ignore[operator]
        return model


def expand(blocks: Tensor, kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The values of blocks, computed in float32, as the gguf package computes them, and rounded to `dtype` once.

    Args:
        blocks: Bytes of the blocks.
        kind: Their type, such as "Q8_0".
        shape: The shape of the values.
        dtype: The type of the result.
    """
    sizes = QUANTIZED[kind]
    lines = blocks.reshape(-1, sizes.size)
    expanded = torch.empty(len(lines), sizes.values, dtype=dtype, device=blocks.device)
    for begin in range(0, len(lines), AT_ONCE // sizes.values):
        some = slice(begin, begin + AT_ONCE // sizes.values)
        expanded[some] = _values(lines[some], kind)
    return expanded.view(shape)


def _values(blocks: Tensor, kind: str) -> Tensor:
    """(blocks, bytes) to (blocks, values) in float32: by diffusers on any device, by the gguf package what it lacks."""
    from diffusers.quantizers.gguf.utils import dequantize_functions
    from gguf import GGMLQuantizationType, quants

    number = GGMLQuantizationType[kind]
    if number in dequantize_functions:
        sizes = QUANTIZED[kind]
        return dequantize_functions[number](blocks, sizes.values, sizes.size, torch.float32)
    values = quants.dequantize(blocks.cpu().numpy(), number)
    return torch.from_numpy(values).to(blocks.device)

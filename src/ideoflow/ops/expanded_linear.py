"""Linear layers that keep their weight in few bits and expand it for each product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from .linear import Linear, keeping_types, linear


class ExpandedLinear(nn.Linear):
    """A linear layer that keeps its weight as a file has it, and expands it to its input's type for each product.

    It is an `nn.Linear` to adapters; the weight takes no gradient, the input and the bias do. Its state dict holds what
    the layer keeps. A kind says what the weight is by `expanded`.

    Args:
        weight: What is kept, in any type and shape.
        in_features: Width of the input.
        out_features: Width of the output.
        dtype: The type of an adapter's weights that come to lie on the layer.
    """

    def __init__(self, weight: Tensor, in_features: int, out_features: int, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # nn.Linear's would draw weights
        self.in_features, self.out_features, self.compute_dtype = in_features, out_features, dtype
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", None)

    def expanded(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) in `dtype`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out) in the type of `x`."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return _ExpandedProduct.apply(x, None if self.bias is None else self.bias.to(x.dtype), self)

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the layer; `.to(dtype)` changes the bias alone, since in another type what is kept would be lost."""
        kept = [self.weight, *self.buffers(recurse=False)]
        self.compute_dtype = fn(torch.empty(1, dtype=self.compute_dtype, device=self.weight.device)).dtype
        return super()._apply(keeping_types(fn, kept), recurse)


class _ExpandedProduct(torch.autograd.Function):
    """The product by the expanded weight, which the backward pass expands again: autograd would keep every layer's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: ExpandedLinear) -> Tensor:
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

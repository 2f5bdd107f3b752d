"""Linear layers, and their product: in float32 on a CPU the default library may leave half of the chip unused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .guards import may_be_fast, needs_gradient

SMALLEST = 2**14  # entries of a weight; below, nothing is to be gained, and the other path rounds less


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`, differentiable.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,).
    """
    if not _prefers_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    return _product(x, weight, bias)


class Linear(nn.Linear):
    """Torch's linear layer, computed by `linear`."""

    row_tensors = ("weight",)  # what has a row for each output, so that layers can be laid together

    def pays_together(self, tokens: Tensor) -> bool:
        """Whether the product of several such layers, laid together, is worth taking as one."""
        return True

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def _is_intel() -> bool:
    information = Path("/proc/cpuinfo")
    return not information.exists() or "GenuineIntel" in information.read_text()


def _onednn_is_faster() -> bool:
    """Whether oneDNN's float32 products beat those that torch takes.

    Torch asks MKL for them, which keeps its AVX-512 kernels to Intel's processors: on two cores of an AMD Zen 5, oneDNN
    computes 315 to 398 GFLOP/s where MKL computes 133 to 185 (`python -m benchmarks.products`).
    """
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and not _is_intel()
    )


ONEDNN_IS_FASTER = _onednn_is_faster()


def _prefers_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        ONEDNN_IS_FASTER
        and not torch.compiler.is_exporting()  # a program for other machines
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and (bias is None or bias.dtype == torch.float32)
        and x.ndim > 1
        and x.numel() > 0
        and weight.numel() >= SMALLEST
        and may_be_fast(x, weight)
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if needs_gradient(x, weight, bias):
        return _OneDnnProduct.apply(x, weight, bias)
    return _run(x, weight, bias)


def _run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _opaque_product(x, weight, bias) if torch.compiler.is_compiling() else _call_onednn(x, weight, bias)


def _call_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")


@torch.library.custom_op("ideoflow::onednn_linear", mutates_args=())
def _opaque_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product for compiled graphs, whose own rule for oneDNN's takes constant weights alone."""
    return _call_onednn(x, weight, bias)


@_opaque_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _dense(matrix: Tensor) -> Tensor:
    """The matrix without gaps between its rows or columns, over which oneDNN is slow by orders of magnitude."""
    dense = matrix.is_contiguous() or (matrix.ndim == 2 and matrix.t().is_contiguous())
    return matrix if dense else matrix.contiguous()


class _OneDnnProduct(torch.autograd.Function):
    """The product with its gradients, which are products of the same kind, so that they have gradients themselves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _run(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        flat = gradient.flatten(0, -2)
        return (
            _product(gradient, weight.t()) if needs_x else None,
            _product(flat.t(), x.flatten(0, -2).t()) if needs_weight else None,
            flat.sum(0) if needs_bias else None,
        )


def keeping_types(apply: Callable[[Tensor], Tensor], kept: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """What `nn.Module._apply` is given, so that `kept` move and keep their type: in another their numbers are lost."""

    def keep_type(tensor: Tensor) -> Tensor:
        applied = apply(tensor)
        if applied.dtype != tensor.dtype and any(tensor is one for one in kept):
            return tensor.to(applied.device)
        return applied

    return keep_type

"""Linear layers with one byte a weight and a float32 scale for each output row: `w = weight * weight_scale[:, None]`.

A layer multiplies in its own type where the chip has fast products for it, and expands its weight to the input's type
elsewhere, or where a gradient has to pass. The input of a product is rounded to that type token by token; kernels that
compute the input may do that too, and hand over `Rows`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .guards import needs_gradient
from .hooks import is_hooked
from .kernels import round_rows
from .linear import Linear, keeping_types
from .linear import linear as linear_product
from .rows import Rows, expand, quantize_rows
from .scratch_bytes import int8_parts

# Without it torch multiplies int8 in a plain loop. Asked here once: `forward` could not be compiled with the question.
HAS_VNNI = bool(getattr(torch.cpu, "_is_vnni_supported", lambda: False)())


def float8_product(x: Tensor | Rows, weight: Tensor, scale: Tensor) -> Tensor:
    """`x @ w.T` in bfloat16 of `x` (tokens, in) and the weight (out, in), multiplied in float8."""
    rows = x if isinstance(x, Rows) else round_rows(x, torch.float8_e4m3fn)
    return torch._scaled_mm(
        rows.values, weight.t(), scale_a=rows.scales[:, None], scale_b=scale[None], out_dtype=torch.bfloat16
    )


def int8_product(x: Tensor | Rows, weight: Tensor, scale: Tensor) -> Tensor:
    """`x @ w.T` in the type of `x` (tokens, in), multiplied in int8 with the weight (out, in) and summed in int32.

    On the CPU no size may be one.
    """
    rows = x if isinstance(x, Rows) else round_rows(x, torch.int8)
    # A number of parts would hold for one length alone in a compiled graph.
    parts = 1 if torch.compiler.is_compiling() else int8_parts(len(rows), len(weight))
    out = rows.scales.new_empty(len(rows), len(weight), dtype=rows.dtype)
    split = (each.tensor_split(parts) for each in (rows.values, rows.scales, out))
    for some, own, result in zip(*split, strict=True):
        result.copy_(torch._int_mm(some, weight.t()).to(torch.float32).mul_(own[:, None]).mul_(scale))
    return out


@torch.compiler.assume_constant_result
def has_product(storage: torch.dtype, device: torch.device) -> bool:
    """Whether torch multiplies this type, with a scale for each row, on this device: found out by trying, once."""
    return _try_product(storage, device)


@cache
def _try_product(storage: torch.dtype, device: torch.device) -> bool:
    product = float8_product if storage == torch.float8_e4m3fn else int8_product
    try:
        with torch.no_grad():
            weight = torch.zeros(32, 32, dtype=storage, device=device)
            product(torch.ones(32, 32, dtype=torch.bfloat16, device=device), weight, torch.ones(32, device=device))
    except (RuntimeError, ValueError, TypeError):  # each torch says it in another way
        return False
    return True


class _ExpandedProduct(torch.autograd.Function):
    """`x @ w.T` by the expanded weight; the backward pass expands it again, where autograd would keep every layer's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return linear_product(x, expand(weight, scale, x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return linear_product(grad, expand(weight, scale, grad.dtype).t()), None, None


class QuantizedLinear(nn.Linear):
    """What the two kinds share: parameters, types that outlive `.to(dtype)`, and the choice of the product.

    It is an `nn.Linear` to adapters. The weight takes no gradient; the input and the bias do.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether there is one.
        device: Where the parameters are made.
        dtype: The type of the bias, and of an adapter's weights that come to lie on the layer; float32 by default.

    Attributes:
        weight: (out, in) in `storage`.
        weight_scale: (out,) float32.
        bias: (out,) or None.
    """

    row_tensors: ClassVar[tuple[str, ...]]
    storage: ClassVar[torch.dtype]
    weight_scale: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's would draw weights
        self.in_features, self.out_features = in_features, out_features
        self.compute_dtype = dtype or torch.get_default_dtype()  # peft makes adapters in it
        weight = torch.zeros(out_features, in_features, dtype=self.storage, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("weight_scale", torch.ones(out_features, dtype=torch.float32, device=device))
        zeros = torch.zeros(out_features, dtype=self.compute_dtype, device=device)
        self.register_parameter("bias", nn.Parameter(zeros) if bias else None)

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: nn.Linear) -> QuantizedLinear:
        """The layer of this kind nearest to `linear`, on its device, with its bias."""
        layer = cls(linear.in_features, linear.out_features, bias=False, device="meta", dtype=linear.weight.dtype)
        weight, layer.weight_scale = quantize_rows(linear.weight.detach(), cls.storage)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = linear.bias
        return layer.train(linear.training)

    @torch.no_grad()
    def to_linear(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """An ordinary layer with the expanded weight in `dtype`, `compute_dtype` by default. It takes no gradient."""
        dtype = dtype or self.compute_dtype
        linear = Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(expand(self.weight, self.weight_scale, dtype), requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.to(dtype), requires_grad=False)
        return linear.train(self.training)

    def forward(self, x: Tensor | Rows) -> Tensor:
        """(..., in) to (..., out) in the type of `x`."""
        if isinstance(x, Rows):
            if x.values.dtype == self.storage and self.multiplies(x.values):
                product = self.product(x).to(x.dtype)
                return product if self.bias is None else product + self.bias.to(x.dtype)
            x = x.expand()
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"`x` must have the shape (..., {self.in_features}), got {tuple(x.shape)}.")
        if not x.is_floating_point():
            raise TypeError(f"`x` must be a floating-point tensor, got {x.dtype}.")
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        tokens = x.reshape(-1, self.in_features)
        if needs_gradient(tokens) or not self.multiplies(tokens):
            product = _ExpandedProduct.apply(tokens, self.weight, self.weight_scale)
        else:
            product = self.product(tokens).to(x.dtype)
        if self.bias is not None:
            product = product + self.bias.to(x.dtype)
        return product.view(*x.shape[:-1], self.out_features)

    def multiplies(self, tokens: Tensor) -> bool:
        """Whether `product` can be had, and pays, for such an input (tokens, in)."""
        raise NotImplementedError

    def pays_together(self, tokens: Tensor | Rows) -> bool:
        """Where it multiplies, its input is rounded once for all; weights to expand are better expanded one by one."""
        return self.multiplies(tokens.values if isinstance(tokens, Rows) else tokens)

    def row_type(self, tokens: Tensor) -> torch.dtype | None:
        """The type of `Rows` that may be handed over in place of such tokens (tokens, in); None for none."""
        is_own = "row_tensors" in vars(type(self))  # a subclass may have a `forward` of its own
        return self.storage if is_own and not is_hooked(self) and self.multiplies(tokens) else None

    def product(self, tokens: Tensor | Rows) -> Tensor:
        """The product in `storage`: (tokens, in) to (tokens, out)."""
        raise NotImplementedError

    @property
    def W_q(self) -> Tensor:
        """peft's sign (taken from HQQ) that `dequantize` gives the weight; DoRA would norm the stored one otherwise."""
        return self.weight

    def dequantize(self) -> Tensor:
        """The expanded weight (out, in) in `compute_dtype`."""
        return expand(self.weight, self.weight_scale, self.compute_dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Move the layer; `.to(dtype)` and its kin change the bias alone, since in another type the weight is lost."""
        kept = (self.weight, self.weight_scale)
        self.compute_dtype = fn(torch.empty(1, dtype=self.compute_dtype, device=self.weight.device)).dtype
        return super()._apply(keeping_types(fn, kept), recurse)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Refuse tensors of other types, which would be rounded into nonsense without a word."""
        wanted = {f"{prefix}weight": self.storage, f"{prefix}weight_scale": torch.float32}
        wrong = [
            f"`{key}` must be {dtype}, got {state_dict[key].dtype}: a {type(self).__name__} loads no other weights."
            for key, dtype in wanted.items()
            if key in state_dict and state_dict[key].dtype != dtype
        ]
        if wrong:
            errors: list[str] = args[-1]
            errors.extend(wrong)
        else:
            super()._load_from_state_dict(state_dict, prefix, *args)


class Float8Linear(QuantizedLinear):
    """Weights in float8_e4m3fn; multiplied as such on CUDA from Ada and Hopper on, in bfloat16 out."""

    row_tensors = ("weight", "weight_scale")
    storage = torch.float8_e4m3fn

    def multiplies(self, tokens: Tensor) -> bool:
        """On CUDA of capability 8.9 or later, for widths that are multiples of 16."""
        return (
            _capability(tokens) >= (8, 9)
            and len(tokens) > 0
            and self.in_features % 16 == 0
            and self.out_features % 16 == 0
            and has_product(self.storage, tokens.device)
        )

    def product(self, tokens: Tensor | Rows) -> Tensor:
        return float8_product(tokens, self.weight, self.weight_scale)


class Int8Linear(QuantizedLinear):
    """Weights in int8, symmetric; multiplied as such on CUDA from Ampere on and on processors with VNNI."""

    row_tensors = ("weight", "weight_scale")
    storage = torch.int8

    def multiplies(self, tokens: Tensor) -> bool:
        """On CUDA of capability 8.0 or later, for widths and token counts that its kernel takes; on a CPU with VNNI."""
        if tokens.device.type == "cpu":
            # Of a dimension of one, whose stride means nothing, torch's kernel makes rubbish (pytorch issue 195066).
            return min(len(tokens), self.in_features, self.out_features) > 1 and HAS_VNNI
        return (
            _capability(tokens) >= (8, 0)
            and len(tokens) > 16
            and self.in_features % 8 == 0
            and self.out_features % 8 == 0
            and has_product(self.storage, tokens.device)
        )

    def product(self, tokens: Tensor | Rows) -> Tensor:
        return int8_product(tokens, self.weight, self.weight_scale)


def _capability(x: Tensor) -> tuple[int, int]:
    """CUDA capability of the tensor's device; (0, 0) on others and on ROCm, whose float8 is another."""
    if not x.is_cuda or torch.version.hip:
        return (0, 0)
    return torch.cuda.get_device_capability(x.device)

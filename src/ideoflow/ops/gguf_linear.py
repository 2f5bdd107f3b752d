"""Layers that keep GGUF's blocks, and the values of blocks."""

from __future__ import annotations

import torch
from diffusers.quantizers.gguf import GGUFQuantizer
from torch import Tensor, nn

from .expanded_linear import ExpandedLinear
from .gguf_blocks import QUANTIZED

AT_ONCE = 2**22  # values that are expanded at once, so that what this takes stays small


class GgufLinear(ExpandedLinear):
    """A linear layer that keeps GGUF's blocks; unlike diffusers', which expands to float16, it rounds once.

    Args:
        blocks: Bytes of all blocks, row by row.
        kind: Their type, such as "Q8_0".
        in_features: Width of the input.
        out_features: Width of the output.
        dtype: The type of an adapter's weights that come to lie on the layer.
    """

    waits_for_device = True  # constants are copied there for each product, which no CUDA graph can record

    def __init__(self, blocks: Tensor, kind: str, in_features: int, out_features: int, dtype: torch.dtype) -> None:
        super().__init__(blocks, in_features, out_features, dtype)
        self.kind = kind

    def expanded(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) in `dtype`."""
        return expand(self.weight.data, self.kind, (self.out_features, self.in_features), dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kind={self.kind}"


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

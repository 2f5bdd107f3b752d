"""GGUF's blocks: 32 or 256 values with their scales in one piece of bytes, of some twenty types."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...ops.gguf_blocks import QUANTIZED
from ..errors import CheckpointError
from ..gguf import NAMES, TYPE
from .base import AT_ONCE, Infos, Parts, Storage

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ...model import Ideogram4Transformer2DModel

PART = "weight" + TYPE  # (number of the type, *shape)


class Gguf(Storage):
    """Quantized tensors of GGUF files; what the file holds as plain numbers is of the plain kind."""

    name = "gguf"

    def claims(self, infos: Infos) -> bool:
        return set(infos) == {"weight", PART} and infos["weight"].dtype in QUANTIZED

    def shape(self, infos: Infos, note: Callable[[str], bytes]) -> tuple[int, ...]:
        return infos["weight"].shape

    def check(self, parts: Parts, what: str) -> None:
        import torch

        sizes = QUANTIZED[_kind(parts)]
        for offset in sizes.scales:
            for blocks in parts["weight"].view(-1, sizes.size).split(AT_ONCE // sizes.values):
                if not torch.isfinite(blocks[:, offset : offset + 2].contiguous().view(torch.float16)).all():
                    raise CheckpointError(f"{what} holds scales that are not finite: the file is damaged.")

    def rows(self, parts: Parts, start: int, stop: int) -> dict[str, Tensor]:
        """Exact: of the blocks, or, where a border lies inside a block, of their values."""
        import torch

        kind, shape = _kind(parts), _shape(parts)
        blocks, width = QUANTIZED[kind], math.prod(shape[1:])
        if start * width % blocks.values or stop * width % blocks.values:
            return {"weight": self.expand(parts, torch.float32)[start:stop]}
        first, last = (row * width // blocks.values * blocks.size for row in (start, stop))
        note = parts[PART].clone()
        note[1] = stop - start
        return {"weight": parts["weight"].flatten()[first:last], PART: note}

    def expand(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        if PART not in parts:
            return parts["weight"].to(dtype)
        from ...ops.gguf_linear import expand

        _check_installed()
        return expand(parts["weight"], _kind(parts), _shape(parts), dtype)

    def layer(self, parts: Parts, dtype: torch.dtype) -> nn.Linear | None:
        if PART not in parts:
            return None
        from ...ops.gguf_linear import GgufLinear

        _check_installed()
        out, width = _shape(parts)
        return GgufLinear(parts["weight"], _kind(parts), width, out, dtype)

    def finish(self, model: Ideogram4Transformer2DModel, dtype: torch.dtype) -> None:
        """Have diffusers refuse to save the model, and expand it when asked to."""
        from diffusers.quantizers.quantization_config import GGUFQuantizationConfig

        from ...ops.gguf_linear import Quantizer

        model.hf_quantizer = Quantizer(GGUFQuantizationConfig(compute_dtype=dtype))


def _check_installed() -> None:
    from diffusers.utils import is_gguf_available

    if not is_gguf_available():
        raise CheckpointError(
            "Quantized GGUF files need the package gguf, which is not installed: pip install 'ideoflow[quant]'"
        )


def _kind(parts: Parts) -> str:
    return NAMES[int(parts[PART][0])]


def _shape(parts: Parts) -> tuple[int, ...]:
    return tuple(parts[PART][1:].tolist())

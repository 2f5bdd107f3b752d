"""float8_e4m3fn weights: with a scale for each row, with one for all (ComfyUI's), or with none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from .base import Infos, Parts, Storage

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# The first is the published files' and what ComfyUI writes today, the second what it wrote before.
SCALES = ("weight_scale", "scale_weight")
# Scales for inputs, which are measured anew for each token here, and ComfyUI's note on the layer.
IGNORED = ("input_scale", "scale_input", "comfy_quant")


class Float8(Storage):
    """`weight * scale`, the scale of shape (out,), (out, 1), (1,) or ()."""

    name = "fp8"

    def claims(self, infos: Infos) -> bool:
        beside = set(infos) - {"weight"}
        scales = beside - set(IGNORED)
        return (
            infos["weight"].dtype == "F8_E4M3"
            and scales <= set(SCALES)
            and len(scales) == bool(beside)  # a note that says a weight is scaled needs the scale
        )

    def shape(self, infos: Infos, note: Callable[[str], bytes]) -> tuple[int, ...]:
        weight = infos["weight"]
        for key in SCALES:
            if key in infos:
                self._check(infos[key].shape, infos[key].dtype, weight.shape, infos[key].name)
        return weight.shape

    @staticmethod
    def _check(scale: tuple[int, ...], dtype: str, weight: tuple[int, ...], name: str) -> None:
        out = weight[0] if weight else 0
        if len(weight) < 2 or scale not in ((), (1,), (1, 1), (out,), (out, 1)) or dtype not in ("F32", "F16", "BF16"):
            raise CheckpointError(
                f"the scale {name!r} is {dtype} of shape {list(scale)} for a weight of {list(weight)}: it must be F32"
                f" of shape [{out}], or of a single value."
            )

    def rows(self, parts: Parts, start: int, stop: int) -> dict[str, Tensor]:
        return {"weight": parts["weight"][start:stop], "weight_scale": self.scale(parts)[start:stop]}

    def expand(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        weight = parts["weight"]
        if weight.ndim < 2:  # norms and biases of files that were cast as a whole
            return weight.to(dtype)
        from ...ops.quantized_linear import expand

        return expand(weight.flatten(1), self.scale(parts), dtype).view(weight.shape)

    def layer(self, parts: Parts, dtype: torch.dtype) -> nn.Linear | None:
        from torch import nn

        from ...ops import Float8Linear

        weight = parts["weight"]
        out, width = weight.shape
        layer = Float8Linear(width, out, bias=False, device="meta", dtype=dtype)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.weight_scale = self.scale(parts)
        return layer

    @staticmethod
    def scale(parts: Parts) -> Tensor:
        """(out,) float32."""
        import torch

        out = len(parts["weight"])
        scale = next((parts[key] for key in SCALES if key in parts), None)
        if scale is None:
            return torch.ones(out, dtype=torch.float32, device=parts["weight"].device)
        return scale.to(torch.float32).reshape(-1).expand(out).contiguous()

"""What models that are there hold: their layers, and the bytes of each as it is, quantized or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..dtypes import name_of
from .precisions import Layer, can_be_quantized, layer_of

if TYPE_CHECKING:
    from torch import nn


def weigh(module: nn.Module) -> tuple[tuple[Layer, ...], dict[str, int]]:
    """The layers of a module that hold parameters or buffers themselves, and their bytes by name."""
    layers, stored, seen = [], {}, set()
    for name, part in module.named_modules():
        size = weights = rows = others = 0
        for key, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            size += tensor.nbytes + _state_bytes(getattr(tensor, "quant_state", None))
            if key == "weight" and can_be_quantized(name):
                rows = getattr(part, "out_features", 0)
                weights = rows * getattr(part, "in_features", 0)
            elif not (key == "weight_scale" and weights):
                others += tensor.numel()
        if weights + others:
            layers.append(layer_of(name, weights, rows, others))
        if size:
            stored[name] = size
    return tuple(layers), stored


def _state_bytes(state: Any) -> int:
    """Bytes of a quantization state of bitsandbytes."""
    if state is None:
        return 0
    own = sum(getattr(state, name).nbytes for name in ("absmax", "code") if getattr(state, name, None) is not None)
    return own + _state_bytes(getattr(state, "state2", None))


def dtype_of(module: nn.Module) -> str:
    """The type that the module computes in: that of most of its numbers in 16 bits or more."""
    counts: dict[str, int] = {}
    for parameter in module.parameters():
        if parameter.is_floating_point() and parameter.dtype.itemsize >= 2:
            name = name_of(parameter.dtype)
            counts[name] = counts.get(name, 0) + parameter.numel()
    return max(counts, key=lambda name: counts[name], default="bfloat16")


def kind_of(module: nn.Module) -> str | None:
    """ "int8" or "fp8" where layers are of that kind."""
    from ..ops import KINDS

    kinds = (kind for kind, layer in KINDS.items() if any(type(part) is layer for part in module.modules()))
    return next(kinds, None)

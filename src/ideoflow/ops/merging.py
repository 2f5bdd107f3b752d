"""Whether adapters can be merged into a model's weights, asked before the first weight is changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..dtypes import name_of


def check_mergeable(model: nn.Module, method: str) -> None:
    """Raise the error of `fuse_lora` or `unfuse_lora` before anything is changed.

    Args:
        model: the one with adapters.
        method: the method's name.

    Raises:
        ValueError: weights in few bits, which no adapter can be added to, or offloaded ones.
    """
    for part in model.modules():
        if not isinstance(part, BaseTunerLayer) or (method == "unfuse_lora" and not part.merged):
            continue
        base = part.get_base_layer()
        weight = base.weight
        plain = type(weight) in (Tensor, nn.Parameter) and weight.dtype.is_floating_point
        if not plain or weight.dtype.itemsize < 2:
            kind = getattr(base, "kind", None) or name_of(weight.dtype)
            raise ValueError(
                f"`{method}` changes weights, and those of a {type(base).__name__} are stored in few bits ({kind}),"
                " where a sum would be rounded away. Leave the adapters unmerged: they act as they are. Or merge"
                " before `quantize`, or into a model that was loaded with `dequantize=True`."
            )
        if weight.is_meta:
            raise ValueError(
                f"`{method}` changes weights, and some are offloaded: call it before offloading is enabled, or"
                " after `remove_all_hooks()` of the pipeline."
            )


@torch.no_grad()
def check_sums(model: nn.Module, adapter_names: Sequence[str] | None, scale: float) -> None:
    """See that weights and adapters have finite sums, before the first of them is changed.

    Args:
        model: the one with adapters.
        adapter_names: those that are merged; None for the active ones.
        scale: of all of them, on top of their own.

    Raises:
        ValueError: naming the adapter and the layer.
    """
    for name, part in model.named_modules():
        if not isinstance(part, BaseTunerLayer):
            continue
        weight = part.get_base_layer().weight
        total = weight
        for adapter in part.active_adapters if adapter_names is None else adapter_names:
            if adapter in part.merged_adapters or adapter not in part.scaling:
                continue
            total = total + (part.get_delta_weight(adapter) * scale).to(weight)
            # A DoRA's magnitudes and biases are no part of that sum.
            own = [tensor for key, tensor in part.named_parameters() if adapter in key.split(".")]
            if not all(bool(tensor.isfinite().all()) for tensor in (total, *own)):
                raise ValueError(
                    f"`fuse_lora` would leave values that are not finite in {name!r}: the adapter {adapter!r} is"
                    f" {part.scaling[adapter] * scale:g} times its matrices there. Nothing was merged: weigh it by"
                    " `set_adapters` with a finite number that fits the weights' type, or load it anew."
                )

"""Whether adapters can be merged into a model's weights, asked before the first weight is changed."""

from __future__ import annotations

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

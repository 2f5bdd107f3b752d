"""Telling whether weights have changed since something was computed from them."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import count

from torch import nn

_numbers = count()


def weights_key(*modules: nn.Module) -> Hashable | None:
    """What changes when weights of the modules do, and not when they move to another device.

    It sees changes that autograd sees. Of those made through `.data`, as when adapters are fused, it knows nothing.

    Returns:
        A key, or None where no key can tell: the scale of adapters may change without a trace.
    """
    parts: list[Hashable] = []
    for module in modules:
        if getattr(module, "peft_config", None) or any(hasattr(part, "lora_A") for part in module.modules()):
            return None
        versions = sum(0 if p.is_inference() else p._version for p in module.parameters())
        parts.append((_number(module), versions, next((p.dtype for p in module.parameters()), None)))
    return tuple(parts)


def _number(module: nn.Module) -> int:
    """A number of this module's own: its address may come again once it is gone, and a copy has another address."""
    address, number = module.__dict__.get("_weights_number", (None, 0))
    if address != id(module):
        number = next(_numbers)
        module.__dict__["_weights_number"] = id(module), number
    return number

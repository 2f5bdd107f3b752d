"""Where a model computes that rests elsewhere between calls, and whether one does."""

from __future__ import annotations

import torch
from diffusers.hooks.group_offloading import _get_group_onload_device
from torch import nn


def execution_device(module: nn.Module) -> torch.device:
    """The device on which `module` computes, which under an offload hook is not where its parameters rest."""
    try:
        return _get_group_onload_device(module)
    except ValueError:
        pass  # no group offloading
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


def is_offloaded(module: nn.Module) -> bool:
    """Whether hooks bring `module`, or parts of it, to the device when they are called."""
    # Asked at each step: `hasattr` takes five times as long for what a module does not have.
    return any("_hf_hook" in part.__dict__ or "_diffusers_hook" in part.__dict__ for part in module.modules())

"""Hooks on modules: torch's, which see a module called, and those of accelerate and diffusers, which move weights.

Every question about hooks is asked here. They are asked anew at each step, since a hook may be set between two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from contextlib import suppress
from itertools import chain
from typing import Any, TypeGuard, TypeVar

import torch
from diffusers.hooks.group_offloading import _GROUP_OFFLOADING, _get_group_onload_device
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

Method = TypeVar("Method", bound=Callable[..., Any])
Kind = TypeVar("Kind", bound=nn.Module)

# Packages whose hooks bring weights to where, and to the type in which, a module computes, and do nothing else.
OFFLOADING = ("accelerate.hooks", "diffusers.hooks.group_offloading", "diffusers.hooks.layerwise_casting", "ideoflow.")


def is_hooked(module: nn.Module) -> bool:
    """Whether something (an offload hook, say) has to see the module called, so that nothing may take its weights."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        # Hooks that torch calls for every module, as profilers set them.
        or torch_modules._global_forward_hooks
        or torch_modules._global_forward_pre_hooks
        or torch_modules._global_backward_hooks
        or torch_modules._global_backward_pre_hooks
    )


def is_plain(module: nn.Module, kind: type[Kind]) -> TypeGuard[Kind]:
    """Whether `module` is of this very class and unhooked, so that its weights may be taken and it need not be called.

    A subclass may have a `forward` of its own.
    """
    return type(module) is kind and not is_hooked(module)


def modules_within(module: nn.Module) -> list[nn.Module]:
    """The module and all within it, in no order: for questions at each step, since `modules()` takes ten times as long.

    A module that stands in two places comes twice.
    """
    found = [module]
    for part in found:  # which grows meanwhile
        for child in part._modules.values():
            if child is not None:
                found.append(child)
    return found


def offload_hooks(module: nn.Module) -> list[Any]:
    """The hooks of accelerate and diffusers on this very module, in the order in which they are set up."""
    own = module.__dict__
    hooks = [own["_hf_hook"]] if "_hf_hook" in own else []
    return [*hooks, *own["_diffusers_hook"].hooks.values()] if "_diffusers_hook" in own else hooks


def is_offloaded(module: nn.Module) -> bool:
    """Whether hooks bring `module`, or parts of it, to the device, or cast them, when they are called."""
    for part in modules_within(module):  # asked at each step of thousands of parts: no call for each
        own = part.__dict__
        if "_hf_hook" in own or ("_diffusers_hook" in own and own["_diffusers_hook"].hooks):
            return True
    return False


def resting(model: nn.Module, name: str) -> Tensor | None:
    """The numbers of a parameter or buffer while `model` is not called, wherever offloading keeps them.

    Args:
        model: The model.
        name: The tensor's name in it.

    Returns:
        A tensor, or None where there is none in memory: let go, or on a disk in a way that keeps no trace.
    """
    places = name.split(".")
    parts = [model]
    for place in places[:-1]:
        parts.append(getattr(parts[-1], place))
    tensor: Tensor = getattr(parts[-1], places[-1])
    hooks = [(depth, hook) for depth, part in enumerate(parts) for hook in offload_hooks(part)]
    hooks += [(depth, own) for depth, hook in hooks for own in getattr(hook, "hooks", ())]
    if any(getattr(getattr(hook, "config", None), "offload_to_disk_path", None) for _, hook in hooks):
        return None  # what is in memory are tensors that were never written
    if not tensor.is_meta:
        return tensor if tensor.numel() else None
    for depth, hook in hooks:
        with suppress(KeyError):
            kept: Tensor = (getattr(hook, "weights_map", None) or {})[".".join(places[depth:])]
            return kept
    return None


def execution_device(module: nn.Module) -> torch.device:
    """The device on which `module` computes, which under an offload hook is not where its parameters are kept."""
    if not is_offloaded(module):
        return next(module.parameters()).device
    try:
        return _get_group_onload_device(module)
    except ValueError:
        pass  # no group offloading
    for part in module.modules():
        device = getattr(part.__dict__.get("_hf_hook"), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


def fires_hooks(method: Method) -> Method:
    """Run a method as `forward` runs under accelerate's hooks and diffusers' group offloading.

    Hooks of torch itself (`register_forward_hook`) wait for `forward`.
    """

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return with_hooks(self, functools.partial(method, self), *args, **kwargs)

    return wrapper  # type: ignore[return-value]


def with_hooks(module: nn.Module, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `function`, which computes with the weights of `module`, gives while they are brought to the device."""
    hooks = [module.__dict__["_hf_hook"]] if "_hf_hook" in module.__dict__ else []
    if "_diffusers_hook" in module.__dict__:
        offloading = module.__dict__["_diffusers_hook"].get_hook(_GROUP_OFFLOADING)
        hooks += [] if offloading is None else [offloading]
    for hook in hooks:
        args, kwargs = hook.pre_forward(module, *args, **kwargs)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not any(getattr(hook, "no_grad", False) for hook in hooks)):
        output = function(*args, **kwargs)
    for hook in reversed(hooks):
        output = hook.post_forward(module, output)
    return output


def computed_type_key(part: nn.Module) -> Hashable | None:
    """What hooks of offloading on this very module say of the type it computes in; None with hooks of any other kind.

    Those may change what the module computes, and nothing tells when.
    """
    if part._forward_hooks or part._forward_pre_hooks:
        return None
    if torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks:
        return None
    hooks = offload_hooks(part)
    forward = part.__dict__.get("_old_forward") if "_hf_hook" in part.__dict__ else None
    if forward is not None and getattr(forward, "__func__", None) is not type(part).forward:
        return None
    if "forward" in part.__dict__ and not hooks:
        return None
    hooks += chain.from_iterable(getattr(hook, "hooks", ()) for hook in list(hooks))
    if not all(type(hook).__module__.startswith(OFFLOADING) for hook in hooks):
        return None
    return tuple((type(hook), hook.compute_dtype) for hook in hooks if hasattr(hook, "compute_dtype"))

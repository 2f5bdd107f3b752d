"""Hooks: whether a module has any, and `fires_hooks`, by which offloading sees other methods than `forward`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

import torch
from diffusers.hooks.group_offloading import _GROUP_OFFLOADING
from torch import nn
from torch.nn.modules import module as of_all_modules

Method = TypeVar("Method", bound=Callable[..., Any])
Kind = TypeVar("Kind", bound=nn.Module)


def is_hooked(module: nn.Module) -> bool:
    """Whether something (an offload hook, say) has to see the module called, so that nothing may take its weights."""
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(own) or "forward" in module.__dict__ or any(_of_all())


def _of_all() -> tuple[Any, ...]:
    """Hooks that torch calls for every module, as profilers set them."""
    return (
        of_all_modules._global_forward_hooks,
        of_all_modules._global_forward_pre_hooks,
        of_all_modules._global_backward_hooks,
        of_all_modules._global_backward_pre_hooks,
    )


def is_plain(module: nn.Module, kind: type[Kind]) -> TypeGuard[Kind]:
    """Whether `module` is of this very class and unhooked, so that its weights may be taken and it need not be called.

    A subclass may have a `forward` of its own.
    """
    return type(module) is kind and not is_hooked(module)


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

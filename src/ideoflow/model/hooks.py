"""Hooks: whether a module has any, and `fires_hooks`, by which offloading sees other methods than `forward`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from diffusers.hooks.group_offloading import _GROUP_OFFLOADING, _LAZY_PREFETCH_GROUP_OFFLOADING
from torch import nn

Method = TypeVar("Method", bound=Callable[..., Any])


def is_hooked(module: nn.Module) -> bool:
    """Whether something (an offload hook, say) has to see the module called, so that nothing may take its weights."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in module.__dict__


def fires_hooks(runs_all_layers: bool) -> Callable[[Method], Method]:
    """Run a method as `forward` runs under accelerate's hooks and diffusers' group offloading.

    Args:
        runs_all_layers: whether the method goes through the layers, so that the order in which they are prefetched can
            be learnt from it.
    """
    names = (_LAZY_PREFETCH_GROUP_OFFLOADING, _GROUP_OFFLOADING) if runs_all_layers else (_GROUP_OFFLOADING,)

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            hooks = [self._hf_hook] if hasattr(self, "_hf_hook") else []
            if hasattr(self, "_diffusers_hook"):
                registered = (self._diffusers_hook.get_hook(name) for name in names)
                hooks += [hook for hook in registered if hook is not None]
            for hook in hooks:
                args, kwargs = hook.pre_forward(self, *args, **kwargs)
            output = method(self, *args, **kwargs)
            for hook in reversed(hooks):
                output = hook.post_forward(self, output)
            return output

        return wrapper  # type: ignore[return-value]

    return decorate

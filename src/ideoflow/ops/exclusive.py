"""One thread at a time in models that keep something of a call in themselves: adapters their scale, hooks a place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from .hooks import is_offloaded, modules_within

_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_lock = Lock()


@contextmanager
def exclusive(*models: nn.Module | None) -> Iterator[None]:
    """Wait until no other thread is in such a block with one of these models that bears one thread only.

    Those are models with adapters, and models that hooks move or cast when they are called. All others are shared.
    """
    alone = [model for model in models if model is not None and (is_offloaded(model) or adapter_layers(model))]
    with ExitStack() as held:
        for model in sorted(alone, key=id):  # in one order, so that nobody waits for one that waits for him
            with _lock:
                own = _locks.setdefault(model, RLock())
            held.enter_context(own)
        yield


def adapter_layers(model: nn.Module) -> list[Any]:
    """The layers of a model that have adapters of peft's."""
    return [part for part in modules_within(model) if "base_layer" in part._modules]


@contextmanager
def adapters_scaled(model: nn.Module, attention_kwargs: Mapping[str, Any] | None) -> Iterator[dict[str, Any] | None]:
    """Weigh the adapters of a model, within `exclusive`, by the `scale` of `attention_kwargs`.

    They are given back the very weights that they had. Diffusers divides by the scale again, which rounds, and after a
    scale of 0 it forgets what `set_adapters` had set.

    Yields:
        The rest of `attention_kwargs`, which goes to the attention processors.
    """
    if attention_kwargs is None or "scale" not in attention_kwargs:
        yield None if attention_kwargs is None else dict(attention_kwargs)
        return
    rest = {name: value for name, value in attention_kwargs.items() if name != "scale"}
    before = [(layer, dict(layer.scaling)) for layer in adapter_layers(model) if hasattr(layer, "scaling")]
    try:
        for layer, _ in before:
            layer.scale_layer(attention_kwargs["scale"])
        yield rest
    finally:
        for layer, scaling in before:
            layer.scaling.update(scaling)

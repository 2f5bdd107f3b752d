"""One thread at a time in models that keep something of a call in themselves: adapters their scale, hooks a place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from .adapters import adapter_layers
from .hooks import is_offloaded

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

"""Embedded captions, kept up to a number of bytes: those asked for last stay longest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from itertools import count
from threading import Lock

from torch import Tensor, nn

_serial = count()


class TextCache:
    """Tensors by key, the least recently used dropped first. Safe under several threads.

    Args:
        max_bytes: The most that all tensors together may take; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"`max_bytes` is {max_bytes}: give 0 to keep nothing, or more.")
        self.max_bytes = max_bytes
        self.hits = self.misses = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Bytes of all tensors kept."""
        return self._bytes

    def get(self, key: Hashable) -> Tensor | None:
        """The tensor kept under `key`, if there is one."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                self.misses += 1
            else:
                self.hits += 1
                self._kept.move_to_end(key)
            return found

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a tensor, at the price of older ones; one that is too large by itself is not kept."""
        with self._lock:
            if tensor.nbytes > self.max_bytes or key in self._kept:
                return
            self._kept[key] = tensor
            self._bytes += tensor.nbytes
            while self._bytes > self.max_bytes:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0


def weights_key(*modules: nn.Module) -> Hashable | None:
    """What changes when weights of the modules do, and not when they move to another device.

    None where that cannot be told: the scale of adapters may change without a trace.
    """
    parts: list[Hashable] = []
    for module in modules:
        if getattr(module, "peft_config", None) or any(hasattr(part, "lora_A") for part in module.modules()):
            return None
        # A number of its own, since the address of a module that is gone may come again.
        number = module.__dict__.setdefault("_text_cache_serial", next(_serial))
        versions = sum(0 if p.is_inference() else p._version for p in module.parameters())
        parts.append((number, versions, next((p.dtype for p in module.parameters()), None)))
    return tuple(parts)

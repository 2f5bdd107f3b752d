"""Embedded captions, kept up to a number of bytes: those asked for last stay longest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock

from torch import Tensor

from ..checks import whole


class TextCache:
    """Tensors by key, the least recently used dropped first. Safe under several threads.

    Args:
        max_bytes: The most that all tensors together may take; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = whole("max_bytes", max_bytes, 0)
        self.hits = self.misses = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[TextCache], tuple[int]]:
        """Copy and pickle it empty: locks cannot be copied, and a copy's weights may go other ways."""
        return type(self), (self.max_bytes,)

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

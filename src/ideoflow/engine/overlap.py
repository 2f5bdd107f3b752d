"""Work beside the denoising: on a CUDA stream of its own where there is one, at once anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Pending(Generic[T]):
    """What some work gave, whose tensors the device may still be computing.

    Attributes:
        value: The outcome.
        event: Recorded on the device when the work was handed to it; None if nothing is to be waited for.
    """

    value: T
    event: torch.cuda.Event | None = None

    @property
    def ready(self) -> bool:
        """Whether the device has come to the end of it."""
        return self.event is None or self.event.query()

    def take(self) -> T:
        """The outcome, for use on the current stream, which waits for it; the host does not."""
        if self.event is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self.event)
            for tensor in _tensors(self.value):
                tensor.record_stream(stream)  # or its memory could go to others while this stream reads it
        return self.value


class SideStream:
    """Runs work beside the current stream of `device`."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(self, work: Callable[[], T], *reads: Tensor) -> Pending[T]:
        """Hand `work` to the device; it begins after what the current stream has been given so far.

        Args:
            work: Does its part without waiting for the device.
            reads: Tensors of the current stream that it reads.
        """
        if self.stream is None:
            return Pending(work())
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            value = work()
        for tensor in reads:
            tensor.record_stream(self.stream)
        return Pending(value, self.stream.record_event())


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors on a device within tuples, lists and data classes."""
    if isinstance(value, Tensor):
        if value.is_cuda:
            yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))

"""Writing safetensors files one tensor at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..dtypes import STORED_NAMES, of_name
from .errors import CheckpointError

DTYPES = {of_name(name): stored for name, stored in STORED_NAMES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor to be written.

    Attributes:
        name: the tensor's name in the file.
        dtype: the tensor's type.
        shape: the tensor's shape.
        make: gives the tensor, on the CPU; the same one however often it is called.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        """Size of its data."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def made(self) -> Tensor:
        """The tensor, checked against what was announced."""
        tensor = self.make()
        if tensor.dtype != self.dtype or tuple(tensor.shape) != self.shape:
            raise CheckpointError(
                f"{self.name!r} came out as {tensor.dtype} {list(tensor.shape)}, not {self.dtype} {list(self.shape)}."
            )
        return tensor


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, as (bytes,) uint8."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def write_safetensors(
    path: Path,
    entries: Sequence[Entry],
    metadata: Mapping[str, str] | None = None,
    on_written: Callable[[], None] = lambda: None,
) -> None:
    """Write a file, holding one tensor at a time; on the disk when this returns.

    Args:
        path: the file, which is made or replaced.
        entries: the tensors, in any order; the file has those of wide types first, as the format's own writer does, so
            that every tensor is aligned.
        metadata: strings for the header.
        on_written: called after each tensor.
    """
    order = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    start = 0
    for entry in order:
        stop = start + entry.bytes
        header[entry.name] = {
            "dtype": DTYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for entry in order:
            file.write(bits(entry.made()).numpy().data)
            on_written()
        file.flush()
        os.fsync(file.fileno())

"""Tensors in files: what a header says of them, and what reads one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TensorInfo:
    """What a file's header says of a tensor.

    Attributes:
        name: the name in the file.
        dtype: the type as the format spells it: `BF16`, `F8_E4M3`, `U8`; `Q8_0` and the like in GGUF files.
        shape: the shape in the file.
        file: the file that holds it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path


class Source(Protocol):
    """Tensors of one file, or of several that belong together."""

    path: Path
    files: tuple[Path, ...]
    infos: dict[str, TensorInfo]
    metadata: dict[str, str]

    def note(self, name: str) -> bytes:
        """The bytes of a small tensor of bytes, which says something of others."""

    def read(self, name: str) -> Tensor:
        """A tensor on the CPU, to be copied: when it goes, little of the file stays in memory."""

    def map(self, name: str) -> Tensor:
        """A tensor to be kept: its pages are read when they are first used, and the system may drop them again."""

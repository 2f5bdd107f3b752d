"""Tensors of GGUF files, as llama.cpp's and ComfyUI's tools write them. The header is read here, byte by byte.

A header says how many entries and tensors come and how long each is, and a damaged one may say anything: nothing is
read, skipped or counted before the file is known to be that long.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..ops.gguf_blocks import QUANTIZED, GgufType
from .errors import CheckpointError
from .tensors import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
LONGEST_HEADER = 2**26  # bytes; those of image models have less than 2**20
LONGEST_NAME = 2**12
MOST_DIMS = 4  # GGML_MAX_DIMS
ALIGNMENT = 32  # where `general.alignment` says nothing
TYPE = ".gguf"  # ends the name of the tensor that tells what a quantized one is: (number of its type, *shape)
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # before the name of a tensor that was stored in another shape


PLAIN = {
    "F32": (GgufType(0, 1, 4), "float32"),
    "F16": (GgufType(1, 1, 2), "float16"),
    "F64": (GgufType(28, 1, 8), "float64"),
    "BF16": (GgufType(30, 1, 2), "bfloat16"),
}
TYPES = {kind.number: (name, kind) for name, kind in QUANTIZED.items()} | {
    kind.number: (name, kind) for name, (kind, _) in PLAIN.items()
}
NAMES = {number: name for number, (name, _) in TYPES.items()}

# Types of entries of the header: struct's letters, by number. 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the file, and what it stands for."""

    kind: str
    offset: int
    size: int
    shape: tuple[int, ...]


class GgufSource:
    """Tensors of a GGUF file; its header is checked here, its values when they are read.

    A quantized tensor has its type (`Q8_0`) for `dtype` and the shape that it stands for; it is read as the bytes of
    its blocks, one after another. Beside it is a tensor NAME.gguf, which tells those two: its type's number, then its
    shape.

    Args:
        path: the file.

    Raises:
        CheckpointError: a file that is cut off or damaged, or of a kind that is not known.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: tuple[Path, ...] = (path.absolute(),)
        self.infos: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        self._places: dict[str, _Place] = {}
        try:
            with path.open("rb") as file:
                self._read_header(_Header(file))
        except (OSError, UnicodeDecodeError, _Damaged) as error:
            raise CheckpointError(
                f"{path} ({path.stat().st_size} bytes) is no whole GGUF file: {error}. It may be cut off or damaged:"
                " fetch it again."
            ) from error

    def _read_header(self, header: _Header) -> None:
        if header.take(4) != MAGIC:
            raise _Damaged("it does not begin with GGUF")
        version = header.number("I")
        if version not in VERSIONS:
            swapped = version & 0xFFFF == 0
            raise CheckpointError(
                f"{self.path} is GGUF of version {version}{' (big-endian)' if swapped else ''}, and only"
                f" {' and '.join(map(str, VERSIONS))} (little-endian) are known."
            )
        tensors, entries = header.number("Q"), header.number("Q")
        shapes: dict[str, tuple[int, ...]] = {}
        alignment = ALIGNMENT
        for _ in header.counted(entries, 13, "entries"):
            key = header.string(LONGEST_NAME)
            value = header.value(header.number("I"))
            if key == "general.alignment":
                if type(value) is not int or not 0 < value <= 2**16 or value & (value - 1):
                    raise _Damaged(f"its alignment is {value!r}, and must be a power of two")
                alignment = value
            elif key.startswith(ORIGINAL_SHAPE) and isinstance(value, tuple):
                shapes[key.removeprefix(ORIGINAL_SHAPE)] = tuple(int(size) for size in value)
            elif isinstance(value, str):
                self.metadata[key] = value
        found = [self._read_tensor(header) for _ in header.counted(tensors, 24, "tensors")]
        start = -(-header.position // alignment) * alignment
        for name, number, dims, offset in found:
            self._add(name, number, dims, start + offset, header.size, shapes.get(name))
        self._check_places(start, alignment, header.size)

    def _check_places(self, start: int, alignment: int, file_size: int) -> None:
        """Raise where the tensors do not lie one after another, each padded, up to the end of the file.

        The format says that they do, and nothing else would tell a file with bytes inserted or lost from a whole one.
        """
        place = start
        for name, one in sorted(self._places.items(), key=lambda item: item[1].offset):
            if one.offset != place:
                raise _Damaged(f"its tensor {name!r} should begin at byte {place}, and is said to at {one.offset}")
            end = place + one.size
            place = -(-end // alignment) * alignment
        if self._places and file_size not in (end, place):  # not every writer pads the last one
            raise _Damaged(f"its last tensor ends at byte {end}, and the file does not")

    @staticmethod
    def _read_tensor(header: _Header) -> tuple[str, int, tuple[int, ...], int]:
        name = header.string(LONGEST_NAME)
        count = header.number("I")
        if not 0 < count <= MOST_DIMS:
            raise _Damaged(f"its tensor {name!r} has {count} dimensions")
        dims = tuple(header.number("Q") for _ in range(count))
        return name, header.number("I"), dims[::-1], header.number("Q")  # the fastest dimension comes first in the file

    def _add(
        self, name: str, number: int, shape: tuple[int, ...], offset: int, file_size: int, original: tuple | None
    ) -> None:
        if number not in TYPES:
            raise CheckpointError(
                f"{self.path}: {name!r} is of GGUF type {number}, which is not known. Known are"
                f" {', '.join([*PLAIN, *QUANTIZED])}."
            )
        kind, blocks = TYPES[number]
        count = math.prod(shape)
        if count == 0 or shape[-1] % blocks.values:
            raise _Damaged(f"its tensor {name!r} of shape {list(shape)} is no whole number of {kind} blocks a row")
        size = count // blocks.values * blocks.size
        if offset + size > file_size:
            raise _Damaged(f"its tensor {name!r} should end at byte {offset + size}")
        if original is not None:
            if not original or min(original) < 1 or math.prod(original) != count:
                raise _Damaged(f"its tensor {name!r} of shape {list(shape)} cannot stand for {list(original)}")
            shape = original
        if name in self.infos:
            raise _Damaged(f"it holds {name!r} twice")
        self._places[name] = _Place(kind, offset, size, shape)
        self.infos[name] = TensorInfo(name, kind, shape, self.path)
        if kind in QUANTIZED:
            if name + TYPE in self.infos:
                raise _Damaged(f"it holds {name + TYPE!r} twice")
            self.infos[name + TYPE] = TensorInfo(name + TYPE, "I64", (1 + len(shape),), self.path)

    def note(self, name: str) -> bytes:
        """The bytes of a tensor."""
        return bytes(self.map(name).flatten().tolist())

    def read(self, name: str) -> Tensor:
        """A copy of a tensor, on the CPU."""
        return self.map(name).clone()

    def map(self, name: str) -> Tensor:
        """A tensor whose pages are read when they are first used; of a quantized one the bytes of its blocks."""
        import numpy as np
        import torch

        if name not in self._places:
            place = self._places[name.removesuffix(TYPE)]
            return torch.tensor([QUANTIZED[place.kind].number, *place.shape])
        place = self._places[name]
        try:
            # Written to in memory only: torch has no read-only tensors, and would warn.
            data = np.memmap(self.files[0], np.uint8, "c", offset=place.offset, shape=(place.size,))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path}: the tensor {name!r} cannot be read: {error}.") from error
        tensor = torch.from_numpy(data)
        if place.kind in QUANTIZED:
            return tensor
        dtype = getattr(torch, PLAIN[place.kind][1])
        if place.offset % mmap.ALLOCATIONGRANULARITY % dtype.itemsize:
            tensor = tensor.clone()  # lies across the borders of its values
        return tensor.view(dtype).view(place.shape)


class _Damaged(Exception):
    """A header that cannot be: what is wrong with it."""


class _Header:
    """The bytes of a header, of which no more are taken than there are."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.position = file, 0
        self.size = os.fstat(file.fileno()).st_size

    @property
    def left(self) -> int:
        return min(self.size, LONGEST_HEADER) - self.position

    def take(self, count: int) -> bytes:
        self._check(count)
        self.position += count
        return self.file.read(count)

    def skip(self, count: int) -> None:
        self._check(count)
        self.position += count
        self.file.seek(self.position)

    def _check(self, count: int) -> None:
        if count > self.left:
            raise _Damaged(f"its header wants {count} bytes after byte {self.position}")

    def number(self, letter: str) -> int:
        return struct.unpack("<" + letter, self.take(struct.calcsize(letter)))[0]

    def string(self, longest: int) -> str:
        length = self.number("Q")
        if length > longest:
            raise _Damaged(f"a name in its header has {length} bytes")
        return self.take(length).decode()

    def counted(self, count: int, least: int, what: str) -> Iterator[int]:
        """The range of `count` things of `least` bytes or more each."""
        if count * least > self.left:
            raise _Damaged(f"its header promises {count} {what}")
        return iter(range(count))

    def value(self, kind: int) -> int | float | str | tuple | None:
        """An entry's value; None for arrays that are longer than any shape, which nothing here asks for."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string(LONGEST_HEADER)
        if kind != ARRAY:
            raise _Damaged(f"its header holds an entry of type {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind in SCALARS:
            if count <= MOST_DIMS * 2:
                return tuple(self.number(SCALARS[kind]) for _ in range(count))
            self.skip(count * struct.calcsize(SCALARS[kind]))
        elif kind == STRING:
            for _ in self.counted(count, 8, "strings"):
                self.skip(self.number("Q"))
        else:
            raise _Damaged(f"its header holds an array of type {kind}")
        return None

"""Writing safetensors files one tensor at a time, and putting files and folders in their place whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .errors import CheckpointError
from .files import sync

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Entry:
    """A tensor to be written.

    Attributes:
        name: In the file.
        dtype: Of the tensor.
        shape: Of the tensor.
        make: Gives the tensor, on the CPU, when its turn comes; the same one however often it is called.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        """Of its data."""
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
        path: Of a file that is made, or replaced.
        entries: In any order; the file has those of wide types first, as the format's own writer does, so that every
            tensor is aligned.
        metadata: Strings for the header.
        on_written: Called after each tensor.
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


@contextmanager
def in_place(destination: Path, overwrite: bool) -> Iterator[Path]:
    """Give a path beside `destination` to write a file or a folder to, and rename it to `destination` at the end.

    Whatever goes wrong, `destination` is what it was, or the new one; what is half-written is removed, at the latest by
    the next call. Where an old folder is replaced, it is renamed first: stopped between the two renames, it is found
    and put back by the next call.

    Raises:
        CheckpointError: if `destination` exists and may not be replaced, or cannot be written.
    """
    parent = destination.parent
    if destination.exists() and not overwrite:
        raise CheckpointError(
            f"{destination} exists: name another destination, or allow it to be replaced (--overwrite)."
        )
    try:
        parent.mkdir(parents=True, exist_ok=True)
        clean(destination)
        temporary = parent / f".{destination.name}.{os.getpid()}.partial"
        yield temporary
        old = parent / f".{destination.name}.{os.getpid()}.replaced"
        if destination.is_dir():
            os.rename(destination, old)
        os.replace(temporary, destination)
        sync(parent)
        _remove(old)
    except OSError as error:
        raise CheckpointError(f"{destination} cannot be written: {error.strerror or error}.") from error
    finally:
        clean(destination)


def clean(destination: Path) -> None:
    """Remove what calls left half-written, and put back what one stopped while replacing it."""
    pattern = re.compile(rf"\.{re.escape(destination.name)}\.(\d+)\.(partial|replaced)")
    for path in list(destination.parent.iterdir()) if destination.parent.is_dir() else []:
        match = pattern.fullmatch(path.name)
        if match is None or _belongs_to_another(int(match[1])):
            continue
        if match[2] == "replaced" and not destination.exists():
            os.rename(path, destination)
        else:
            _remove(path)


def _belongs_to_another(process: int) -> bool:
    """Whether another process of that number runs, whose files these may be."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

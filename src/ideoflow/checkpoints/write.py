"""Writing safetensors files one tensor at a time, and putting files and folders in their place whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from .. import files
from ..checks import printable
from .errors import CheckpointError, some

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
    """Give a path beside `destination` to write to, as `files.in_place` does, and replace nothing but a checkpoint.

    What is there is looked at before the work and again before it is replaced: a folder that holds more than a
    checkpoint is kept, and so is what somebody else has put there meanwhile.

    Raises:
        CheckpointError: if `destination` exists and may not be replaced, or cannot be written.
    """
    try:
        with files.in_place(destination, overwrite) as temporary:
            before = _identity(destination)
            if overwrite:
                _check_replaceable(destination)
            yield temporary
            if overwrite:
                if _identity(destination) != before:
                    raise CheckpointError(f"{destination} was written by somebody else meanwhile, and is kept.")
                _check_replaceable(destination)
    except FileExistsError as error:
        raise CheckpointError(
            f"{destination} exists: name another destination, or allow it to be replaced (--overwrite)."
        ) from error
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).removeprefix("Error while serializing: ")
        raise CheckpointError(f"{destination} cannot be written: {reason}.") from error


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file or folder of that name it is; None where there is none."""
    if not os.path.lexists(path):
        return None
    found = path.lstat()
    return found.st_dev, found.st_ino


# What files of models are called. Beside them, and not without, folders have notes and pictures for readers.
_MODEL = re.compile(
    r"(diffusion_pytorch_model|model)(\.[^.]+)?(-\d+-of-\d+)?\.safetensors"
    r"|(diffusion_pytorch_model|model)\.safetensors\.index(\.[^.]+)?\.json"
    r"|config\.json|generation_config\.json|model_index\.json|scheduler_config\.json|(video_)?preprocessor_config\.json"
    r"|(tokenizer|tokenizer_config|vocab|added_tokens|special_tokens_map)\.json|merges\.txt|chat_template\.(jinja|json)"
)
_NOTES = re.compile(r"README(\..+)?|LICEN[CS]E(\..+)?|NOTICE(\..+)?|\.gitattributes|.+\.svg", re.IGNORECASE)


def _check_replaceable(destination: Path) -> None:
    """Raise where a folder holds anything else than a checkpoint."""
    if destination.is_symlink() or not destination.is_dir():
        return
    names = [(Path(folder) / name) for folder, _, found in os.walk(destination) for name in found]
    others = [path for path in names if not _MODEL.fullmatch(path.name) and not _NOTES.fullmatch(path.name)]
    if names and not any(_MODEL.fullmatch(path.name) for path in names):
        others = names
    if others:
        shown = some([printable(path.relative_to(destination)) for path in sorted(others)], 4)
        raise CheckpointError(
            f"{destination} holds more than a checkpoint ({shown}), and is not replaced: name another destination, or"
            " remove it yourself."
        )

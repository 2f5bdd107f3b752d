"""Opening files of tensors: safetensors, alone or in shards, and GGUF; what a file is, its first bytes tell.

Headers, and small tensors of bytes, are read without torch, which takes seconds to import.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from .comfy_notes import notes_of_header
from .errors import CheckpointError, MissingFileError, read_json, refuse_pickle, some
from .gguf import GgufSource
from .tensors import Source, TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_INDEX = 64 * 2**20  # bytes
AT_ONCE = 32 * 2**20  # bytes that are read through one map of a file, whose pages stay in memory as long as it does
INDEX = ".safetensors.index"
# What diffusers and transformers call the files of a folder, before a variant and `.safetensors`.
STEMS = ("diffusion_pytorch_model", "model")
# Of a variant alone: `model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors`, and their index.
_VARIANT = re.compile(
    rf"(?:{'|'.join(STEMS)})\.(?:safetensors\.index\.(\w+)\.json|(?!safetensors)(\w+)(?:-\d+-of-\d+)?\.safetensors)"
)


class SafetensorsSource:
    """Tensors of safetensors files; their headers are checked here, their values when they are read.

    Args:
        path: the file, index or folder that the user named.
        files: the files that hold the tensors, absolute: they may be read when the working directory is another.
        expected: the file of each tensor, by an index.

    Raises:
        CheckpointError: a file that is missing, cut off, or not in this format, or that differs from the index.
    """

    def __init__(self, path: Path, files: tuple[Path, ...], expected: Mapping[str, Path] | None = None) -> None:
        self.path, self.files = path, files
        # One map of a file for all tensors that are kept: pages of two maps count twice in what a process holds.
        self._maps: dict[Path, Any] = {}
        self._reader: tuple[Path, Any] | None = None
        self._read = 0  # bytes, through it
        self.infos: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        self._notes: dict[str, bytes] = {}  # what a header says as tensors of other files do
        for file in files:
            with _opened(file, "np") as opened:
                header, names = opened.metadata() or {}, list(opened.keys())
                self.metadata |= header
                for name in names:
                    view = opened.get_slice(name)
                    if name in self.infos:
                        raise CheckpointError(f"{self.infos[name].file} and {file} both hold {name!r}.")
                    self.infos[name] = TensorInfo(name, view.get_dtype(), tuple(view.get_shape()), file)
                for name, note in notes_of_header(header, names, file).items():
                    if name not in self.infos:
                        self._notes[name] = note
                        self.infos[name] = TensorInfo(name, "U8", (len(note),), file)
        if expected is not None:
            wrong = [name for name, file in expected.items() if name not in self.infos or self.infos[name].file != file]
            if wrong:
                raise CheckpointError(
                    f"{path} promises tensors that are not in the files it names: {some(wrong)}. Fetch the missing or"
                    " changed shards again."
                )

    def note(self, name: str) -> bytes:
        if name in self._notes:
            return self._notes[name]
        with _opened(self.infos[name].file, "np") as opened:
            note: bytes = self._tensor(opened, name).tobytes()
            return note

    def read(self, name: str) -> Tensor:
        if name in self._notes:
            return self._noted(name)
        file = self.infos[name].file
        if self._reader is None or self._reader[0] != file or self._read >= AT_ONCE:
            self._reader, self._read = (file, _opened(file).__enter__()), 0
        tensor = self._tensor(self._reader[1], name)
        self._read += tensor.nbytes
        return tensor

    def map(self, name: str) -> Tensor:
        if name in self._notes:
            return self._noted(name)
        file = self.infos[name].file
        if file not in self._maps:
            self._maps[file] = _opened(file).__enter__()
        return self._tensor(self._maps[file], name)

    def _noted(self, name: str) -> Tensor:
        import torch

        return torch.tensor(list(self._notes[name]), dtype=torch.uint8)

    def _tensor(self, opened: Any, name: str) -> Any:
        try:
            return opened.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            file = self.infos[name].file
            raise CheckpointError(f"{file}: the tensor {name!r} cannot be read: {error}.") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}, "_reader": None}


def open_source(path: str | os.PathLike[str], variant: str | None = None) -> Source:
    """Open the tensors of a file, of an index of shards, or of a folder that holds either.

    What a file is, its first bytes tell and not its name.

    Args:
        path: a safetensors file, a GGUF file, an index, or a folder.
        variant: the variant of a folder's files: `diffusion_pytorch_model.VARIANT.safetensors`.

    Raises:
        CheckpointError: naming the file, and saying what was found in place of what is known.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _open_folder(path, variant)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder.")
    if not path.is_file():
        raise CheckpointError(f"{path} is no file that can be opened, but a device, a pipe or the like.")
    if path.name.endswith(".json"):
        return _open_index(path)
    return _open_file(path)


def _open_folder(folder: Path, variant: str | None) -> Source:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    for stem in STEMS:
        for name in (_with_variant(f"{stem}{INDEX}.json", variant), _with_variant(f"{stem}.safetensors", variant)):
            if name in names:
                return open_source(folder / name)
    weights = [name for name in names if name.endswith((".safetensors", ".gguf", f"{INDEX}.json"))]
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    indexes = [name for name in weights if name.endswith(".json")]
    variants = sorted({match[1] or match[2] for match in map(_VARIANT.fullmatch, weights) if match})
    if variant is None and variants and all(map(_VARIANT.fullmatch, weights)):
        ask = " or ".join(f"variant={name!r}" for name in variants)
        # The first words are those that programs written for diffusers look for.
        raise MissingFileError(
            f"Error no file named {STEMS[0]}.bin found in directory {folder}, nor other weights but those of variants,"
            f" which are loaded where they are asked for: pass {ask}."
        )
    if variant is None and len(indexes or weights) == 1:
        return open_source(folder / (indexes or weights)[0])
    if not weights and pickled:
        refuse_pickle(folder / pickled[0], b"\x80\x02")
    asked = f" for variant={variant!r}" if variant else ""
    found = f"it holds {some(weights)}: name one of them, or the variant" if weights else "it holds no weights"
    raise MissingFileError(f"{folder}: no single checkpoint{asked} in this folder; {found}.")


def _with_variant(name: str, variant: str | None) -> str:
    """diffusers' names: `model.fp16.safetensors`, `model.safetensors.index.fp16.json`."""
    stem, dot, ending = name.rpartition(".")
    return f"{stem}.{variant}{dot}{ending}" if variant else name


def _open_index(path: Path) -> Source:
    found = read_json(path, LARGEST_INDEX)
    weight_map = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{path} is no index of shards: it must hold a `weight_map` of tensors to files.")
    named: dict[str, str] = weight_map
    shards = sorted(set(named.values()))
    outside = [shard for shard in shards if Path(shard).name != shard or shard in ("", ".", "..")]
    if outside:
        raise CheckpointError(f"{path} names files outside its folder, which are not opened: {some(outside)}.")
    missing = [shard for shard in shards if not (path.parent / shard).is_file()]
    if missing or not shards:
        raise CheckpointError(f"{path} names shards that are not there: {some(missing) or 'none at all'}.")
    folder = path.parent.absolute()
    files = tuple(folder / shard for shard in shards)
    return SafetensorsSource(path, files, {name: folder / file for name, file in named.items()})


def _open_file(path: Path) -> Source:
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    refuse_pickle(path, head)
    if head.startswith(b"GGUF"):  # as the length of a safetensors header this would be more than a gigabyte
        return GgufSource(path)
    return SafetensorsSource(path, (path.absolute(),))


class _opened:
    """safetensors' reader of a file, its errors in our words."""

    def __init__(self, file: Path, library: str = "pt") -> None:
        self.file, self.library = file, library

    def __enter__(self) -> Any:
        try:
            self.reader = safe_open(self.file, self.library, "cpu")
            return self.reader.__enter__()
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            size = self.file.stat().st_size if self.file.exists() else 0
            raise CheckpointError(
                f"{self.file} ({size} bytes) is no whole safetensors file: {error}. It may be cut off or damaged: fetch"
                " it again."
            ) from error

    def __exit__(self, *details: Any) -> None:
        self.reader.__exit__(*details)

"""Converting checkpoints from any form that is known to the forms that other programs read, one weight at a time."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers.utils import logging
from torch import Tensor

from ..files import resolved, sync
from ..ops.quantized_layers import is_quantized_layer
from ..ops.rows import quantize_rows
from .atomic_replace import in_place
from .checkpoint import Checkpoint, open_checkpoint
from .config import DEFAULTS, HEADER, original_config
from .errors import CheckpointError, some
from .load import QUIET_SECONDS, TYPES, Finite, read_parts
from .names import BRANCHES, ORIGINAL, QKV, Branch, Naming, current_form, original_name
from .source import SafetensorsSource
from .storage_kinds import Float8
from .stored_weights import Piece, StoredWeight
from .write import Entry, bits, write_safetensors

To = Literal["diffusers", "original", "fp8"]
FORMS: tuple[To, ...] = ("diffusers", "original", "fp8")
STEMS = {"diffusers": "diffusion_pytorch_model", "original": "model", "fp8": "diffusion_pytorch_model"}
SHARD = 5_000_000_000  # bytes, as diffusers splits


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    to: To,
    *,
    overwrite: bool = False,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = SHARD,
    variant: str | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    branch: Branch = "transformer",
) -> Path:
    """Write a checkpoint in another form. What comes out is read back and compared before it gets its name.

    Args:
        source: a transformer of any form: file, index or folder; or a pipeline's folder, of which both transformers are
            converted and everything else is copied.
        destination: a folder; of a single transformer also a `.safetensors` file, with its configuration in the header.
            It is there whole, or not at all.
        to: "diffusers" for its names; "original" for the original's, with q, k and v as one; "fp8" for linear layers of
            the blocks in float8_e4m3fn, with a scale for each row, under the names that the source has.
        overwrite: whether `destination` may be replaced.
        dtype: type of all weights that are not in fp8; None keeps types, and takes bfloat16 for weights in few bits.
        max_shard_bytes: the most bytes of a file, where a folder is written.
        variant: the variant of the source's files.
        config: as in `open_checkpoint`.
        branch: which transformer, of a file that holds both.

    Returns:
        `destination`.

    Raises:
        CheckpointError: a source that cannot be read, or a destination that cannot be written.
    """
    source, destination = Path(source).expanduser(), Path(destination).expanduser()
    to = current_form(to)
    if to not in FORMS:
        raise CheckpointError(f"`to` is {to!r}: choose one of {', '.join(FORMS)}.")
    if dtype is not None and dtype not in TYPES.values():
        raise CheckpointError(f"`dtype` is {dtype}: choose one of {', '.join(str(one) for one in TYPES.values())}.")
    if not source.exists():
        raise CheckpointError(f"{source}: there is no such file or folder.")
    inner, outer = resolved(destination), resolved(source)
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise CheckpointError(f"{destination} and {source} lie in one another: name a destination apart.")
    single = destination.suffix == ".safetensors"
    found = [one for one in BRANCHES if (source / one).is_dir()] if source.is_dir() else []
    if found and single:
        raise CheckpointError(
            f"{source} is a pipeline, which is more than one file holds: name a folder as destination, or convert"
            f" {source / found[0]} alone."
        )
    checkpoints = {one: open_checkpoint(source / one, one, variant=variant) for one in found}
    if not found:
        checkpoints = {branch: open_checkpoint(source, branch, variant=variant, config=config)}
    plans = {one: entries_of(checkpoint, to, dtype) for one, checkpoint in checkpoints.items()}
    tensors = sum(len(entries) for entries in plans.values())
    with (
        in_place(destination, overwrite) as temporary,
        logging.tqdm(
            total=2 * tensors,
            desc=f"Converting to {to}",
            unit="tensor",
            delay=QUIET_SECONDS,
            leave=False,
            disable=None,  # where nobody watches
        ) as progress,
    ):
        step = partial(progress.update, 1)
        if found:
            shutil.copytree(source, temporary, ignore=_but_branches(source))
        for one, entries in plans.items():
            target = temporary / one if found else temporary
            checkpoint = checkpoints[one]
            naming = _naming(checkpoint, to)
            if single:
                settings = json.dumps(_config(checkpoint, naming))
                write_safetensors(target, entries, {HEADER: settings}, step)
            else:
                _write_folder(target, entries, _config(checkpoint, naming), STEMS[to], max_shard_bytes, step)
            _compare(target, entries, one, step)
        if not single:
            sync(temporary)
    return destination


def lossy(checkpoint: Checkpoint, to: To, dtype: torch.dtype | None = None) -> list[str]:
    """What a conversion changes, in words; nothing where every weight keeps its value."""
    notes = []
    low = sorted(kind for kind in checkpoint.kinds if kind != "plain")
    if to != "fp8" and low:
        notes.append(f"{', '.join(low)} is expanded to {dtype or torch.bfloat16}, which is larger and no more precise")
    if to == "fp8" and checkpoint.kinds["plain"]:
        notes.append("linear layers of the blocks are rounded to fp8")
    if dtype is not None and any(TYPES.get(i.dtype) != dtype for w in checkpoint.weights for i in w.infos.values()):
        notes.append(f"weights are rounded to {dtype}")
    return notes


def _naming(checkpoint: Checkpoint, to: To) -> Naming:
    return checkpoint.naming if to == "fp8" else to


def _config(checkpoint: Checkpoint, naming: Naming) -> dict[str, Any]:
    """The configuration with the keys of a naming."""
    if naming == ORIGINAL:
        return original_config(checkpoint.config)
    own = {"_class_name": "Ideogram4Transformer2DModel", "_diffusers_version": diffusers.__version__}
    return {**own, **DEFAULTS, **checkpoint.config}


def entries_of(checkpoint: Checkpoint, to: To, dtype: torch.dtype | None = None) -> list[Entry]:
    """The tensors of a checkpoint in another form; see `convert`."""
    make = _Maker(checkpoint, dtype)
    naming = _naming(checkpoint, to)
    pieces = {piece.name: (weight, piece) for weight in checkpoint.weights for piece in weight.pieces}
    entries: list[Entry] = []
    for name, piece in pieces.items():
        layer, _, parameter = name.rpartition(".")
        attention = re.fullmatch(r"(layers\.\d+\.attention\.)(to_[qkv])", layer)
        new, parts = name, [piece]
        if naming == ORIGINAL and attention is None:
            new = f"{original_name(layer)}.{parameter}"
        elif naming == ORIGINAL and attention is not None:
            if attention[2] != QKV[0]:
                continue
            new = f"{attention[1]}qkv.{parameter}"
            parts = [pieces[f"{attention[1]}{one}.{parameter}"] for one in QKV]
        entries += make.entries(new, parts, to == "fp8" and is_quantized_layer(layer))
    return entries


Part = tuple[StoredWeight, Piece]  # what is stored, and which of its rows


class _Maker:
    """Makes the entries of a weight that is put together from rows of stored ones."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype | None) -> None:
        self.checkpoint, self.finite, self.dtype = checkpoint, Finite(), dtype

    def entries(self, name: str, parts: Sequence[Part], to_float8: bool) -> list[Entry]:
        """The tensors of one weight of the result.

        Args:
            name: the weight's.
            parts: what it consists of, one below the other.
            to_float8: whether it is to be in fp8; so it stays, if it is, where fp8 is what is written.
        """
        shape = (sum(piece.shape[0] for _, piece in parts), *parts[0][1].shape[1:])
        if to_float8:
            scale = f"{name.removesuffix('weight')}weight_scale"
            return [
                Entry(name, torch.float8_e4m3fn, shape, partial(self.float8, parts, 0)),
                Entry(scale, torch.float32, shape[:1], partial(self.float8, parts, 1)),
            ]
        stored = {TYPES.get(weight.infos["weight"].dtype) for weight, _ in parts}
        dtype = self.dtype or (stored.pop() if len(stored) == 1 else None) or torch.bfloat16
        return [Entry(name, dtype, shape, partial(self.plain, parts, dtype))]

    def plain(self, parts: Sequence[Part], dtype: torch.dtype) -> Tensor:
        """The weight, expanded."""
        return _stacked([weight.storage.expand(self.read(weight, piece), dtype) for weight, piece in parts])

    def float8(self, parts: Sequence[Part], which: int) -> Tensor:
        """The weight in fp8 (0) or its scales (1); bit for bit those that are stored, where they are in fp8."""
        made = []
        for weight, piece in parts:
            tensors = self.read(weight, piece)
            if isinstance(weight.storage, Float8):
                made.append((tensors["weight"], weight.storage.scale(tensors))[which])
            else:
                expanded = weight.storage.expand(tensors, torch.float32)
                made.append(quantize_rows(expanded, torch.float8_e4m3fn)[which])
        return _stacked(made)

    def read(self, weight: StoredWeight, piece: Piece) -> Mapping[str, Tensor]:
        """The tensors of the rows of a stored weight; refused where they are not finite."""
        tensors = read_parts(self.checkpoint.source, weight, self.finite)
        return tensors if piece.rows is None else weight.storage.rows(tensors, *piece.rows)


def _stacked(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _but_branches(source: Path) -> Callable[[str, list[str]], set[str]]:
    """For `copytree`: leave out the transformers' weights and configurations, and nothing else of their folders."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        if Path(folder).parent != source or Path(folder).name not in BRANCHES:
            return set()
        return {n for n in names if n == "config.json" or n.endswith(".gguf") or ".safetensors" in n}

    return left_out


def _write_folder(
    folder: Path,
    entries: list[Entry],
    config: Mapping[str, Any],
    stem: str,
    max_shard_bytes: int,
    on_written: Callable[[], None],
) -> None:
    """A model's folder: its configuration, and one file of weights or several and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(one.bytes for one in shards[-1]) + entry.bytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(entry)
    names = [f"{stem}.safetensors"]
    if len(shards) > 1:
        names = [f"{stem}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
        index = {
            "metadata": {"total_size": sum(entry.bytes for entry in entries)},
            "weight_map": {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard},
        }
        _write_json(folder / f"{stem}.safetensors.index.json", index)
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, shard, on_written=on_written)
    _write_json(folder / "config.json", config)
    sync(folder)


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _compare(target: Path, entries: list[Entry], branch: Branch, on_compared: Callable[[], None]) -> None:
    """Read back what was written, and compare it bit for bit with what is made of the source once more."""
    written = open_checkpoint(target, branch).source
    assert isinstance(written, SafetensorsSource)
    different = []
    for entry in entries:
        if not torch.equal(bits(written.read(entry.name)), bits(entry.made())):
            different.append(entry.name)
        on_compared()
    if different or len(written.infos) != len(entries):
        raise CheckpointError(
            f"{target} reads back with other bits than were written ({some(different)}): the disk or the source is"
            " failing, or the source was changed meanwhile."
        )

"""Saving pipelines and models: what could not be opened again is refused; a folder is written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import nn

from ..files import in_place, resolved, sync, sync_all, temporary_beside
from ..ops.gguf_linear import GgufLinear
from ..ops.quantized_linear import Float8Linear
from .errors import CheckpointError, some
from .left_in_file import LeftInFile

# What says of a folder in fp8 that its scales count. The loaders of diffusers and transformers, which would leave them
# out, refuse a configuration without a `quant_method`; one that they do not know, transformers passes over.
FLOAT8 = {"form": "fp8 of ideoflow, a scale for each row"}
LAST = ("config.json", "model_index.json")  # by which readers find the rest
# Weights of one model and variant, in one file or several: those of a save before this one would be read with it.
_WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model)"
    r"(?P<variant>(?:\.(?!safetensors|bin)[^.]+?)?)(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
    r"|(?P<index_stem>diffusion_pytorch_model|model)\.(?:safetensors|bin)\.index(?P<index_variant>(?:\.[^.]+)?)\.json"
)


def save_model(
    model: nn.Module,
    theirs: Callable[..., None],
    folder: str | os.PathLike[str],
    is_main_process: bool,
    safe_serialization: bool,
    use_flashpack: bool,
    **options: Any,
) -> None:
    """What a transformer's `save_pretrained` does, by diffusers' method `theirs`; the arguments are its own."""
    _check_options(safe_serialization, use_flashpack)
    check_savable("transformer", model)
    if not is_main_process:
        model.state_dict()  # sharded weights are gathered by all processes
        return
    with into_folder(folder) as new:
        theirs(str(new), **_for_hub(folder, options))
        _mark_float8(model, new)


def save_pipeline(
    components: Mapping[str, Any],
    theirs: Callable[..., None],
    folder: str | os.PathLike[str],
    safe_serialization: bool,
    use_flashpack: bool,
    **options: Any,
) -> None:
    """What a pipeline's `save_pretrained` does, by diffusers' method `theirs`; the arguments are its own."""
    _check_options(safe_serialization, use_flashpack)
    models = {
        name: getattr(one, "_orig_mod", one) for name, one in components.items()
    }  # without torch.compile's wrapper
    models = {name: one for name, one in models.items() if isinstance(one, nn.Module)}
    for name, model in models.items():
        check_savable(name, model)
    with into_folder(folder) as new, _without_one_way_conversions(*models.values()):
        theirs(str(new), **_for_hub(folder, options))


def _check_options(safe_serialization: bool, use_flashpack: bool) -> None:
    if not safe_serialization:
        raise CheckpointError(
            "`safe_serialization` is False, which asks for pickles: such files can run code when they are opened, and"
            " ideoflow opens none. Leave it at True."
        )
    if use_flashpack:
        raise CheckpointError("`use_flashpack` asks for files that ideoflow does not open: leave it at False.")


def _for_hub(folder: str | os.PathLike[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options, with the repository's name that diffusers takes from the folder's, which is a temporary one here."""
    named = {"repo_id": Path(folder).expanduser().resolve().name} if options.get("push_to_hub") else {}
    return {**named, **options}


def check_savable(name: str, model: nn.Module) -> None:
    """Raise where `save_pretrained` of a model would fail half-way, or leave what does not open again.

    Args:
        name: Of the model, for messages.
        model: A component of a pipeline.

    Raises:
        CheckpointError: a ValueError that says what is in the way, and what to do.
    """
    wrapped = [part for part in model.modules() if isinstance(part, BaseTunerLayer)]
    if wrapped:
        adapters = sorted(getattr(model, "peft_config", None) or {})
        raise CheckpointError(
            f"`{name}` has adapters on its layers ({some(adapters) or 'put there by peft'}), whose wrappers no reader"
            " of the folder knows. To save the weights with the adapters in them, call `fuse_lora()` and then"
            " `unload_lora_weights()`; to save them without, call `unload_lora_weights()`; to save an adapter alone,"
            " call `save_lora_adapter`."
        )
    if any(isinstance(part, GgufLinear) for part in model.modules()):
        raise CheckpointError(
            f"`{name}` keeps GGUF's blocks, which cannot be saved in this layout: load it with `dequantize=True`, or"
            " call its `dequantize()` first."
        )
    quantizer = getattr(model, "hf_quantizer", None)
    if isinstance(quantizer, DiffusersQuantizer):
        # Of torchao's, diffusers asks both; the second is there where the first is.
        savable = quantizer.is_serializable and getattr(quantizer, "supports_safetensors_serialization", True)
    else:
        savable = quantizer is None or quantizer.is_serializable()
    if not savable:
        raise CheckpointError(
            f"`{name}` is quantized by {_method(quantizer)}, which cannot be saved: save it before it is quantized."
        )
    if quantizer is None and any(parameter.dtype == torch.int8 for parameter in model.parameters()):
        raise CheckpointError(
            f"`{name}` holds int8 weights, which no file form keeps: save it before `quantize`, or expand it with"
            " ideoflow.ops.dequantize_ first."
        )
    away = [key for key, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if away:
        raise CheckpointError(
            f"`{name}` has weights that are not in memory, such as {away[0]}: they are offloaded. Save before"
            " offloading is enabled, or call `remove_all_hooks()` of the pipeline first."
        )
    for part in model.modules():
        if isinstance(part, LeftInFile):
            part.check()


def _method(quantizer: Any) -> str:
    method = quantizer.quantization_config.quant_method
    return str(getattr(method, "value", method))


def _mark_float8(model: nn.Module, folder: Path) -> None:
    """Note in a saved folder's configuration that its weights are in fp8, if they are; see `FLOAT8`."""
    if not any(isinstance(part, Float8Linear) for part in model.modules()):
        return
    path = folder / LAST[0]
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"quantization_config": FLOAT8}, indent=2, sort_keys=True) + "\n")


@contextmanager
def _without_one_way_conversions(*models: Any) -> Iterator[None]:
    """Let transformers save models that it read in few bits: it would undo how it read them, which it cannot.

    What it puts together from bitsandbytes' tensors while loading, the layers take apart by themselves.
    """
    kept = [(model, model._weight_conversions) for model in models if getattr(model, "_weight_conversions", None)]
    try:
        for model, conversions in kept:
            model._weight_conversions = [one for one in conversions if _goes_back(one)]
        yield
    finally:
        for model, conversions in kept:
            model._weight_conversions = conversions


def _goes_back(conversion: Any) -> bool:
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True


@contextmanager
def into_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write a folder to, and put what was written into `folder` at the end, all of it or nothing.

    A new folder gets its name in one step, and so does one that replaces an earlier save. A folder that holds other
    files too keeps them: the new files take their places one after another, those that readers look for first last.
    Weights of an earlier save of the same variant go, since they would be read with the new ones.

    Raises:
        CheckpointError: a folder that cannot be written; it is what it was.
    """
    try:
        place = resolved(Path(folder).expanduser())  # a link stays a link
        _check_writable(place)
        if not place.exists():
            with in_place(place, overwrite=False) as new:
                new.mkdir()
                yield new
            return
        stays = _has_to_stay(place)
        with temporary_beside(place / "saved" if stays else place) as new:
            new.mkdir()
            yield new
            sync_all(new)
            if stays or _others(place, new):
                _merge(new, place)
                return
            shutil.copymode(place, new)
            with in_place(place) as placed:
                os.rename(new, placed)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).removeprefix("Error while serializing: ")
        raise CheckpointError(f"{folder} cannot be written: {reason}. Nothing was changed.") from error


def _check_writable(place: Path) -> None:
    """Raise an OSError unless a folder, or the nearest one above it that is there, can be written."""
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{place} is a file, not a folder")
    tempfile.TemporaryFile(dir=place).close()  # asking for permissions tells too little: root has all of them


def _has_to_stay(folder: Path) -> bool:
    """Whether a folder cannot be replaced by another one of its name."""
    here = Path.cwd()
    return (
        here == folder
        or folder in here.parents
        or os.path.ismount(folder)
        or not os.access(folder.parent, os.W_OK | os.X_OK)
    )


def _files(folder: Path) -> list[Path]:
    """What is in a folder and below it, links as they are, relative to it."""
    found = []
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        found += [(Path(parent) / name).relative_to(folder) for name in (*names, *links)]
    return found


def _others(folder: Path, new: Path) -> bool:
    """Whether a folder holds anything else than what a new one replaces."""
    replaced = {*_files(new), *_stale(folder, new)}
    return any(one not in replaced for one in _files(folder))


def _stale(folder: Path, new: Path) -> list[Path]:
    """Weights in a folder that were saved before, of models and variants that the new one has in other files."""
    written = _files(new)
    kinds = {(one.parent, kind) for one in written if (kind := _kind(one.name))}
    return [one for one in _files(folder) if one not in written and (one.parent, _kind(one.name)) in kinds]


def _kind(name: str) -> tuple[str, str] | None:
    """Stem and variant of a file of weights."""
    match = _WEIGHTS.fullmatch(name)
    if match is None:
        return None
    return (match["stem"] or match["index_stem"], match["variant"] or match["index_variant"] or "")


def _merge(new: Path, folder: Path) -> None:
    """Move the files of a new folder to their places in one that stays."""
    stale = _stale(folder, new)
    files = sorted(_files(new), key=lambda one: (one.name in LAST, -len(one.parts)))
    for file in files:  # all is seen before anything is moved
        if (folder / file).is_dir():
            raise IsADirectoryError(errno.EISDIR, f"{folder / file} is a folder, not a file")
        _check_writable((folder / file).parent)
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / file, folder / file)
    for file in stale:
        (folder / file).unlink()
    for parent in {(folder / file).parent for file in files}:
        sync(parent)

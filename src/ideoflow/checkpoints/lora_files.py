"""The files of LoRA adapters: found by path, folder or hub id, and read in whatever form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from torch import Tensor, promote_types

from .errors import CheckpointError, some
from .hub import HUB_ARGUMENTS, fetching, local_file
from .lora import Lora, read_lora

# Which file of a folder, where several could be meant: what diffusers and peft write.
USUAL = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_OTHERS = ("proxies", "use_safetensors", "low_cpu_mem_usage", "return_lora_metadata")

LoraSource = str | os.PathLike[str] | Mapping[str, Tensor]


def loadable(lora: Lora) -> dict[str, Tensor]:
    """Tensors under diffusers' names, both matrices of an adapter of one type: they are multiplied as they are."""
    layers = {}
    for name, adapter in lora.layers.items():
        dtype = promote_types(adapter.down.dtype, adapter.up.dtype)
        layers[name] = replace(adapter, down=adapter.down.to(dtype), up=adapter.up.to(dtype))
    return replace(lora, layers=layers).tensors()


def read_any(
    source: LoraSource,
    config: Mapping[str, Any] | None,
    ignore_unknown: bool,
    kwargs: Mapping[str, Any],
    prefix: str | None = None,
) -> Lora:
    """Read an adapter from wherever it is.

    Args:
        source: As `load_lora_weights` takes it.
        config: Of the transformer, to check shapes.
        ignore_unknown: Leave out what is no adapter of this model.
        kwargs: The other arguments of `load_lora_weights`.
        prefix: Of the names to read, which begin after it and a dot; None for all.
    """
    unknown = set(kwargs) - {*HUB_ARGUMENTS, *_OTHERS, "weight_name", "subfolder"}
    if unknown:
        raise TypeError(f"{', '.join(sorted(unknown))}: no such argument of `load_lora_weights`.")
    if kwargs.get("use_safetensors") is False:
        raise CheckpointError("`use_safetensors=False` asks for pickled weights, which are never opened here.")
    if not isinstance(source, Mapping):
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key)}
        source = find_lora(source, kwargs.get("weight_name"), kwargs.get("subfolder"), hub)
    return read_lora(source, config, ignore_unknown=ignore_unknown, prefix=prefix)


def find_lora(
    path: str | os.PathLike[str],
    weight_name: str | None = None,
    subfolder: str | None = None,
    hub: Mapping[str, Any] | None = None,
) -> Path:
    """The file of an adapter: of a path, a folder, a hub's address of a file, or a hub id.

    Args:
        path: Any of these.
        weight_name: Of the file in the folder; None for what diffusers and peft call theirs, or the only one.
        subfolder: Of the folder.
        hub: Arguments of `huggingface_hub`.

    Raises:
        CheckpointError: no such file, or several that could be meant.
    """
    if str(path).startswith(("http://", "https://")):
        return local_file(path, dict(hub or {}))
    place = Path(path).expanduser()
    if place.is_file():
        return place
    if place.is_dir():
        folder = place / (subfolder or "")
        if weight_name is not None:
            if not (folder / weight_name).is_file():
                raise CheckpointError(f"{folder}: there is no file {weight_name!r} in this folder.")
            return folder / weight_name
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_file()) if folder.is_dir() else []
        return folder / _choose(str(folder), names)
    if place.is_absolute() or str(path).startswith((".", "~")) or place.suffix in (".safetensors", *PICKLED):
        raise CheckpointError(f"{place}: there is no such file or folder.")
    return _of_hub(str(path), weight_name, subfolder, hub or {})


def _choose(where: str, names: list[str]) -> str:
    found = [name for name in names if name.endswith(".safetensors")]
    for name in USUAL:
        if name in found:
            return name
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(f"{where} holds {some(found)}: give the path of one, or its `weight_name`.")
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled:
        raise CheckpointError(
            f"{where} holds {some(pickled)} and no safetensors file: such files can run code when they are opened, so"
            " they never are. Convert them to safetensors with a program that you trust them with."
        )
    raise CheckpointError(f"{where} holds no safetensors file.")


def _of_hub(repository: str, weight_name: str | None, subfolder: str | None, hub: Mapping[str, Any]) -> Path:
    inside = f"{subfolder}/" if subfolder else ""
    with fetching(repository):
        if weight_name is None and hub.get("local_files_only"):
            weight_name = USUAL[0]
        elif weight_name is None:
            names = HfApi(token=hub.get("token")).list_repo_files(repository, revision=hub.get("revision"))
            here = [name.removeprefix(inside) for name in names if name.startswith(inside)]
            weight_name = _choose(repository, [name for name in here if "/" not in name])
        return Path(hf_hub_download(repository, inside + weight_name, **hub))

"""The autoencoder, of any form that its weights may have, as diffusers' class."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, ModelMixin  # noqa: F401 (diffusers looks for the second here)

from ..checkpoints.component_configs import making, read_autoencoder_config
from ..checkpoints.errors import CheckpointError, some
from ..checkpoints.hub import HUB_ARGUMENTS, local_folder
from ..checkpoints.load import fill
from ..checkpoints.pretrained import IGNORED, asked_dtype, one_device
from ..checkpoints.source import open_source
from ..checkpoints.stored_weights import match_tensors
from ..checkpoints.tensors import Source

KNOWN = {"dtype", "torch_dtype", "device_map", "variant", "subfolder", *HUB_ARGUMENTS}


class Autoencoder(AutoencoderKLFlux2):
    """What a pipeline loads its autoencoder with: diffusers' class, every tensor checked. Few bits are expanded."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load an `AutoencoderKLFlux2` from a folder or a hub id.

        Args:
            pretrained_model_name_or_path: Folder or hub id.
            kwargs: As diffusers' method. Device maps over several devices and the like are left to it.

        Raises:
            CheckpointError: a ValueError that names the file, and the tensor, that cannot be used.
        """
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key)}
        folder = local_folder(pretrained_model_name_or_path, kwargs.get("subfolder"), kwargs.get("variant"), hub)
        config = read_autoencoder_config(folder)
        source = open_source(folder, kwargs.get("variant"))
        asked = {key for key, value in kwargs.items() if value is not None and value is not False}
        if asked - KNOWN - set(IGNORED) or one_device(kwargs.get("device_map")) is None:
            match_tensors(source, _empty(source, config))
            if any(info.dtype.startswith("F8") for info in source.infos.values()):
                raise CheckpointError(f"{folder} holds float8 weights: load it without {some_of(asked - KNOWN)}.")
            settled = {"subfolder", *HUB_ARGUMENTS}
            own = {key: value for key, value in kwargs.items() if key not in settled} | {"use_safetensors": True}
            return AutoencoderKLFlux2.from_pretrained(folder, **own)
        return _load(source, config, **kwargs)

    @classmethod
    def from_single_file(cls, path: Any, *, config: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Load an `AutoencoderKLFlux2` from one file with diffusers' names, its configuration from a folder."""
        return _load(open_source(path), read_autoencoder_config(Path(config).expanduser()), **kwargs)


def some_of(names: set[str]) -> str:
    """Names of arguments, as a sentence has them."""
    return ", ".join(sorted(names)) or "`device_map` over several devices"


def _empty(source: Source, config: dict[str, Any]) -> AutoencoderKLFlux2:
    with making(source.path, "autoencoder"), torch.device("meta"):
        return AutoencoderKLFlux2.from_config(config)


def _check_names(source: Source) -> None:
    """Raise for names of the original autoencoder, which ComfyUI's file has."""
    original = re.compile(r"(.*\.)?(encoder|decoder)\.((down|up)\.\d+|mid\.(block|attn)_\d+)\..+")
    found = [name for name in source.infos if original.fullmatch(name)]
    if found:
        raise CheckpointError(
            f"{source.path} is an autoencoder under the original's names, as ComfyUI has it ({some(found, 2)}), which"
            " is not read here. Leave it out: the folder that everything else comes from has the same autoencoder in"
            " `vae`. For another one, give a folder or a file with diffusers' names (encoder.down_blocks.0 ...)."
        )


def _load(source: Source, config: dict[str, Any], **kwargs: Any) -> AutoencoderKLFlux2:
    dtype = asked_dtype(kwargs)
    _check_names(source)
    device = one_device(kwargs.get("device_map"))
    assert device is not None
    model = _empty(source, config)
    fill(model, source, match_tensors(source, model), dtype=dtype, device=device, keep=None, what="vae")
    model.register_to_config(_name_or_path=str(source.path))
    return model.eval()

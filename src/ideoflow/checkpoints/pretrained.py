"""`from_pretrained` and `from_single_file` of the transformer: diffusers' arguments, every form of checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from .checkpoint import Checkpoint, open_checkpoint
from .errors import CheckpointError, read_json, unusable_quantization
from .hub import HUB_ARGUMENTS, local_file, local_folder
from .load import load_transformer
from .names import Branch

Model = TypeVar("Model", bound=nn.Module)
# What diffusers' loader does and ours does not: models over several devices or on disk, and loading of its own kinds.
THEIRS = (
    "max_memory",
    "offload_folder",
    "offload_state_dict",
    "parallel_config",
    "use_flashpack",
    "output_loading_info",
)
# What has no meaning here: nothing is unpickled, nothing is initialised, and copies are made only where needed.
IGNORED = ("use_safetensors", "low_cpu_mem_usage", "disable_mmap", "proxies")

# Arguments of a pipeline's `from_pretrained` that diffusers would not hand on to its transformers.
_for_components: ContextVar[Mapping[str, Any] | None] = ContextVar("for_components", default=None)


@contextmanager
def handing_on(**arguments: Any) -> Iterator[None]:
    """Give these arguments to the transformers that a pipeline loads in here."""
    token = _for_components.set(arguments)
    try:
        yield
    finally:
        _for_components.reset(token)


def option(name: str, kwargs: Mapping[str, Any]) -> Any:
    """An argument of ours: as given to a component, else as given to the pipeline that it is loaded for."""
    return kwargs.get(name, (_for_components.get() or {}).get(name))


def from_pretrained(
    cls: type[Model], theirs: Callable[..., Model], path: str | os.PathLike[str], **kwargs: Any
) -> Model:
    """Load a transformer of any form from a folder, a file, an index or a hub id.

    Args:
        cls: the class to make.
        theirs: diffusers' loader, for what it alone does: device maps over several devices, offloading to disk.
        path: the folder, file, index or hub id.
        kwargs: as in `Ideogram4Transformer2DModel.from_pretrained`.
    """
    given = {key: value for key, value in kwargs.items() if value is not None and value is not False}
    device = one_device(kwargs.get("device_map"))
    variant = kwargs.get("variant")
    hub = {key: given[key] for key in HUB_ARGUMENTS if key in given}
    folder = local_folder(path, kwargs.get("subfolder"), variant, hub)
    settled = {"config", "subfolder", *OURS, *HUB_ARGUMENTS} - {"quantization_config"}
    own = {key: value for key, value in kwargs.items() if key not in settled} | {"use_safetensors": True}
    if _is_quantized_by(folder, ("torchao",)):
        try:
            return theirs(folder, **own)
        except (AttributeError, KeyError, TypeError) as error:
            raise unusable_quantization(folder, error) from error
    checkpoint = open_checkpoint(folder, variant=variant, config=kwargs.get("config"))
    needs_theirs = [key for key in THEIRS if key in given]
    if device is None:
        needs_theirs.append("device_map")
    if needs_theirs:
        if checkpoint.form != "diffusers" or not folder.is_dir():
            raise CheckpointError(
                f"`{needs_theirs[0]}` is for checkpoints in diffusers' form, and {folder} is {checkpoint.form}: convert"
                " it first (ideoflow convert SRC DST --to diffusers), or leave the argument out."
            )
        return theirs(folder, **own)
    assert device is not None
    return _load(cls, checkpoint, device, kwargs)


def _is_quantized_by(folder: Path, methods: Sequence[str]) -> bool:
    """Whether a folder holds a model that one of these libraries quantized and diffusers saved."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    quantized = config.get("quantization_config") if isinstance(config, dict) else None
    return isinstance(quantized, dict) and quantized.get("quant_method") in methods


def from_single_file(
    cls: type[Model],
    path: str | os.PathLike[str],
    *,
    branch: Branch = "transformer",
    **kwargs: Any,
) -> Model:
    """Load a transformer of any form from a file, an index, or a hub's address of one."""
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key)}
    config = kwargs.get("config")
    if isinstance(config, (str, os.PathLike)) and not os.path.exists(config):
        config = local_folder(config, kwargs.get("subfolder") or branch, None, hub)
    checkpoint = open_checkpoint(local_file(path, hub), branch, config=config)
    device = one_device(kwargs.pop("device", None) or kwargs.get("device_map"))
    if device is None:
        raise CheckpointError(f"`device_map` is {kwargs['device_map']!r}: of a single file, give one device.")
    return _load(cls, checkpoint, device, kwargs)


OURS = ("dequantize", "text_projection", "check", "quantization_config")


def _load(cls: type[Model], checkpoint: Checkpoint, device: torch.device, kwargs: dict[str, Any]) -> Model:
    unknown = set(kwargs) - {*OURS, *HUB_ARGUMENTS, *THEIRS, *IGNORED}
    unknown -= {"config", "subfolder", "variant", "device_map", "dtype", "torch_dtype"}
    if unknown:
        raise TypeError(f"{', '.join(sorted(unknown))}: no such argument of `from_pretrained` or `from_single_file`.")
    dtype = asked_dtype(kwargs)
    options = {**(_for_components.get() or {}), **{key: kwargs[key] for key in OURS if key in kwargs}}
    return load_transformer(checkpoint, cls, dtype=dtype, device=device, **options)


def asked_dtype(kwargs: Mapping[str, Any], otherwise: torch.dtype = torch.float32) -> torch.dtype:
    """The type that a loader is asked for.

    Raises:
        ValueError: what is no floating-point type of 16 bits or more.
    """
    dtype = kwargs.get("dtype") or kwargs.get("torch_dtype") or otherwise
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
        raise ValueError(
            f"`dtype` is {dtype!r}: give torch.float32, torch.bfloat16 or torch.float16. To"
            " store weights in fewer bits, use `quantize` or a `quantization_config`."
        )
    return dtype


def one_device(device_map: Any) -> torch.device | None:
    """The one device that all goes to; None where a device map says more than that."""
    if isinstance(device_map, Mapping):
        if set(device_map) != {""}:
            return None
        device_map = device_map[""]
    if device_map is None:
        return torch.device("cpu")
    try:
        return torch.device(device_map)
    except (RuntimeError, TypeError):  # "auto", "balanced", "disk" ...
        return None

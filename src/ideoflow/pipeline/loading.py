"""How a pipeline's files are read: diffusers' folders, by any reader's names, and single files."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ModelMixin  # noqa: F401 (see below)

from .._imports import bars
from ..checkpoints.checkpoint import open_checkpoint
from ..checkpoints.errors import CheckpointError, ConfigNeededError, read_json
from ..checkpoints.folders import (
    INDEX,
    NEEDED,
    OPTIONAL,
    USUAL,
    index_of,
    is_alone,
    load_scheduler,
    load_tokenizer,
    transformer_folder,
)
from ..checkpoints.hub import HUB_ARGUMENTS, check_id, fetching, local_file
from ..checkpoints.lora_convert import loadable, peft_settings, to_diffusers
from ..checkpoints.lora_model import LoraSource, read_any
from ..checkpoints.names import PREFIXES
from ..checkpoints.pretrained import handing_on
from ..checkpoints.source import open_source
from ..model import Ideogram4Transformer2DModel
from .autoencoder import Autoencoder
from .prompt_enhancer import Ideogram4PromptEnhancerHead
from .qwen3_vl import Qwen3VLModel

HUB_ID = "ideogram-ai/ideogram-4-nf4-diffusers"  # gated; has all components in diffusers' layout

# Arguments of diffusers' method, beside the components.
THEIRS = (
    *HUB_ARGUMENTS, "proxies", "dtype", "torch_dtype", "device_map", "max_memory", "offload_folder",
    "offload_state_dict", "low_cpu_mem_usage", "variant", "quantization_config", "disable_mmap",
    "custom_revision", "load_connected_pipeline", "use_flashpack", "use_onnx", "provider", "sess_options",
    "provider_options",
)  # fmt: skip


class UnconditionalTransformer(Ideogram4Transformer2DModel):
    """What a pipeline loads its unconditional branch with: the unused text projection stays in its file.

    diffusers looks for `ModelMixin` in the module of a class that it loads.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """An `Ideogram4Transformer2DModel`."""
        return Ideogram4Transformer2DModel.from_pretrained(
            pretrained_model_name_or_path, **{"text_projection": False, **kwargs}
        )

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path_or_dict: Any, **kwargs: Any) -> Any:
        """An `Ideogram4Transformer2DModel`."""
        return Ideogram4Transformer2DModel.from_single_file(
            pretrained_model_link_or_path_or_dict, **{"text_projection": False, **kwargs}
        )


# The class that loads each component here, and the name by which an index knows it.
_LOADERS: dict[str, Any] = {
    "transformer": Ideogram4Transformer2DModel,
    "unconditional_transformer": UnconditionalTransformer,
    "text_encoder": Qwen3VLModel,
    "vae": Autoencoder,
    "prompt_enhancer_head": Ideogram4PromptEnhancerHead,
}


def _name_of(loader: type) -> tuple[str, str]:
    return loader.__module__, loader.__name__


_OUR_NAMES = {_name_of(loader): USUAL[name] for name, loader in _LOADERS.items()}
_given: ContextVar[Collection[str] | None] = ContextVar("given", default=None)  # components of a `from_pretrained`


def read_index(theirs: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What diffusers' `load_config`, which is `theirs`, reads, with our classes where it names others'."""
    folder = Path(args[0]) if args and isinstance(args[0], (str, os.PathLike)) else None
    if folder is not None and folder.is_dir() and (_given.get() is not None or not (folder / INDEX).is_file()):
        config: Any = index_of(folder, _given.get() or ())
    else:
        config = theirs(*args, **kwargs)
    index = config[0] if isinstance(config, tuple) else config
    for name, loader in _LOADERS.items():
        if (index.get(name) or [None])[0] in ("diffusers", "transformers", "ideogram4"):
            index[name] = list(_name_of(loader))
    return config


def usual_names(components: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of an index, our classes under the names by which any reader of the folder knows them."""
    return {
        name: _OUR_NAMES.get(tuple(entry), entry) if isinstance(entry, (list, tuple)) else entry
        for name, entry in components.items()
    }


def load_folder(
    theirs: Callable[..., Any],
    download: Callable[..., Any],
    path: str | os.PathLike | None,
    dequantize: bool,
    kwargs: dict[str, Any],
) -> Any:
    """A pipeline from a folder or a hub id: `Ideogram4Pipeline.from_pretrained` without `config`.

    Args:
        theirs: diffusers' `from_pretrained` of the pipeline's class.
        download: diffusers' `download` of that class.
        path: Folder or hub id.
        dequantize: Whether to expand weights that are stored in few bits.
        kwargs: The other arguments.
    """
    folder = _fetched(download, path, kwargs)
    given = {name for name in (*NEEDED, *OPTIONAL) if name in kwargs}
    index = index_of(folder, given)
    for name in ("text_encoder", "vae"):
        if _is_path(kwargs.get(name)):
            kwargs[name] = _component(name, Path(kwargs[name]).expanduser(), folder / name, dequantize, kwargs)
    if "scheduler" not in given:
        named = "scheduler" in index
        kwargs["scheduler"] = load_scheduler(folder, index) if named else FlowMatchEulerDiscreteScheduler()
    if "tokenizer" not in given:
        kwargs["tokenizer"] = load_tokenizer(folder, index)
    token = _given.set(given)
    try:
        with handing_on(dequantize=dequantize), bars(sys.stderr is not None and sys.stderr.isatty()):
            pipe = theirs(folder, **{**kwargs, "use_safetensors": True})
    finally:
        _given.reset(token)
    pipe.register_to_config(_name_or_path=str(path))
    return pipe


def _fetched(download: Callable[..., Any], path: str | os.PathLike | None, kwargs: dict[str, Any]) -> Path:
    """The pipeline's folder on this machine: as it is, or of a hub id after fetching what is needed of it."""
    folder = Path(path or "").expanduser()
    if path and folder.is_dir():
        return folder
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is a file: load it with `from_single_file(file, config=...)`, where `config` is the folder"
            " that everything else comes from."
        )
    check_id(path or "")
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key)}
    own = {name: kwargs[name] for name in (*NEEDED, *OPTIONAL) if name in kwargs and not _is_path(kwargs[name])}
    with fetching(path or ""):
        return Path(download(str(path), variant=kwargs.get("variant"), use_safetensors=True, **hub, **own))


def check_alone(path: str | os.PathLike | None) -> Path:
    """The path of a transformer that everything else than `config` is to come from.

    Raises:
        CheckpointError: a folder that holds more than a transformer.
    """
    place = Path(path or "").expanduser()
    if place.is_dir() and not is_alone(place):
        raise CheckpointError(f"{place} holds no transformer alone, which `config` is for: leave it out.")
    return place


def load_transformers(
    path: str | os.PathLike,
    config: str | os.PathLike,
    unconditional: Ideogram4Transformer2DModel | str | os.PathLike | None,
    transformer_config: str | os.PathLike | dict[str, Any] | None,
    dequantize: bool,
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """The transformers of a pipeline by name: arguments as of `Ideogram4Pipeline.from_single_file`."""
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key)}
    file = local_file(path, hub)
    if not Path(config).expanduser().is_dir():
        check_id(config)
    found = _transformers_in(file) if file.is_dir() else {"transformer": file}
    if isinstance(unconditional, (str, os.PathLike)):
        found["unconditional_transformer"] = local_file(unconditional, hub)
    elif unconditional is not None:
        found["unconditional_transformer"] = unconditional
    elif "unconditional_transformer" not in found and _holds_both(found["transformer"]):
        found["unconditional_transformer"] = found["transformer"]
    dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
    for branch, source in found.items():
        if isinstance(source, Path):
            found[branch] = _LOADERS[branch].from_single_file(
                source,
                branch=branch,
                config=transformer_config or _config_for(source, branch, config),
                dtype=_dtype_of(branch, dtype),
                dequantize=dequantize,
            )
    return found


def adapter_tensors(source: LoraSource, ignore_unknown: bool, kwargs: Mapping[str, Any]) -> Any:
    """The adapters of a file under diffusers' names: arguments as of `Ideogram4Pipeline.lora_state_dict`."""
    lora = read_any(source, None, ignore_unknown, kwargs)
    if lora.factored:
        raise CheckpointError(
            f"{lora.origin} holds {' and '.join(sorted(lora.kinds))}, which diffusers' names for LoRA cannot"
            " say: load it with `load_lora_weights`."
        )
    lora = to_diffusers(lora)
    tensors = loadable(lora)
    return (tensors, peft_settings(lora)) if kwargs.get("return_lora_metadata") else tensors


def refuse_foreign_code(kwargs: dict[str, Any]) -> None:
    """Raise for arguments of diffusers that would run code which comes with a model, or unpickle its weights."""
    for name in ("trust_remote_code", "custom_pipeline"):
        if kwargs.pop(name, None):
            raise ValueError(f"`{name}`: code that comes with a model is never run here. Leave the argument out.")
    if kwargs.pop("use_safetensors", None) is False:
        raise ValueError(
            "`use_safetensors` is False: nothing is ever unpickled here. Convert such files to safetensors with a"
            " program that you trust them with, and leave the argument out."
        )


def check_dtype(kwargs: Mapping[str, Any]) -> None:
    """Refuse a type that is none, in whose place diffusers would take float32."""
    for name in ("dtype", "torch_dtype"):
        given = kwargs.get(name)
        types = given.values() if isinstance(given, Mapping) else () if given is None else (given,)
        if not all(isinstance(one, torch.dtype) for one in types):
            raise ValueError(f"`{name}` is {given!r}: give torch.float32, torch.bfloat16 or torch.float16.")


def refuse_unknown(pipeline: type, kwargs: Mapping[str, Any]) -> None:
    """Raise for arguments that diffusers would pass over; None for a component that there is none of asks for nothing.

    Raises:
        TypeError: naming the argument and what may be meant.
    """
    own = [name for name in inspect.signature(pipeline).parameters]
    known = [*THEIRS, *own, "dequantize", "config"]
    if unknown := [name for name, value in kwargs.items() if name not in known and value is not None]:
        raise TypeError(" ".join(_unknown(name, known) for name in unknown))


def _unknown(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, 1)
    meant = f"did you mean `{near[0]}`?" if near else "leave it out."
    return f"`from_pretrained` has no argument `{name}`: {meant}"


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _dtype_of(name: str, dtype: Any) -> Any:
    """Of a component, where diffusers' argument has one for each."""
    return dtype.get(name, dtype.get("default")) if isinstance(dtype, dict) else dtype


def _component(name: str, path: Path, config: Path, dequantize: bool, kwargs: dict[str, Any]) -> Any:
    """A text encoder or an autoencoder from a file, its configuration from the pipeline's folder; or from a folder."""
    dtype = _dtype_of(name, kwargs.get("dtype") or kwargs.get("torch_dtype"))
    if path.is_dir():
        return _LOADERS[name].from_pretrained(path, dtype=dtype, **({"dequantize": True} if dequantize else {}))
    return _LOADERS[name].from_single_file(path, config=config, dtype=dtype, dequantize=dequantize)


def _transformers_in(folder: Path) -> dict[str, Any]:
    """Where the transformers of a folder lie that holds nothing else; None for one that its index says there is not."""
    place = transformer_folder(folder)
    if place is None:
        raise CheckpointError(f"{folder} holds no transformer: neither it nor {folder / 'transformer'} has weights.")
    both: dict[str, Any] = {"transformer": place}
    if (folder / "unconditional_transformer").is_dir():
        both["unconditional_transformer"] = folder / "unconditional_transformer"
    elif (folder / INDEX).is_file():
        entry = read_json(folder / INDEX).get("unconditional_transformer")
        if entry == [None, None]:
            both["unconditional_transformer"] = None
        elif entry is not None:
            raise CheckpointError(f"{folder / 'unconditional_transformer'} is missing: {folder / INDEX} names it.")
    return both


def _holds_both(file: Path) -> bool:
    return any(name.startswith(PREFIXES["unconditional_transformer"]) for name in open_source(file).infos)


def _config_for(source: Path, branch: Any, rest: str | os.PathLike) -> Path | None:
    """The configuration of the folder that the rest comes from, where the file alone does not tell its own."""
    try:
        open_checkpoint(source, branch)
    except ConfigNeededError:
        beside = Path(rest).expanduser() / branch / "config.json"
        if beside.is_file():
            return beside
    return None

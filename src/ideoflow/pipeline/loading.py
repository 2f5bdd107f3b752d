"""How a pipeline's files are read and written: diffusers' folders, by any reader's names, and single files."""

# No `from __future__ import annotations`: diffusers reads the types of a pipeline's arguments.
import inspect
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin  # noqa: F401 (see below)

from .._imports import bars
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
from ..checkpoints.forms import open_checkpoint
from ..checkpoints.hub import HUB_ARGUMENTS, HUB_ERRORS, check_id, local_file, not_fetched
from ..checkpoints.names import PREFIXES
from ..checkpoints.pretrained import handing_on
from ..checkpoints.save import save_pipeline
from ..checkpoints.source import open_source
from ..model import Ideogram4Transformer2DModel
from .autoencoder import Autoencoder
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
}


def _name_of(loader: type) -> tuple[str, str]:
    return loader.__module__, loader.__name__


_OUR_NAMES = {_name_of(loader): USUAL[name] for name, loader in _LOADERS.items()}
_given: ContextVar[Collection[str] | None] = ContextVar("given", default=None)  # components of a `from_pretrained`


class PipelineFiles(DiffusionPipeline):
    """Loading and saving, for `Ideogram4Pipeline`."""

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Read a folder's index, with our classes where it names those of diffusers and transformers."""
        folder = Path(args[0]) if args and isinstance(args[0], (str, os.PathLike)) else None
        if folder is not None and folder.is_dir() and (_given.get() is not None or not (folder / INDEX).is_file()):
            config: Any = index_of(folder, _given.get() or ())
        else:
            config = super().load_config(*args, **kwargs)
        index = config[0] if isinstance(config, tuple) else config
        for name, loader in _LOADERS.items():
            if (index.get(name) or [None])[0] in ("diffusers", "transformers"):
                index[name] = list(_name_of(loader))
        return config

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write all components into a folder in diffusers' layout, whole or not at all.

        What could not be opened again is refused before anything is written. Weights in fp8 of `pipe.quantize` are for
        ideoflow alone: diffusers refuses them.

        Args:
            save_directory: A new folder, or one whose earlier pipeline is replaced; other files in it stay.
            safe_serialization: True; pickles are not written, since none are opened.
            variant: Part of the weights' names, such as "fp16".
            max_shard_size: Of a file of weights, in bytes or as "5GB"; None for each component's own.
            push_to_hub: Whether to upload what was written.
            use_flashpack: Refused: its files are not opened here.
            kwargs: Of the upload.

        Raises:
            CheckpointError: a ValueError: a component that could not be opened again (adapters on its layers, GGUF's
                blocks, int8 of `pipe.quantize`, offloaded weights), or a folder that cannot be written.
        """
        options = {"variant": variant, "max_shard_size": max_shard_size, "push_to_hub": push_to_hub, **kwargs}
        save_pipeline(
            self.components, super().save_pretrained, save_directory, safe_serialization, use_flashpack, **options
        )

    def register_to_config(self, **kwargs: Any) -> None:
        """Register components, ours under the names by which any reader of the folder knows them."""
        for name, value in kwargs.items():
            if isinstance(value, (list, tuple)) and tuple(value) in _OUR_NAMES:
                kwargs[name] = _OUR_NAMES[tuple(value)]
        super().register_to_config(**kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *,
        dequantize: bool = False,
        config: str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a pipeline from a folder in diffusers' layout, or a hub id. Its components may be of any form.

        Every component that the index names must be there, every tensor of its files is used, and what is damaged or
        missing is one error, for the tokenizer and the scheduler before any weight is loaded. The folder may lack the
        index and the scheduler, if the folders of the other components have their usual names.

        Nothing that no caption needs is brought into memory: the text encoder's vision tower and the unconditional
        transformer's text projection stay in their files until the pipeline is saved.

        Args:
            pretrained_model_name_or_path: Folder or hub id.
            dequantize: Expand weights that are stored in few bits (fp8, nf4, GGUF) to the type asked for; False keeps
                those of the transformers' and the text encoder's linear layers so.
            config: For a folder that holds a transformer alone, the folder or hub id that everything else comes from,
                as in `from_single_file`.
            kwargs: As diffusers' method: `dtype` or `torch_dtype`, `variant`, `device_map`, components in place of the
                folder's, those of the hub. A text encoder or an autoencoder may be given by its file, too.

        Raises:
            CheckpointError: a ValueError that names the file, and the tensor, that cannot be used.
        """
        _refuse_foreign_code(kwargs)
        _refuse_unknown(cls, kwargs)
        if config is not None:
            place = Path(pretrained_model_name_or_path or "").expanduser()
            if place.is_dir() and not is_alone(place):
                raise CheckpointError(f"{place} holds no transformer alone, which `config` is for: leave it out.")
            return cls.from_single_file(place, config=config, dequantize=dequantize, **kwargs)
        folder = cls._fetched(pretrained_model_name_or_path, kwargs)
        given = {name for name in (*NEEDED, *OPTIONAL) if name in kwargs}
        index = index_of(folder, given)
        for name in ("text_encoder", "vae"):
            if isinstance(kwargs.get(name), (str, os.PathLike)):
                kwargs[name] = _component(name, Path(kwargs[name]).expanduser(), folder / name, dequantize, kwargs)
        if "scheduler" not in given:
            named = "scheduler" in index
            kwargs["scheduler"] = load_scheduler(folder, index) if named else FlowMatchEulerDiscreteScheduler()
        if "tokenizer" not in given:
            kwargs["tokenizer"] = load_tokenizer(folder, index)
        token = _given.set(given)
        try:
            with handing_on(dequantize=dequantize), bars(sys.stderr is not None and sys.stderr.isatty()):
                pipe = super().from_pretrained(folder, **{**kwargs, "use_safetensors": True})
        finally:
            _given.reset(token)
        pipe.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipe

    @classmethod
    def _fetched(cls, path: str | os.PathLike | None, kwargs: dict[str, Any]) -> Path:
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
        try:
            return Path(cls.download(str(path), variant=kwargs.get("variant"), use_safetensors=True, **hub, **own))
        except HUB_ERRORS as error:
            raise not_fetched(path or "", error) from error

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | os.PathLike,
        *,
        config: str | os.PathLike = HUB_ID,
        unconditional_transformer: Ideogram4Transformer2DModel | str | os.PathLike | None = None,
        transformer_config: str | os.PathLike | dict[str, Any] | None = None,
        dequantize: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a pipeline whose transformer is in a file of its own, as ComfyUI and GGUF users have it.

        Args:
            pretrained_model_link_or_path: The transformer's file, of any form; a file that holds both transformers; or
                a folder that holds transformers and nothing else.
            config: Folder or hub id in diffusers' layout that everything else comes from.
            unconditional_transformer: The other transformer, or its file; None for the same file's or folder's where it
                holds both, for none where the folder's index says [null, null], otherwise for that of `config`.
            transformer_config: The transformers' configuration, where none is beside the file or in it: a dict, a JSON
                file, or a folder with a `config.json`. None for that of `config`, if it is a folder.
            dequantize: Expand weights that are stored in few bits.
            kwargs: As `from_pretrained`, files of a text encoder or an autoencoder among them.
        """
        _refuse_foreign_code(kwargs)
        _refuse_unknown(cls, kwargs)
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key)}
        file = local_file(pretrained_model_link_or_path, hub)
        rest = Path(config).expanduser()
        if not rest.is_dir():
            check_id(config)
        dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
        both: dict[str, Any] = {"transformer": file}
        if file.is_dir():
            both = _transformers_in(file)
        if isinstance(unconditional_transformer, (str, os.PathLike)):
            both["unconditional_transformer"] = local_file(unconditional_transformer, hub)
        elif unconditional_transformer is not None:
            both.pop("unconditional_transformer", None)
            kwargs["unconditional_transformer"] = unconditional_transformer
        elif both.get("unconditional_transformer", file) is None:
            kwargs["unconditional_transformer"] = both.pop("unconditional_transformer")
        elif "unconditional_transformer" not in both and _holds_both(both["transformer"]):
            both["unconditional_transformer"] = both["transformer"]
        for branch, source in both.items():
            kwargs[branch] = _LOADERS[branch].from_single_file(
                source,
                branch=branch,
                config=transformer_config or _config_for(source, branch, config),
                dtype=_dtype_of(branch, dtype),
                dequantize=dequantize,
            )
        return cls.from_pretrained(config, dequantize=dequantize, **kwargs)


def _refuse_foreign_code(kwargs: dict[str, Any]) -> None:
    """Raise for arguments of diffusers that would run code which comes with a model, or unpickle its weights."""
    for name in ("trust_remote_code", "custom_pipeline"):
        if kwargs.pop(name, None):
            raise ValueError(f"`{name}`: code that comes with a model is never run here. Leave the argument out.")
    if kwargs.pop("use_safetensors", None) is False:
        raise ValueError(
            "`use_safetensors` is False: nothing is ever unpickled here. Convert such files to safetensors with a"
            " program that you trust them with, and leave the argument out."
        )


def _refuse_unknown(pipeline: type, kwargs: Mapping[str, Any]) -> None:
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

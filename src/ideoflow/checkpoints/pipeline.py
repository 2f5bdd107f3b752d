"""How a pipeline's files are read and written: diffusers' folders, by any reader's names, and single files."""

# No `from __future__ import annotations`: diffusers reads the types of a pipeline's arguments.
import os
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from ..model import Ideogram4Transformer2DModel
from .errors import CheckpointError, some
from .forms import open_checkpoint
from .hub import HUB_ARGUMENTS, local_file
from .names import PREFIXES
from .pretrained import UnconditionalTransformer, handing_on
from .save import save_pipeline
from .source import open_source
from .text_encoder import Qwen3VLModel

HUB_ID = "ideogram-ai/ideogram-4-nf4-diffusers"  # gated; has all components in diffusers' layout

# The class that loads each component here, by the component's name and by the class that an index names.
_LOADERS = {
    "transformer": Ideogram4Transformer2DModel,
    "unconditional_transformer": UnconditionalTransformer,
    "text_encoder": Qwen3VLModel,
}
_INDEX_NAMES = {
    "transformer": ("diffusers", "Ideogram4Transformer2DModel"),
    "unconditional_transformer": ("diffusers", "Ideogram4Transformer2DModel"),
    "text_encoder": ("transformers", "Qwen3VLModel"),
}


def _name_of(loader: type) -> tuple[str, str]:
    return loader.__module__, loader.__name__


_OUR_NAMES = {_name_of(loader): _INDEX_NAMES[name] for name, loader in _LOADERS.items()}


# What a folder without an index must hold to be a pipeline, and what it may.
_PARTS = {
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "vae": ("diffusers", "AutoencoderKLFlux2"),
    "tokenizer": ("transformers", "PreTrainedTokenizerFast"),
    **_INDEX_NAMES,
}
_OPTIONAL = ("scheduler", "unconditional_transformer")


def _index_of(folder: Path) -> dict[str, Any]:
    """The index of a folder that has none, by the folders in it."""
    found = [name for name in _PARTS if (folder / name).is_dir()]
    missing = [name for name in _PARTS if name not in found and name not in _OPTIONAL]
    if missing:
        there = sorted(entry.name for entry in folder.iterdir())
        raise CheckpointError(
            f"{folder} is no pipeline: it has no model_index.json, and of the folders that would do without one"
            f" {some(missing)} are missing (there is {some(there) or 'nothing'}). To use a transformer's file, call"
            " `from_single_file`; for a single model, load it with its own class."
        )
    return {"_class_name": "Ideogram4Pipeline", **{name: list(_PARTS[name]) for name in found}}


class PipelineFiles(DiffusionPipeline):
    """Loading and saving, for `Ideogram4Pipeline`."""

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Read a folder's index, with our classes where it names those of diffusers and transformers."""
        folder = Path(args[0]) if args and isinstance(args[0], (str, os.PathLike)) else None
        if folder is not None and folder.is_dir() and not (folder / cls.config_name).is_file():
            config: Any = _index_of(folder)
        else:
            config = super().load_config(*args, **kwargs)
        index = config[0] if isinstance(config, tuple) else config
        for name, loader in _LOADERS.items():
            if tuple(index.get(name) or ()) == _INDEX_NAMES[name]:
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
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *, dequantize: bool = False, **kwargs: Any
    ) -> Any:
        """Load a pipeline from a folder in diffusers' layout, or a hub id. Its transformers may be of any form.

        The folder may lack the index and the scheduler, if the folders of the other components have their usual names.
        Nothing that no caption needs is brought into memory: the text encoder's vision tower and the unconditional
        transformer's text projection stay in their files until the pipeline is saved.

        Args:
            pretrained_model_name_or_path: Folder or hub id.
            dequantize: Expand weights of the transformers that are stored in few bits (fp8, nf4, GGUF) to the type
                asked for; False keeps them so.
            kwargs: As diffusers' method: `dtype` or `torch_dtype`, `variant`, `device_map`, components in place of the
                folder's, those of the hub.

        Raises:
            CheckpointError: a ValueError that names the file, and the tensor, that cannot be used.
        """
        folder = Path(pretrained_model_name_or_path or "")
        if folder.is_dir() and not (folder / "scheduler").is_dir():
            kwargs.setdefault("scheduler", FlowMatchEulerDiscreteScheduler())  # leaves noise levels as they are
        with handing_on(dequantize=dequantize):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

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
            pretrained_model_link_or_path: The transformer's file, of any form; or a file that holds both transformers.
            config: Folder or hub id in diffusers' layout that everything else comes from.
            unconditional_transformer: The other transformer, or its file; None for the same file's where it holds both,
                otherwise that of `config`.
            transformer_config: The transformers' configuration, where none is beside the file or in it: a dict, a JSON
                file, or a folder with a `config.json`. None for that of `config`, if it is a folder.
            dequantize: Expand weights that are stored in few bits.
            kwargs: As `from_pretrained`.
        """
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key)}
        file = local_file(pretrained_model_link_or_path, hub)
        dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
        both: dict[str, Any] = {"transformer": file}
        if isinstance(unconditional_transformer, (str, os.PathLike)):
            both["unconditional_transformer"] = local_file(unconditional_transformer, hub)
        elif unconditional_transformer is not None:
            kwargs["unconditional_transformer"] = unconditional_transformer
        elif any(name.startswith(PREFIXES["unconditional_transformer"]) for name in open_source(file).infos):
            both["unconditional_transformer"] = file
        for branch, source in both.items():
            kwargs[branch] = _LOADERS[branch].from_single_file(
                source,
                branch=branch,
                config=transformer_config or _config_for(source, branch, config),
                dtype=dtype.get(branch) if isinstance(dtype, dict) else dtype,
                dequantize=dequantize,
            )
        return cls.from_pretrained(config, dequantize=dequantize, **kwargs)


def _config_for(source: Path, branch: Any, rest: str | os.PathLike) -> Path | None:
    """The configuration of the folder that the rest comes from, where the file alone does not tell its own."""
    try:
        open_checkpoint(source, branch)
    except CheckpointError as error:
        beside = Path(rest).expanduser() / branch / "config.json"
        if "give `config`" in str(error) and beside.is_file():
            return beside
    return None

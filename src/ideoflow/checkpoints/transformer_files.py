"""The model's files: loading, saving and adapters by the names of diffusers' mixins, in every form that is known."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from diffusers.loaders import FromOriginalModelMixin, PeftAdapterMixin
from torch import Tensor, nn

from ..checks import finite
from ..ops.adapter_weights import check_names, checked_weights
from ..ops.factored import factored_adapters
from ..ops.merging import check_mergeable, check_sums
from . import pretrained
from .lora_model import load_adapter
from .save import save_model


class TransformerFiles(PeftAdapterMixin, FromOriginalModelMixin):
    """What the transformer inherits before `ModelMixin`. Weighing, deleting and unloading adapters are diffusers'."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write the weights and the configuration into a folder in diffusers' layout, whole or not at all.

        Args:
            save_directory: A new folder, or one whose earlier weights of this variant are replaced; other files stay.
            is_main_process: False for processes that take part in gathering the weights and write nothing.
            save_function: Not used, as in diffusers.
            safe_serialization: True; pickles are not written, since none are opened.
            variant: Part of the files' names, such as "fp16".
            max_shard_size: The largest file, in bytes or as "5GB".
            push_to_hub: Whether to upload what was written.
            use_flashpack: Refused: its files are not opened here.
            kwargs: Arguments of the upload.

        Raises:
            CheckpointError: a ValueError: weights that could not be opened again (adapters' wrappers, GGUF's blocks,
                int8 of `pipe.quantize`, offloaded ones), or a folder that cannot be written.
        """
        options = {"variant": variant, "max_shard_size": max_shard_size, "push_to_hub": push_to_hub, **kwargs}
        save_model(
            self, super().save_pretrained, save_directory, is_main_process, safe_serialization, use_flashpack, **options
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a transformer from a folder or a hub id, in any form that the checkpoint may have.

        Args:
            pretrained_model_name_or_path: Folder, hub id, or file.
            kwargs: diffusers' arguments (`torch_dtype` or `dtype`, float32 by default; `subfolder`, `variant`,
                `device_map`, `quantization_config`, those of the hub), and
                `dequantize=True` to expand weights that are stored in few bits;
                `text_projection=False` to leave the projection of text features in its file;
                `config`, a configuration for weights without one;
                `check=False` to spare a pass over the weights that looks for values that are not finite.

        Raises:
            CheckpointError: a ValueError that names the file, and the tensor, that cannot be used.
        """
        return pretrained.from_pretrained(cls, super().from_pretrained, pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path_or_dict: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a transformer from one file of any form, or from the hub's address of one.

        Args:
            pretrained_model_link_or_path_or_dict: The file's path or address.
            kwargs: As in `from_pretrained`, and `branch="unconditional_transformer"` for the other transformer of a
                file that holds both. Without `config`, a `config.json` beside the file is taken, or its header's, or
                what the shapes tell.
        """
        return pretrained.from_single_file(cls, pretrained_model_link_or_path_or_dict, **kwargs)

    def load_lora_adapter(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, Tensor],
        prefix: str | None = "transformer",
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load an adapter of any form: LoRA, DoRA, LoKr or LoHa; see docs/lora.md.

        Args:
            pretrained_model_name_or_path_or_dict: A safetensors file, a folder or a hub id that holds one, or tensors
                by their names in one.
            prefix: what the names of this model's tensors begin with, such as "unconditional_transformer": others are
                left out. With "transformer" and None all are for this model.
            hotswap: Put the weights in the place of the loaded adapter of that name.
            kwargs: `adapter_name`; `ignore_unknown=True` to leave out, with a warning, what is no adapter of this
                model; `weight_name` and `subfolder` of the file in the folder, those of the hub, `low_cpu_mem_usage`.

        Raises:
            CheckpointError: a ValueError that names the file and the tensor that cannot be used.
            ValueError: an adapter name that is taken.
        """
        source = pretrained_model_name_or_path_or_dict
        load_adapter(self, super().load_lora_adapter, source, prefix, hotswap=hotswap, **kwargs)

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        weights: float | Mapping[str, float] | list[float | Mapping[str, float] | None] | None = None,
    ) -> None:
        """Have these adapters act, by these weights, and no others.

        Args:
            adapter_names: The name of a loaded adapter, or several.
            weights: A finite number for all, or a list with one for each; None is 1. In a number's place may stand
                numbers by parts of layers' names, `{"layers.0.": 0.5}`: layers without one have 1.

        Raises:
            ValueError: adapters that are not loaded, weights that are not finite, or not one for each.
        """
        names = check_names(self, adapter_names)
        super().set_adapters(names, checked_weights(self, names, weights))

    def fuse_lora(
        self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: list[str] | None = None
    ) -> None:
        """Merge the active adapters into the weights.

        Args:
            lora_scale: Weight of all of them, on top of their own.
            safe_fusing: Whether to check that the sums are finite.
            adapter_names: Those to merge; None for the active ones.

        Raises:
            ValueError: weights in few bits, adapters that are not loaded, sums that are not finite; nothing is merged.
        """
        scale = finite("lora_scale", lora_scale)  # any other would be the end of the weights
        names = None if adapter_names is None else check_names(self, adapter_names)
        self.check_mergeable("fuse_lora")
        assert isinstance(self, nn.Module)
        check_sums(self, names, scale)
        super().fuse_lora(lora_scale=lora_scale, safe_fusing=safe_fusing, adapter_names=adapter_names)

    def unfuse_lora(self) -> None:
        """Undo `fuse_lora`.

        Raises:
            ValueError: weights that were brought into few bits since; nothing is changed.
        """
        self.check_mergeable("unfuse_lora")
        super().unfuse_lora()

    def save_lora_adapter(
        self, save_directory: str | os.PathLike[str], adapter_name: str = "default", **kwargs: Any
    ) -> None:
        """Write a LoRA adapter into a folder, as diffusers does.

        Raises:
            ValueError: LoKr or LoHa, which are loaded and not written.
        """
        if adapter_name in factored_adapters(self):
            raise ValueError(f"The adapter {adapter_name!r} is LoKr or LoHa, which is not written: keep its file.")
        super().save_lora_adapter(save_directory, adapter_name, **kwargs)

    def check_mergeable(self, method: str) -> None:
        """Raise the error of `fuse_lora` or `unfuse_lora` before anything is changed."""
        assert isinstance(self, nn.Module)
        check_mergeable(self, method)

"""Adapters on the transformer: files of every form are loaded, and merging is refused before it would fail half-way."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from diffusers.loaders import PeftAdapterMixin
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..ops.factored import FactoredLinear


class TransformerAdapters(PeftAdapterMixin):
    """What the transformer inherits. Weighing, deleting and unloading adapters are diffusers'."""

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
            prefix: Of the names that are for this model, where it is neither "transformer" nor None, such as
                "unconditional_transformer": other names are left out.
            hotswap: Put the weights in the place of the loaded adapter of that name.
            kwargs: `adapter_name`; `ignore_unknown=True` to leave out, with a warning, what is no adapter of this
                model; `weight_name` and `subfolder` of the file in the folder, those of the hub, `low_cpu_mem_usage`.

        Raises:
            CheckpointError: a ValueError that names the file and the tensor that cannot be used.
            ValueError: an adapter name that is taken.
        """
        from ..checkpoints.lora_model import load_adapter  # what knows the files imports the model, not the reverse

        load_adapter(
            self, super().load_lora_adapter, pretrained_model_name_or_path_or_dict, prefix, hotswap=hotswap, **kwargs
        )

    def fuse_lora(
        self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: list[str] | None = None
    ) -> None:
        """Merge the active adapters into the weights.

        Args:
            lora_scale: Weight of all of them, on top of their own.
            safe_fusing: Whether to check that the sums are finite.
            adapter_names: Those to merge; None for the active ones.

        Raises:
            ValueError: weights in few bits, which no adapter can be added to; nothing is merged.
        """
        self.check_mergeable("fuse_lora")
        super().fuse_lora(lora_scale=lora_scale, safe_fusing=safe_fusing, adapter_names=adapter_names)

    def unfuse_lora(self) -> None:
        """Undo `fuse_lora`.

        Raises:
            ValueError: weights that were brought into few bits since; nothing is changed.
        """
        self.check_mergeable("unfuse_lora")
        super().unfuse_lora()

    def save_lora_adapter(
        self, save_directory: str | os.PathLike[str], adapter_name: str = "default", **k: Any
    ) -> None:
        """Write a LoRA adapter into a folder, as diffusers does.

        Raises:
            ValueError: LoKr or LoHa, which are loaded and not written.
        """
        if any(isinstance(part, FactoredLinear) and adapter_name in part.factors for part in self._parts()):
            raise ValueError(f"The adapter {adapter_name!r} is LoKr or LoHa, which is not written: keep its file.")
        super().save_lora_adapter(save_directory, adapter_name, **k)

    def _parts(self) -> list[nn.Module]:
        assert isinstance(self, nn.Module)
        return list(self.modules())

    def check_mergeable(self, method: str) -> None:
        """Raise the error of `fuse_lora` or `unfuse_lora` before anything is changed."""
        for part in self._parts():
            if not isinstance(part, BaseTunerLayer) or (method == "unfuse_lora" and not part.merged):
                continue
            base = part.get_base_layer()
            weight = base.weight
            plain = type(weight) in (Tensor, nn.Parameter) and weight.dtype.is_floating_point
            if not plain or weight.dtype.itemsize < 2:
                kind = getattr(base, "kind", None) or str(weight.dtype).removeprefix("torch.")
                raise ValueError(
                    f"`{method}` changes weights, and those of a {type(base).__name__} are stored in few bits ({kind}),"
                    " where a sum would be rounded away. Leave the adapters unmerged: they act as they are. Or merge"
                    " before `quantize`, or into a model that was loaded with `dequantize=True`."
                )
            if weight.is_meta:
                raise ValueError(
                    f"`{method}` changes weights, and some are offloaded: call it before offloading is enabled, or"
                    " after `remove_all_hooks()` of the pipeline."
                )

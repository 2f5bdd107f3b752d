"""Saving pipelines and models; what could not be opened again is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..ops.expanded_linear import ExpandedLinear
from ..ops.quantized_linear import Float8Linear
from .atomic_replace import into_folder
from .errors import CheckpointError, some
from .left_in_file import LeftInFile

# What says of a folder in fp8 that its scales count. The loaders of diffusers and transformers, which would leave them
# out, refuse a configuration without a `quant_method`; one that they do not know, transformers passes over.
FLOAT8 = {"form": "fp8 of ideoflow, a scale for each row"}


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
        name: the model's, for messages.
        model: a component of a pipeline.

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
    kept = {type(part).__name__ for part in model.modules() if isinstance(part, ExpandedLinear)}
    if kept:
        what = "GGUF's blocks" if kept == {"GgufLinear"} else "weights in NVFP4"
        or_call = ", or call its `dequantize()` first" if kept == {"GgufLinear"} else ""
        raise CheckpointError(
            f"`{name}` keeps {what}, which cannot be saved in this layout: load it with `dequantize=True`{or_call}."
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
            f"`{name}` holds int8 weights, which are not written: save it before `quantize`, load it with"
            " `dequantize=True`, or expand it with ideoflow.ops.dequantize_ first."
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
    path = folder / "config.json"
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

"""How a transformer loads an adapter: the file is read in whatever form, and put on the layers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import peft
import torch
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from diffusers.utils.peft_utils import get_adapter_name
from peft import LoHaConfig, LoKrConfig, LoraConfig
from torch import Tensor

from ..checks import printable
from ..ops.factored import add_factored
from .errors import CheckpointError, UnknownSettingsError, some
from .hub import HUB_ARGUMENTS, find_lora
from .lora import Lora, read_lora
from .lora_convert import loadable, peft_settings, to_diffusers
from .lora_strength import HEADER

OWN = ("transformer", None)  # prefixes of the model itself, under which all forms are known
_CONFIGS = {"LoKr": LoKrConfig, "LoHa": LoHaConfig}
_NO_MATTER = ("proxies", "use_safetensors", "low_cpu_mem_usage", "return_lora_metadata")  # to reading

LoraSource = str | os.PathLike[str] | Mapping[str, Tensor]


def read_any(
    source: LoraSource,
    config: Mapping[str, Any] | None,
    ignore_unknown: bool,
    kwargs: Mapping[str, Any],
    prefix: str | None = None,
) -> Lora:
    """Read an adapter from wherever it is.

    Args:
        source: as `load_lora_weights` takes it.
        config: the transformer's, to check shapes; None to check none.
        ignore_unknown: leave out what is no adapter of this model.
        kwargs: the other arguments of `load_lora_weights`.
        prefix: what the names to read begin with, before a dot; None for all.
    """
    unknown = set(kwargs) - {*HUB_ARGUMENTS, *_NO_MATTER, "weight_name", "subfolder"}
    if unknown:
        raise TypeError(f"{', '.join(sorted(unknown))}: no such argument of `load_lora_weights`.")
    if kwargs.get("use_safetensors") is False:
        raise CheckpointError("`use_safetensors=False` asks for pickled weights, which are never opened here.")
    if not isinstance(source, Mapping):
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key)}
        source = find_lora(source, kwargs.get("weight_name"), kwargs.get("subfolder"), hub)
    return read_lora(source, config, ignore_unknown=ignore_unknown, prefix=prefix)


def load_adapter(
    model: Any,
    theirs: Callable[..., None],
    source: LoraSource,
    prefix: str | None,
    *,
    adapter_name: str | None = None,
    hotswap: bool = False,
    ignore_unknown: bool = False,
    _pipeline: Any = None,
    **kwargs: Any,
) -> None:
    """What the transformer's `load_lora_adapter` does, by diffusers' method `theirs` where it is LoRA."""
    if "metadata" in kwargs or "network_alphas" in kwargs:  # from diffusers' own loaders, which have read the file
        theirs(source, prefix, hotswap, adapter_name=adapter_name, _pipeline=_pipeline, **kwargs)
        return
    if adapter_name is not None and (not adapter_name or "." in adapter_name):
        raise ValueError(f"`adapter_name` is {adapter_name!r}: give a name without dots.")
    loaded: Mapping[str, Any] = getattr(model, "peft_config", {})
    if hotswap and adapter_name not in loaded:
        raise ValueError(f"`hotswap` replaces an adapter, and there is no existing adapter named {adapter_name!r}.")
    if not hotswap and adapter_name in loaded:
        raise ValueError(f"`adapter_name` is {adapter_name!r}, which is in use: give another, or delete that adapter.")
    adapter_name = adapter_name or get_adapter_name(model)
    read = read_any(source, model.config, ignore_unknown, kwargs, None if prefix in OWN else prefix)
    if hotswap and (read.factored or not isinstance(loaded[adapter_name], LoraConfig)):
        raise CheckpointError("`hotswap` exchanges LoRA alone: unload an adapter of LoKr or LoHa, and load the other.")
    _check_settings(read)
    if read.layers:
        lora = to_diffusers(replace(read, factored={}))
        _load_lora(model, theirs, lora, adapter_name, hotswap, _pipeline, kwargs.get("low_cpu_mem_usage", False))
    if read.factored:
        with _not_offloaded(model, _pipeline):
            _load_factored(model, read, adapter_name)


def _check_settings(read: Lora) -> None:
    """See that peft knows each setting in an adapter's file: one that is passed over may change what the adapter does.

    Raises:
        UnknownSettingsError: naming those that it does not know.
    """
    found = json.loads(read.metadata.get(HEADER, "{}"))
    named = {key.removeprefix("transformer."): value for key, value in found.items()}
    known = {field.name for kind in (LoraConfig, *_CONFIGS.values()) for field in fields(kind)}
    unknown = [name for name, value in named.items() if name not in known and value not in (None, False, [], {})]
    if unknown:
        raise UnknownSettingsError(
            f"{printable(read.origin)} has settings that peft {peft.__version__} does not know:"
            f" {some([printable(name) for name in unknown])}. Its `LoraConfig` class could not be instantiated"
            " with them; that of a newer peft may be."
        )


def _load_lora(
    model: Any,
    theirs: Callable[..., None],
    lora: Lora,
    adapter_name: str,
    hotswap: bool,
    pipeline: Any,
    low_cpu_mem_usage: bool,
) -> None:
    settings = peft_settings(lora)
    old = model.peft_config[adapter_name] if hotswap else None
    # Read now: peft may take the tensors themselves, and leave the old ones in their place.
    strengths = {name: (one.rank, one.strength) for name, one in lora.layers.items()}
    with _strengths_of(old, settings):
        theirs(
            loadable(lora),
            hotswap=hotswap,
            adapter_name=adapter_name,
            metadata=settings,
            low_cpu_mem_usage=low_cpu_mem_usage,
            _pipeline=pipeline,
        )
    for name, (rank, alpha) in strengths.items() if old is not None else ():
        layer = model.get_submodule(name)  # peft sets the quotient of these alone
        layer.r[adapter_name], layer.lora_alpha[adapter_name] = rank, alpha


@contextmanager
def _strengths_of(old: Any, settings: Mapping[str, Any]) -> Iterator[None]:
    """While an adapter is swapped: peft refuses one of other strengths than the old one's, yet sets them rightly."""
    if old is None:
        yield
        return
    kept, old.alpha_pattern = old.alpha_pattern, settings["transformer.alpha_pattern"]
    try:
        yield
    except Exception:
        old.alpha_pattern = kept
        raise


def _load_factored(model: Any, read: Lora, adapter_name: str) -> None:
    add_factored(model, adapter_name, {name: (one.factors(), one.scale) for name, one in read.factored.items()})
    if not hasattr(model, "peft_config"):
        model.peft_config = {}
    if adapter_name not in model.peft_config:  # where some layers have LoRA, that is said already
        kind = next(iter(read.factored.values())).kind
        model.peft_config[adapter_name] = _CONFIGS[kind](r=1, alpha=1, target_modules=sorted(read.factored))
    model._hf_peft_config_loaded = True


@contextmanager
def _not_offloaded(model: Any, pipeline: Any) -> Iterator[None]:
    """Take hooks of offloading away while layers are put in, and set them up again, as diffusers does for LoRA."""
    is_model_offload, is_sequential, is_group = model._optionally_disable_offloading(pipeline)
    yield
    if is_model_offload:
        pipeline.enable_model_cpu_offload()
    elif is_sequential:
        pipeline.enable_sequential_cpu_offload()
    elif is_group:
        for component in pipeline.components.values():
            if isinstance(component, torch.nn.Module):
                _maybe_remove_and_reapply_group_offloading(component)

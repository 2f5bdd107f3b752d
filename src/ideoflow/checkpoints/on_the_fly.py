"""Quantizing while loading, by diffusers' own quantizers: one tensor at a time, from any form of checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.quantizers import DiffusersAutoQuantizer
from torch import Tensor

from .checkpoint import Checkpoint
from .errors import CheckpointError


class OnTheFly:
    """Drives a quantizer of diffusers as its own loader does.

    Args:
        config: a `quantization_config` of diffusers (bitsandbytes, torchao ...), or its dictionary.
        dtype: the type of weights before they are quantized.
        device: the place of the quantized weights.

    Raises:
        ImportError, RuntimeError: from diffusers: a library is missing, or it needs another device.
    """

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device) -> None:
        config = copy.deepcopy(config)  # quantizers write in it
        self.quantizer = DiffusersAutoQuantizer.from_config(config, pre_quantized=False)
        if not hasattr(self.quantizer, "create_quantized_param") or self.quantizer.requires_calibration:
            raise CheckpointError(f"`quantization_config` of {method(config)!r} cannot quantize while loading.")
        self.dtype, self.device = dtype, device
        # A map that names the CPU means offloading to quantizers, which leave such weights as they are.
        self.device_map = None if device.type == "cpu" else {"": device}
        self.quantizer.validate_environment(torch_dtype=dtype, device_map=self.device_map)

    def begin(self, model: Any) -> None:
        """Put the quantizer's layers into a model on the meta device."""
        self.quantizer.preprocess_model(
            model=model, device_map=self.device_map, keep_in_fp32_modules=list(model._keep_in_fp32_modules or [])
        )

    def put(self, model: Any, name: str, tensor: Tensor) -> bool:
        """Quantize a tensor into its place in the model; False where the quantizer leaves it as it is."""
        state = {name: tensor}
        if not self.quantizer.check_if_quantized_param(model, tensor, name, state, param_device=self.device):
            return False
        self.quantizer.create_quantized_param(model, tensor, name, self.device, state, [], dtype=self.dtype)
        return True

    def finish(self, model: Any) -> None:
        """Have the model know its quantizer, as one that diffusers loaded."""
        self.quantizer.postprocess_model(model)
        model.hf_quantizer = self.quantizer
        model.register_to_config(
            quantization_config=self.quantizer.quantization_config, _pre_quantization_dtype=self.dtype
        )


def method(config: Any) -> str:
    """The library that a configuration is for."""
    found = config.get("quant_method", "") if isinstance(config, Mapping) else config.quant_method
    return str(getattr(found, "value", found))


def plan(
    config: Any, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device
) -> tuple[torch.dtype, OnTheFly | None]:
    """The type to load in, and what quantizes: nothing where the file's own kind is what the configuration asks for.

    Raises:
        CheckpointError: a configuration for another kind of file.
    """
    if config is None:
        return dtype, None
    if method(config) == "gguf":
        if not checkpoint.kinds["gguf"]:
            raise CheckpointError(
                f"`quantization_config` is for GGUF files, and {checkpoint.source.path} is {checkpoint.form}: leave it"
                " out, or give one of bitsandbytes or torchao to quantize while loading."
            )
        given = config.get("compute_dtype") if isinstance(config, Mapping) else config.compute_dtype
        return given or dtype, None
    if method(config) == "bitsandbytes" and checkpoint.kinds["nf4"]:
        return dtype, None  # as published: in 4 bits already
    return dtype, OnTheFly(config, dtype, device)

"""Errors that name the argument, what it got and what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor


def check_float(name: str, value: Any, shape: Mapping[str, int | None]) -> None:
    """Raise unless `value` is a floating-point tensor of this shape (name to size, None for any size)."""
    _check_shape(name, value, shape)
    if not value.is_floating_point():
        raise TypeError(f"`{name}` must be a floating-point tensor, got {value.dtype}.")


def check_integer(name: str, value: Any, shape: Mapping[str, int | None]) -> None:
    """Raise unless `value` is an integer tensor of this shape (name to size, None for any size)."""
    _check_shape(name, value, shape)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"`{name}` must be a tensor of integers, got {value.dtype}.")


def check_autocast(model: ModelMixin, given: Any) -> None:
    """Raise if autocast would mix the model's half precision with another, for which torch has no rule.

    Under layerwise casting that is the type computed in, not the one that weights are kept in.

    Args:
        model: The model whose weights count.
        given: What lies where it will compute: a tensor or a layout. Anything else is for other checks.
    """
    device = getattr(given, "device", None)
    if device is None or device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return
    halves = {torch.float16, torch.bfloat16}
    dtype, found = torch.get_autocast_dtype(device.type), model.dtype
    if dtype in halves and found in halves and dtype != found:
        raise ValueError(
            f"The weights are {found} and autocast computes in {dtype}: use torch.autocast(..., dtype={found}), or give"
            " the model weights in float32."
        )


def _check_shape(name: str, value: Any, shape: Mapping[str, int | None]) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a tensor, got {type(value).__name__}.")
    sizes = tuple(shape.values())
    fits = value.ndim == len(sizes) and all(size in (None, got) for size, got in zip(sizes, value.shape, strict=True))
    if not fits:
        wanted = ", ".join(axis if size is None else f"{axis}={size}" for axis, size in shape.items())
        raise ValueError(f"`{name}` must have the shape ({wanted}), got {tuple(value.shape)}.")

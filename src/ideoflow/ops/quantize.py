"""Change the linear layers of a transformer's blocks in place: to quantized ones, and back."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn

from .accelerated import Accelerated
from .fused_projections import FusedProjections
from .hooks import offload_hooks
from .linear import Linear
from .quantized_layers import is_quantized_layer
from .quantized_linear import Float8Linear, Int8Linear, QuantizedLinear

KINDS: dict[str, type[QuantizedLinear]] = {"fp8": Float8Linear, "int8": Int8Linear}


@torch.no_grad()
def quantize_(module: nn.Module, kind: str, skip: str | Sequence[str] = ()) -> list[str]:
    """Quantize the linear layers of the blocks: attention and feed-forward, one at a time.

    Done in place; nothing is changed where an error is raised. Adapters may be loaded before or after. Call it before
    offloading, layerwise casting and compilation are set up. Products of one input are fused afterwards, so that it is
    rounded once for all of them.

    Args:
        module: An `Ideogram4Transformer2DModel`.
        kind: "fp8" or "int8".
        skip: Layers to leave alone: regular expressions that whole names match, such as `layers\\.0\\..*` or
            `.*\\.feed_forward\\.w2`.

    Returns:
        Names of the layers that were quantized.

    Raises:
        TypeError: a module that is no such model, or whose layers are quantized already.
        ValueError: an unknown kind, a pattern that matches nothing, hooks on the layers, or weights that are not
            finite.
    """
    if not isinstance(module, Accelerated):
        raise TypeError(f"`module` is a {type(module).__name__}: give an Ideogram4Transformer2DModel.")
    if kind not in KINDS:
        raise ValueError(f"`kind` is {kind!r}: choose one of {', '.join(KINDS)}.")
    hooked = [name for name, part in module.get_submodule("layers").named_modules() if offload_hooks(part)]
    if hooked:
        raise ValueError(
            f"`module` has hooks on its layers (the first on layers.{hooked[0]}): quantize it before offloading or"
            " layerwise casting is enabled."
        )
    names = _without(
        [name for name, part in module.named_modules() if is_quantized_layer(name) and not hasattr(part, "base_layer")],
        skip,
    )
    for name in names:
        _check(name, module.get_submodule(name))

    module.unfuse_projections()
    for name in names:
        module.set_submodule(name, KINDS[kind].from_linear(module.get_submodule(name)))  # type: ignore[arg-type]
    module.fuse_projections()
    return [name.removesuffix(".base_layer") for name in names]


def dequantize_(module: nn.Module, dtype: torch.dtype | None = None) -> list[str]:
    """Put ordinary linear layers in the place of quantized ones, in place, one at a time.

    Args:
        module: Any module with quantized layers in it.
        dtype: The type of the expanded weights; None for that of the weights that were quantized.

    Returns:
        Names of the layers that were expanded. Their weights take no gradient until `requires_grad_` is called.

    Raises:
        ValueError: a type that is not floating point.
    """
    if dtype is not None and (not dtype.is_floating_point or dtype.itemsize < 2):
        raise ValueError(f"`dtype` is {dtype}: give a floating-point type of 16 bits or more.")
    names = [name for name, part in module.named_modules() if isinstance(part, QuantizedLinear)]
    for part in module.modules():
        if isinstance(part, FusedProjections):
            part.unfuse_projections()
    for name in names:
        module.set_submodule(name, module.get_submodule(name).to_linear(dtype))  # type: ignore[operator]
    return [name.removesuffix(".base_layer") for name in names]


def _without(names: list[str], skip: str | Sequence[str]) -> list[str]:
    """The names that no pattern of `skip` matches."""
    plain = {name: name.removesuffix(".base_layer") for name in names}
    left = dict(plain)
    for pattern in [skip] if isinstance(skip, str) else skip:
        try:
            matched = {name for name in names if re.fullmatch(pattern, plain[name])}
        except re.error as error:
            raise ValueError(f"`skip` holds {pattern!r}, which is no regular expression: {error}.") from None
        if not matched:
            raise ValueError(
                f"`skip` holds {pattern!r}, which matches no layer that would be quantized: use patterns for names such"
                f" as {', '.join(list(plain.values())[:7])}."
            )
        left = {name: short for name, short in left.items() if name not in matched}
    return list(left)


def _check(name: str, layer: nn.Module) -> None:
    """Raise unless this is an ordinary linear layer with finite weights."""
    plain = isinstance(layer, nn.Linear) and type(layer) in (nn.Linear, Linear)
    if not isinstance(layer, nn.Linear) or not plain or layer.weight.dtype.itemsize < 2:
        dtype = getattr(layer.weight, "dtype", None)
        raise TypeError(
            f"`module` has a {type(layer).__name__} in {dtype} as {name}, but only an nn.Linear in 16 bits or more can"
            " be quantized: call `dequantize_` first, or load the weights unquantized."
        )
    if layer.weight.is_meta:
        return
    low, high = torch.aminmax(layer.weight)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ValueError(f"`module` has weights in {name} that are not finite.")

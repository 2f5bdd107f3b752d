"""Adapters of a model in a block: which are active and how strong they are, as they were again afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from .hooks import modules_within


def adapter_layers(model: nn.Module) -> list[Any]:
    """The layers of a model that have adapters of peft's."""
    return [part for part in modules_within(model) if "base_layer" in part._modules]


@contextmanager
def adapters_scaled(model: nn.Module, attention_kwargs: Mapping[str, Any] | None) -> Iterator[dict[str, Any] | None]:
    """Weigh the adapters of a model, within `exclusive`, by the `scale` of `attention_kwargs`.

    They are given back the very weights that they had. Diffusers divides by the scale again, which rounds, and after a
    scale of 0 it forgets what `set_adapters` had set.

    Yields:
        The rest of `attention_kwargs`, which goes to the attention processors.
    """
    if attention_kwargs is None or "scale" not in attention_kwargs:
        yield None if attention_kwargs is None else dict(attention_kwargs)
        return
    rest = {name: value for name, value in attention_kwargs.items() if name != "scale"}
    before = [(layer, dict(layer.scaling)) for layer in adapter_layers(model) if hasattr(layer, "scaling")]
    try:
        for layer, _ in before:
            layer.scale_layer(attention_kwargs["scale"])
        yield rest
    finally:
        for layer, scaling in before:
            layer.scaling.update(scaling)


@contextmanager
def adapters_active(model: nn.Module, adapters: Sequence[tuple[str, float]] | None) -> Iterator[None]:
    """Compute with these adapters of a model and no others, within `exclusive`; then with those from before.

    Args:
        model: The transformer.
        adapters: Names and weights, as `set_adapters` takes them; empty for none, None to leave all as it is.

    Raises:
        ValueError: naming an adapter that the model does not have.
        RuntimeError: if an adapter was fused into the weights.
    """
    if adapters is None:
        yield
        return
    check_adapters(model, dict(adapters))
    layers = adapter_layers(model)
    before = [(layer, layer._active_adapter, layer._disable_adapters, dict(layer.scaling)) for layer in layers]
    try:
        for layer in layers:
            layer._active_adapter = [name for name, _ in adapters]
            layer._disable_adapters = not adapters
            for name, weight in adapters:
                layer.set_scale(name, weight)
        yield
    finally:
        for layer, active, disabled, scaling in before:
            layer._active_adapter, layer._disable_adapters = active, disabled
            layer.scaling.update(scaling)


def check_adapters(model: nn.Module, adapters: Mapping[str, float]) -> None:
    """See that a model has these adapters and that they can be chosen among.

    Raises:
        ValueError: naming an adapter that the model does not have, and those that it has.
        RuntimeError: if an adapter was fused into the weights.
    """
    known = list(getattr(model, "peft_config", None) or {})
    for name in adapters:
        if name not in known:
            has = f"it has {', '.join(map(repr, known))}" if known else "it has none"
            raise ValueError(f"`adapters` names {name!r}, which the model does not have: {has}. Load it first.")
    if any(getattr(layer, "merged", False) for layer in adapter_layers(model)):
        raise RuntimeError("an adapter was fused into the weights: call `unfuse_lora` before choosing among adapters.")

"""What callers weigh adapters by, checked before a layer is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

from ..checks import finite


def check_names(model: Any, adapter_names: str | Sequence[str]) -> list[str]:
    """The names of adapters that a model has, as a list.

    Raises:
        TypeError: if they are no text.
        ValueError: if one is not loaded, or named twice.
    """
    loaded = getattr(model, "peft_config", {})
    allowed = f"give names of adapters that are loaded ({', '.join(map(repr, loaded)) or 'none is'})."
    names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`adapter_names` is {adapter_names!r}: {allowed}")
    if any(name not in loaded for name in names):
        raise ValueError(f"`adapter_names` is {adapter_names!r}: {allowed}")
    if len(set(names)) < len(names):
        raise ValueError(f"`adapter_names` is {adapter_names!r}: name each adapter once.")
    return [*names]


def check_count(names: Sequence[str], weights: Any) -> None:
    """Raise a ValueError for a list that has not one weight for each adapter."""
    if isinstance(weights, list) and len(weights) != len(names):
        raise ValueError(
            f"The adapters {', '.join(map(repr, names))} have a list of {len(weights)} weights: give one number for"
            f" all, or a list of {len(names)}."
        )


def check_components(weights: Any, components: Sequence[str]) -> None:
    """Raise a ValueError for weights of parts of a pipeline that have no adapters, which would change nothing."""
    for weight in weights if isinstance(weights, list) else [weights]:
        unknown = [name for name in weight if name not in components] if isinstance(weight, Mapping) else []
        if unknown:
            raise ValueError(
                f"`adapter_weights` has a weight for {unknown[0]!r}, which has no adapters: give"
                f" {' or '.join(map(repr, components))}."
            )


def checked_weights(model: Any, names: Sequence[str], weights: Any) -> list[Any]:
    """A weight for each adapter: a finite number, or finite numbers by parts of layers' names.

    Raises:
        TypeError: if they are no numbers.
        ValueError: if one is not finite, or not one for each, or no layer with adapters is called so.
    """
    check_count(names, weights)
    layers = [name for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)]
    found: list[Any] = []
    for name, weight in zip(names, weights if isinstance(weights, list) else [weights] * len(names), strict=True):
        if not isinstance(weight, Mapping):
            found.append(1.0 if weight is None else finite(f"weight of the adapter {name!r}", weight))
            continue
        for part in weight:
            if not any(str(part) in layer for layer in layers):
                raise ValueError(
                    f"The adapter {name!r} has a weight for {part!r}: no layer with adapters is called so."
                )
        numbers = {str(part): finite(f"weight of the adapter {name!r} at {part!r}", w) for part, w in weight.items()}
        found.append({**numbers, "": 1.0})  # of the layers that no other part names
    return found

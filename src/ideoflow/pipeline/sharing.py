"""Models of diffusers' own classes as ours, with the very weights that they have."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..model import Ideogram4Transformer2DModel


def as_own(name: str, model: Any) -> Any:
    """A transformer of diffusers' class as one of ours that has the same parameters; any other model as it is.

    What changes the parameters in place changes them for both, moving and casting either of the two included.

    Args:
        name: Of the component, for messages.
        model: The component.

    Raises:
        ValueError: if it has adapters, hooks, or layers that are not the published model's, such as quantized ones.
    """
    if type(model).__name__ != Ideogram4Transformer2DModel.__name__ or hasattr(model, "velocity"):
        return model
    if any("base_layer" in part._modules for part in model.modules()):
        raise ValueError(f"`{name}` has adapters: unload them first, and load them into the new pipeline.")
    if any("_hf_hook" in part.__dict__ or "_diffusers_hook" in part.__dict__ for part in model.modules()):
        raise ValueError(f"`{name}` is offloaded or has other hooks: take weights from a pipeline without.")
    with torch.device("meta"):
        own = Ideogram4Transformer2DModel(**{key: value for key, value in model.config.items() if key[0] != "_"})
    parameters = dict(model.named_parameters())
    plain = all(type(parameter) is nn.Parameter for parameter in parameters.values())
    if not plain or _shapes(model) != _shapes(own):
        raise ValueError(
            f"`{name}` has layers that are not the published model's, such as quantized ones: load the folder with"
            " ideoflow's Ideogram4Pipeline.from_pretrained."
        )
    for key, parameter in parameters.items():
        path, _, last = key.rpartition(".")
        own.get_submodule(path)._parameters[last] = parameter
    return own.train(model.training)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}

"""Sharing the components of another pipeline: models of diffusers' classes as ours, with the very weights they have."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..model import Ideogram4Transformer2DModel
from ..ops.hooks import is_offloaded
from .unknown_arguments import explain

OPTIONS = ("text_encoder_taps", "side_limits")  # arguments of the pipeline's constructor that are no components


def arguments_from(
    pipeline: Any, parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any]
) -> dict[str, Any]:
    """What a pipeline's constructor is to be given to share the components of another.

    Args:
        pipeline: The other pipeline.
        parameters: The constructor's.
        given: Components and options in place of the other's.

    Raises:
        TypeError: an argument that there is none of.
        ValueError: transformers that cannot be shared, or missing components.
    """
    known = [name for name in parameters if name != "self"]
    if unknown := [name for name in given if name not in known]:
        raise TypeError(" ".join(explain(name, known) for name in unknown))
    theirs = {**{name: pipeline.config.get(name) for name in OPTIONS}, **pipeline.components, **given}
    arguments = {name: as_own(name, theirs[name]) for name in known if theirs.get(name) is not None}
    required = [name for name in known if parameters[name].default is inspect.Parameter.empty]
    if missing := [name for name in required if name not in arguments]:
        raise ValueError(f"`pipeline` is a {type(pipeline).__name__} without {', '.join(missing)}: pass them too.")
    return arguments


def as_own(name: str, model: Any) -> Any:
    """A transformer of diffusers' class as one of ours that has the same parameters; any other model as it is.

    What changes the parameters in place changes them for both, moving and casting either of the two included.

    Args:
        name: The component's, for messages.
        model: The component.

    Raises:
        ValueError: if it has adapters, hooks, or layers that are not the published model's, such as quantized ones.
    """
    if type(model).__name__ != Ideogram4Transformer2DModel.__name__ or hasattr(model, "velocity"):
        return model
    if any("base_layer" in part._modules for part in model.modules()):
        raise ValueError(f"`{name}` has adapters: unload them first, and load them into the new pipeline.")
    if is_offloaded(model):
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

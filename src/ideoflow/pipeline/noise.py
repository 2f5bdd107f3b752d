"""Where a picture begins, and how its noise falls: initial latents, and the levels of a scheduler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..presets import Preset
from ..schedule import logit_normal_sigmas

Generators = torch.Generator | list[torch.Generator] | None
# What takes the steps of diffusers' scheduler, and says where it stands: the engine takes them in its place.
_STEPPING = ("step", "step_index", "begin_index", "set_begin_index", "index_for_timestep", "_init_step_index")


def scheduler_of(scheduler: Any, plan: Preset, width: int, height: int) -> FlowMatchEulerDiscreteScheduler:
    """A copy of the pipeline's scheduler, which is left alone, set to the noise levels of a picture.

    Raises:
        ValueError: if its steps are no plain Euler steps, or its own code would not be called.
    """
    plain = FlowMatchEulerDiscreteScheduler
    if not isinstance(scheduler, plain) or scheduler.config.stochastic_sampling:
        raise ValueError(
            f"`scheduler` is a {type(scheduler).__name__}: the engine takes plain Euler steps and needs a"
            " FlowMatchEulerDiscreteScheduler without stochastic sampling."
        )
    own_code = [name for name in _STEPPING if getattr(type(scheduler), name) is not getattr(plain, name)]
    own_code += [name for name in vars(scheduler) if callable(getattr(type(scheduler), name, None))]
    if own_code:
        raise ValueError(
            f"`scheduler` is a {type(scheduler).__name__} with its own {', '.join(f'`{name}`' for name in own_code)},"
            " which would never be called: the engine takes plain Euler steps itself. Noise levels of your own may come"
            " from a subclass with its own `set_timesteps`, steps of your own from `Request.on_step`."
        )
    own = copy(scheduler)  # with what was set on it since it was made, such as by `set_shift`
    sigmas = logit_normal_sigmas(plan.steps, width, height, plan.mu, plan.std)
    own.set_timesteps(sigmas=sigmas[:-1].tolist(), device="cpu")
    return own


def noise_of(
    grids: Sequence[tuple[int, int]],
    channels: int,
    device: torch.device,
    generator: Generators,
    latents: Tensor | Sequence[Tensor] | None,
) -> list[Tensor]:
    """Initial latents `(tokens, channels)` float32 of each picture: drawn, or `latents` where they are given.

    Args:
        grids: Rows and columns of tokens of each picture.
        channels: Channels of a token.
        device: Where the latents are to be.
        generator: One for all, drawn in order, or one for each picture.
        latents: Latents to start from.

    Raises:
        TypeError: latents that are no tensors, or generators that are none.
        ValueError: latents of other shapes, or as many generators as there are not pictures.
    """
    shapes = [(math.prod(grid), channels) for grid in grids]
    if latents is not None:
        _check_latents(latents, shapes)
        return [sample.to(device, torch.float32) for sample in latents]
    generators = generator if isinstance(generator, (list, tuple)) else [generator]
    _check_generators(generators, len(grids))
    if len(generators) > 1:
        pairs = zip(shapes, generators, strict=True)
        return [randn_tensor((1, *shape), own, device, torch.float32)[0] for shape, own in pairs]
    if len(set(shapes)) == 1:
        # One draw for all: how a generator fills a tensor depends on its size.
        return list(randn_tensor((len(shapes), *shapes[0]), generators[0], device, torch.float32))
    return [randn_tensor((1, *shape), generators[0], device, torch.float32)[0] for shape in shapes]


def prepare_latents(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, generator: Generators, latents: Tensor | None
) -> Tensor:
    """Noise of that shape as diffusers' method of this name draws it, or `latents`, which must have it."""
    if latents is None:
        return randn_tensor(shape, generator, device, dtype)
    if tuple(latents.shape) != shape:
        raise ValueError(f"`latents` has shape {tuple(latents.shape)}: the pictures need {shape}.")
    return latents.to(device, dtype)


def _check_latents(latents: Any, shapes: list[tuple[int, int]]) -> None:
    if not isinstance(latents, (Tensor, list, tuple)) or not all(isinstance(sample, Tensor) for sample in latents):
        raise TypeError(f"`latents` is a {type(latents).__name__}: give a tensor, or a list of tensors.")
    given = [tuple(sample.shape) for sample in latents]
    if given != shapes:
        raise ValueError(f"`latents` holds shapes {given}, but the pictures need {shapes}.")


def _check_generators(generators: Sequence[Any], pictures: int) -> None:
    for one in generators:
        if one is not None and not isinstance(one, torch.Generator):
            raise TypeError(
                f"`generator` is {one!r}: give a torch.Generator, such as `torch.Generator().manual_seed(7)`, or a list"
                " with one for each picture."
            )
    if len(generators) not in (1, pictures):
        raise ValueError(
            f"`generator` has {len(generators)} generators for {pictures} pictures: give one, or one for each."
        )

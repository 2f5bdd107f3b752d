"""What the arguments of a pipeline's call mean: captions, schedules and noise, each checked."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..captions import CaptionError, prompt_line
from ..checks import all_finite, finite, whole
from ..schedule import MAX_STEPS, PRESETS, Preset, find_preset, guidance_per_step, limit_guidance, logit_normal_sigmas

DEFAULT = PRESETS["V4_QUALITY_48"]


def plan_of(
    preset: str | Preset | None,
    steps: int,
    scale: float | None,
    schedule: Sequence[float] | Tensor | None,
    mu: float,
    std: float,
    interval: tuple[float, float] | None,
) -> Preset:
    """Steps, guidance, mu and std of a call: the arguments alone, or a preset under those that are not the default."""
    steps = whole("num_inference_steps", steps, 1, most=MAX_STEPS)
    mu, std = finite("mu", mu), finite("std", std)
    if scale is not None:
        scale = finite("guidance_scale", scale)
    plan = _without_interval(preset, steps, scale, schedule, mu, std)
    return plan if interval is None else replace(plan, guidance=limit_guidance(plan.guidance, interval))


def warn_of_guidance(guidance: Sequence[float]) -> None:
    """Warn of guidance that draws something else than the caption: 0, which elsewhere means off, and less."""
    least = min(guidance)
    if least > 0:
        return
    what = "leads away from the caption" if least < 0 else "draws without the caption"
    warnings.warn(
        f"guidance of {least:g} {what}: velocities are g * conditional + (1 - g) * unconditional; 1 is no guidance.",
        stacklevel=3,
    )


def _without_interval(
    preset: str | Preset | None,
    steps: int,
    scale: float | None,
    schedule: Sequence[float] | Tensor | None,
    mu: float,
    std: float,
) -> Preset:
    values = None if schedule is None else all_finite("guidance_schedule", schedule)
    if preset is None:
        return Preset("", steps, guidance_per_step(steps, scale, values), mu, std)
    base = find_preset(preset)
    whole("preset", base.steps, 1, " as its steps", most=MAX_STEPS)
    if steps != DEFAULT.steps:
        base = base.with_steps(steps)
    if values == DEFAULT.guidance:
        values = None
    guidance = base.guidance if scale is None and values is None else guidance_per_step(base.steps, scale, values)
    return Preset(
        base.name,
        base.steps,
        guidance,
        mu=base.mu if mu == DEFAULT.mu else mu,
        std=base.std if std == DEFAULT.std else std,
    )


def lines_of(prompt: Any, strict: bool) -> list[str]:
    """The line that the text encoder reads, for each prompt."""
    prompts = prompts_of(prompt)
    lines = []
    for number, one in enumerate(prompts):
        try:
            lines.append(prompt_line(one, strict=strict))
        except CaptionError as error:
            if len(prompts) == 1:
                raise
            raise CaptionError(f"`prompt[{number}]`: {error}", error.breaches) from None
    return lines


def prompts_of(prompt: Any) -> list[Any]:
    """Each prompt of a call.

    Raises:
        ValueError: if there is none.
    """
    if prompt is None:
        raise ValueError("`prompt` is missing: give a caption, or a list of them.")
    prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
    if not prompts:
        raise ValueError("`prompt` is an empty list: give at least one caption.")
    return prompts


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
    grids: list[tuple[int, int]],
    channels: int,
    device: torch.device,
    generator: torch.Generator | list[torch.Generator] | None,
    latents: Tensor | Sequence[Tensor] | None,
) -> list[Tensor]:
    """Initial latents `(tokens, channels)` float32 of each picture: drawn, or `latents` where they are given.

    Args:
        grids: Rows and columns of tokens of each picture.
        channels: Of a token.
        device: Of the latents.
        generator: One for all, drawn in order, or one for each picture.
        latents: To start from.
    """
    shapes = [(math.prod(grid), channels) for grid in grids]
    if latents is not None:
        if not isinstance(latents, (Tensor, list, tuple)) or not all(isinstance(sample, Tensor) for sample in latents):
            raise TypeError(f"`latents` is a {type(latents).__name__}: give a tensor, or a list of tensors.")
        given = [tuple(sample.shape) for sample in latents]
        if given != shapes:
            raise ValueError(f"`latents` holds shapes {given}, but the pictures need {shapes}.")
        return [sample.to(device, torch.float32) for sample in latents]
    for one in generator if isinstance(generator, (list, tuple)) else [generator]:
        if one is not None and not isinstance(one, torch.Generator):
            raise TypeError(
                f"`generator` is {one!r}: give a torch.Generator, such as `torch.Generator().manual_seed(7)`, or a list"
                " with one for each picture."
            )
    if isinstance(generator, (list, tuple)) and len(generator) == 1:
        generator = generator[0]
    if isinstance(generator, (list, tuple)):
        if len(generator) != len(grids):
            raise ValueError(
                f"`generator` has {len(generator)} generators for {len(grids)} pictures: give one, or one for each."
            )
        pairs = zip(shapes, generator, strict=True)
        return [randn_tensor((1, *shape), each, device, torch.float32)[0] for shape, each in pairs]
    if len(set(shapes)) == 1:
        # One draw for all: how a generator fills a tensor depends on its size.
        return list(randn_tensor((len(shapes), *shapes[0]), generator, device, torch.float32))
    return [randn_tensor((1, *shape), generator, device, torch.float32)[0] for shape in shapes]

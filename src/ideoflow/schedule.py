"""Noise schedules: the resolution-aware logit-normal times of sampling and training.

Model time `t` is 0 at pure noise and 1 at data; `sigma = 1 - t` is the share of noise. A larger picture needs more
noise to hide the same content, so the schedule's mean moves with the logarithm of the number of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .presets import PRESETS, Preset  # also by this file's name, under which they were published

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BASE_PIXELS = 512 * 512  # the size at which the schedule's mean is `mu` itself
MIN_TIME = 1.0 / (1.0 + math.exp(9.0))  # where the log of the signal-to-noise ratio (t / sigma)^2 is -18
MAX_TIME = 1.0 / (1.0 + math.exp(-7.5))  # where it is 15


__all__ = [
    "BASE_PIXELS", "MAX_TIME", "MIN_TIME", "PRESETS", "Preset", "guidance_per_step", "limit_guidance",
    "logit_normal_sigmas", "sample_times",
]  # fmt: skip


def logit_normal_sigmas(steps: int, width: int, height: int, mu: float = 0.0, std: float = 1.5) -> Tensor:
    """Noise levels of an Euler sampler with `steps` steps.

    Quantiles of the logit-normal distribution of times at evenly spaced probabilities, in float64, rounded once.

    Args:
        steps: Number of steps, at least 1.
        width: Picture width in pixels.
        height: Picture height in pixels.
        mu: Mean of the logit-normal distribution at 512 x 512 pixels; higher spends more steps on noise.
        std: Its standard deviation, above 0.

    Returns:
        `(steps + 1,)` float32 on the CPU, decreasing, the last is 0: step i goes from entry i to entry i + 1.

    Raises:
        ValueError: if an argument is out of range.
    """
    import torch

    if steps < 1:
        raise ValueError(f"`steps` is {steps}: at least 1 step is needed.")
    quantiles = torch.special.ndtri(torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64))
    sigmas = 1.0 - _times(quantiles, width * height, mu, std)
    sigmas = sigmas.flip(0).to(torch.float32)
    sigmas[-1] = 0.0  # the last step lands on data itself, not on the clamp
    return sigmas


def sample_times(
    n: int,
    pixels: int | Tensor,
    mu: float = 0.0,
    std: float = 1.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw `n` training times from the distribution whose quantiles `logit_normal_sigmas` visits.

    Args:
        n: How many.
        pixels: Width times height of the picture, one number for all or an `(n,)` tensor.
        mu: Mean of the logit-normal distribution at 512 x 512 pixels.
        std: Its standard deviation, above 0.
        generator: Source of randomness; the times are drawn and returned on its device.

    Returns:
        `(n,)` float32 in [MIN_TIME, MAX_TIME].

    Raises:
        ValueError: if an argument is out of range.
    """
    import torch

    device = generator.device if generator is not None else torch.device("cpu")
    normal = torch.randn(n, dtype=torch.float64, generator=generator, device=device)
    if isinstance(pixels, torch.Tensor):
        pixels = pixels.to(device, torch.float64)
    return _times(normal, pixels, mu, std).to(torch.float32)


def guidance_per_step(
    steps: int, scale: float | None = None, schedule: Sequence[float] | Tensor | None = None
) -> tuple[float, ...]:
    """Guidance of each of `steps` steps, from one scale for all or from a schedule.

    Raises:
        ValueError: unless exactly one of `scale` and `schedule` is given, and `schedule` has `steps` values.
    """
    if (scale is None) == (schedule is None):
        given = "both" if scale is not None else "neither"
        raise ValueError(
            "Give exactly one of `guidance_scale` (one value for all steps) and `guidance_schedule` (one a step); got"
            f" {given}. For a constant scale pass `guidance_scale=...` and `guidance_schedule=None`."
        )
    if scale is not None:
        return (float(scale),) * steps
    values = tuple(float(value) for value in schedule)  # type: ignore[union-attr]
    if len(values) != steps:
        raise ValueError(
            f"`guidance_schedule` has {len(values)} values for {steps} steps: give one value for each step, or"
            f" `guidance_scale` for all, or a `preset`."
        )
    return values


def limit_guidance(guidance: Sequence[float], interval: tuple[float, float]) -> tuple[float, ...]:
    """Guidance of each step, 1 outside an interval of the steps: those cost the conditional branch alone.

    Args:
        guidance: Guidance of each step.
        interval: `(start, stop)` shares of the steps, `0 <= start <= stop <= 1`; step i of n is inside if
            `start <= i / n < stop`. Limiting guidance to the middle of the noise levels was proposed by Kynkäänniemi
            et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality" (2024).

    Raises:
        ValueError: if the interval is not of this form.
    """
    try:
        numbers = tuple(float(share) for share in interval)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1] <= 1:
        raise ValueError(
            f"`guidance_interval` is {interval!r}: give (start, stop), shares of the steps, 0 <= start <= stop <= 1."
        )
    start, stop = numbers
    steps = len(guidance)
    return tuple(value if start <= i / steps < stop else 1.0 for i, value in enumerate(guidance))


def _times(normal: Tensor, pixels: int | Tensor, mu: float, std: float) -> Tensor:
    """`1 - sigmoid(mu' + std * normal)` in float64, where `mu' = mu + ln(pixels / base) / 2`, clamped."""
    import torch

    if not std > 0:
        raise ValueError(f"`std` is {std}: the schedule's standard deviation must be above 0.")
    if isinstance(pixels, torch.Tensor):
        shift: float | Tensor = 0.5 * torch.log(pixels / BASE_PIXELS)
    else:
        if pixels < 1:
            raise ValueError(f"A picture of {pixels} pixels: width and height must be positive.")
        shift = 0.5 * math.log(pixels / BASE_PIXELS)
    return (1.0 - torch.sigmoid(mu + shift + std * normal)).clamp(MIN_TIME, MAX_TIME)

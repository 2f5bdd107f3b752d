"""What diffusers' configurations of caches ask for, and which of them can be had. Imports neither torch nor diffusers.

Theirs decide within the transformer, at each of its calls; here a step is computed or left out as a whole, and which
are is known before the first. What cannot be decided so is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .cache_words import FORMS
from .checks import all_finite, finite, whole

TAYLOR, MAG, FIRST_BLOCK = KINDS = ("TaylorSeerCacheConfig", "MagCacheConfig", "FirstBlockCacheConfig")
MAX_ORDER = 3  # of the polynomials; higher ones swing


def is_config(given: Any) -> bool:
    """Whether this is one of diffusers' configurations."""
    return type(given).__module__.partition(".")[0] == "diffusers"


def check_config(config: Any) -> None:
    """See that a configuration can be honoured.

    Raises:
        TypeError: what is none of `KINDS`, or has a field that is no number.
        ValueError: naming the field that cannot be honoured, and what can.
    """
    kind = type(config).__name__
    if not is_config(config) or kind not in KINDS:
        what = f"diffusers' {kind}" if is_config(config) else repr(config)[:80]
        raise TypeError(f"`cache` is {what}: {FORMS}, a StepCache, or one of diffusers' {', '.join(KINDS)}.")
    if kind == FIRST_BLOCK:
        finite("threshold", config.threshold, 0)
    elif kind == MAG:
        _check_mag(config)
    else:
        _check_taylor(config)


def _check_taylor(config: Any) -> None:
    whole("max_order", config.max_order, 0, most=MAX_ORDER)
    whole("cache_interval", config.cache_interval, 1)
    whole("disable_cache_before_step", config.disable_cache_before_step, 0)
    if config.disable_cache_after_step is not None:
        whole("disable_cache_after_step", config.disable_cache_after_step, 0, ", or None")
    if not config.use_lite_mode or config.skip_predict_identifiers or config.cache_identifiers:
        raise ValueError(
            "`cache` is a TaylorSeerCacheConfig that predicts what modules within the transformer give: here what the"
            " whole transformer gives is predicted, and nothing of it computed. That is `use_lite_mode=True`, without"
            " `skip_predict_identifiers` and `cache_identifiers`."
        )


def _check_mag(config: Any) -> None:
    finite("threshold", config.threshold, 0)
    whole("max_skip_steps", config.max_skip_steps, 0)
    finite("retention_ratio", config.retention_ratio, 0)
    whole("num_inference_steps", config.num_inference_steps, 1)
    if config.calibrate:
        raise ValueError(
            "`cache` is a MagCacheConfig that calibrates: `pipe.calibrate_cache` does that here, and gives the"
            " `mag_ratios` for one with `calibrate=False`."
        )


def taylor_steps(config: Any, steps: int) -> list[int]:
    """The steps that a TaylorSeerCacheConfig computes."""
    before, after = config.disable_cache_before_step, config.disable_cache_after_step
    return regular_steps(steps, config.cache_interval, before, after)


def regular_steps(steps: int, interval: int, before: int, after: int | None) -> list[int]:
    """The steps that are computed at regular intervals, as diffusers counts them, and all at both ends.

    Args:
        steps: Steps of a picture.
        interval: Steps from one that is computed to the next.
        before: The step from which on some are left out.
        after: The step from which on none are; None for no such step.
    """
    return [
        step
        for step in range(steps)
        if step < before or (step - before - 1) % interval == 0 or (after is not None and step >= after)
    ]


def mag_steps(config: Any, steps: int) -> list[int]:
    """The steps that a MagCacheConfig computes: its ratios are multiplied up until what they are from 1 is too much.

    Raises:
        ValueError: if it is for pictures of another number of steps.
    """
    if config.num_inference_steps != steps:
        raise ValueError(
            f"`cache` is a MagCacheConfig of `num_inference_steps={config.num_inference_steps}`, and the pictures have"
            f" {steps} steps: its ratios are those of the steps, so give as many."
        )
    ratios: Sequence[float] = all_finite("mag_ratios", config.mag_ratios)
    kept = int(config.retention_ratio * steps + 0.5)
    computed: list[int] = []
    ratio, error, left_out = 1.0, 0.0, 0
    for step in range(steps):
        if step >= kept:
            ratio *= ratios[step]
            left_out += 1
            error += abs(1 - ratio)
            if computed and error <= config.threshold and left_out <= config.max_skip_steps:
                continue
            ratio, error, left_out = 1.0, 0.0, 0
        computed.append(step)
    return computed

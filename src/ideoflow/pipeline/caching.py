"""What a call's `cache` means: which steps of a picture are computed, in words, or as diffusers says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..cache_configs import FIRST_BLOCK, MAG, check_config, mag_steps, regular_steps, taylor_steps
from ..cache_words import NAMED, OFF, read_words
from ..checks import whole
from ..engine import StepCache
from .cache_calibration import CacheCalibration


def check_cache(given: Any) -> None:
    """See that what was given as a cache can be honoured, as far as it alone can tell.

    Raises:
        TypeError: what is no cache.
        ValueError: what cannot be honoured, with what can.
    """
    if isinstance(given, str):
        read_words(given)
    elif given is not None and not isinstance(given, StepCache):
        check_config(given)


def step_cache(
    given: Any, steps: int, calibration: Callable[[], CacheCalibration], guidance_every: int = 1
) -> StepCache | None:
    """The cache of pictures of so many steps; None where every step is computed.

    Args:
        given: Words, as `ideoflow.cache_words` has them, a `StepCache`, or one of diffusers' configurations; None for
            none.
        steps: Steps of the pictures.
        calibration: Gives what was calibrated of the model for these pictures, or raises a ValueError that says what to
            do.
        guidance_every: Computed steps from one that computes the unconditional branch to the next.

    Raises:
        TypeError: what is no cache.
        ValueError: what cannot be honoured, with what can.
    """
    check_cache(given)
    every = whole("guidance_every", guidance_every, 1)
    cache = None if given is None or given == OFF else _cache(given, steps, calibration)
    return cache if every == 1 else (cache or StepCache.of_steps(steps, range(steps))).guided_every(every)


def in_words(cache: StepCache) -> str:
    """A cache as a picture's settings keep it."""
    listed = [
        ",".join(str(step) for step, computed in enumerate(own) if computed)
        for own in (cache.conditional, cache.unconditional)
    ]
    guidance = "" if listed[0] == listed[1] else f" guidance={listed[1]}"
    return f"steps={listed[0]}{guidance} order={cache.order}"


def _cache(given: Any, steps: int, calibration: Callable[[], CacheCalibration]) -> StepCache:
    if isinstance(given, StepCache):
        if given.steps != steps:
            raise ValueError(f"`cache` is a StepCache of {given.steps} steps, and the pictures have {steps}.")
        return given
    if isinstance(given, str):
        return _of_words(read_words(given), steps, calibration)
    kind = type(given).__name__
    if kind == FIRST_BLOCK:
        return calibration().within(given.threshold)
    if kind == MAG:
        return StepCache.of_steps(steps, mag_steps(given, steps), order=0)
    return StepCache.of_steps(steps, taylor_steps(given, steps), order=given.max_order)


def _of_words(words: Mapping[str, str], steps: int, calibration: Callable[[], CacheCalibration]) -> StepCache:
    if "named" in words:
        return calibration().computing(max(1, int(steps / NAMED[words["named"]] + 1e-9)))
    order = int(words.get("order", 1))
    if "steps" in words:
        computed = _numbers(words["steps"])
        return StepCache.of_steps(steps, computed, _numbers(words.get("guidance", words["steps"])), order)
    after = int(words["after"]) if "after" in words else None
    computed = regular_steps(steps, int(words["interval"]), int(words.get("before", 3)), after)
    return StepCache.of_steps(steps, computed, order=order).guided_every(int(words.get("guidance_every", 1)))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]

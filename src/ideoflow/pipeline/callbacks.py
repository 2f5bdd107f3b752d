"""What a call's callback is given after each step, and what it may give back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine import Request
from .decoding import stack

Callback = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any] | None]


def call_back(callback: Callback, pipeline: Any, i: int, requests: Sequence[Request], names: Sequence[str]) -> None:
    """Call `callback(pipeline, i, timestep, tensors)`, and let the requests take the latents that it changed.

    Args:
        callback: The caller's.
        pipeline: The pipeline that was called.
        i: The step just taken.
        requests: Those of the call.
        names: The tensors that it asked for: "latents", or nothing.

    Raises:
        TypeError: if it gives back something else than a dict of tensors.
        ValueError: if it gives back latents of another shape or number.
    """
    latents = stack([request.latents for request in requests])
    timesteps = torch.stack([request.sigmas[i] for request in requests])
    timesteps *= pipeline.scheduler.config.num_train_timesteps
    timestep = timesteps[0] if isinstance(latents, Tensor) else timesteps
    returned = callback(pipeline, i, timestep, {"latents": latents} if "latents" in names else {})
    if returned is not None and not isinstance(returned, Mapping):
        raise TypeError(f"`callback_on_step_end` returned a {type(returned).__name__}: return a dict, or None.")
    changed = (returned or {}).get("latents")
    if changed is None and "latents" in names:
        changed = latents  # they may have been changed in place
    if changed is not None:
        _take(requests, changed)


def _take(requests: Sequence[Request], changed: Any) -> None:
    """Give requests the latents that a callback returned."""
    if not isinstance(changed, (Tensor, list, tuple)) or not all(isinstance(own, Tensor) for own in changed):
        raise TypeError(
            f"`callback_on_step_end` returned latents that are a {type(changed).__name__}: return a tensor, or a"
            " list of tensors."
        )
    if len(changed) != len(requests):
        raise ValueError(
            f"`callback_on_step_end` returned latents of {len(changed)} pictures: this call has {len(requests)}."
        )
    for request, own in zip(requests, changed, strict=True):
        if own.shape != request.latents.shape:
            raise ValueError(
                f"`callback_on_step_end` returned latents of shape {tuple(own.shape)} for {request}: it must keep"
                f" {tuple(request.latents.shape)}."
            )
        request.latents = own.detach().to(request.latents)

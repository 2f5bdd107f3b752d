"""The denoising loop: an engine that steps requests, some of them at a time, in one packed stream per branch."""

from typing import TYPE_CHECKING

from .._imports import lazily
from .scheduler import POLICIES, Policy, Scheduler

if TYPE_CHECKING:
    from .denoiser import Denoiser
    from .engine import Engine
    from .events import Event
    from .request import Edit, Request
    from .step_cache import StepCache

__all__ = ["POLICIES", "Denoiser", "Edit", "Engine", "Event", "Policy", "Request", "Scheduler", "StepCache"]

__getattr__ = lazily(
    __name__,
    {
        ".denoiser": ("Denoiser",),
        ".engine": ("Engine",),
        ".events": ("Event",),
        ".request": ("Edit", "Request"),
        ".step_cache": ("StepCache",),
    },
)

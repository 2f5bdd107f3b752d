"""The denoising loop: an engine that steps requests, some of them at a time, in one packed stream per branch."""

from .denoiser import Denoiser
from .engine import Engine
from .events import Event
from .request import Request
from .scheduler import POLICIES, Policy, Scheduler

__all__ = ["POLICIES", "Denoiser", "Engine", "Event", "Policy", "Request", "Scheduler"]

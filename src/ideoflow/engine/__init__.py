"""The denoising loop: requests, and an engine that steps any set of them in one packed stream per branch."""

from .engine import Engine
from .request import Request

__all__ = ["Engine", "Request"]

"""Events: what an engine tells of its requests as they go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .request import Request

Kind = Literal["queued", "started", "step", "finished", "failed", "cancelled"]


@dataclass(frozen=True)
class Event:
    """Something that happened to a request.

    Every request has one "queued", then at most one "started" and its "step"s, then one of "finished", "failed" and
    "cancelled", after which nothing follows.

    Attributes:
        kind: What happened.
        request: The request that it happened to.
        step: Number of steps that the request had taken by then.
        image: The picture with "finished", where the engine decodes; a preview with a "step", where one is due.
        error: The reason of "failed".
    """

    kind: Kind
    request: Request
    step: int
    image: Any = None
    error: Exception | None = None

    def __str__(self) -> str:
        """One line, for logs."""
        if self.kind == "step":
            return f"{self.request}: step {self.step} of {self.request.steps}"
        return f"{self.request}: {self.kind}" + (f" ({self.error})" if self.error else "")

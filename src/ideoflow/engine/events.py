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
        request: To whom.
        step: Steps it had taken by then.
        image: Of "finished", the picture, where the engine decodes; of a "step", a preview, where one is due.
        error: Of "failed", what it failed from.
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

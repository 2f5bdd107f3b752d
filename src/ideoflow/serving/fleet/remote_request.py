"""Requests that are stepped in another process: what is known of them here, and what is told of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..drawing_order import DrawingOrder

Kind = Literal["queued", "started", "step", "finished", "failed", "cancelled"]
ENDS: tuple[Kind, ...] = ("finished", "failed", "cancelled")


@dataclass(frozen=True)
class Measure:
    """What a request takes, before it is stepped.

    Attributes:
        text_tokens: tokens of its caption.
        image_tokens: tokens of its pixels.
        step_tokens: tokens of each step.
        settings: what makes its picture again.
    """

    text_tokens: int
    image_tokens: int
    step_tokens: tuple[int, ...]
    settings: dict[str, Any] | None


@dataclass(eq=False)
class RemoteRequest:
    """A picture in the making elsewhere.

    Attributes:
        order: what is asked for: this picture alone.
        measure: what it takes.
        arrival: its number among all requests.
        step: steps that it has taken where it is now.
        started: whether it has begun there.
        losses: replicas that were lost while they drew it.
        given_up: whether somebody cancelled it.
    """

    order: DrawingOrder
    measure: Measure
    arrival: int = 0
    step: int = 0
    started: bool = False
    losses: int = 0
    given_up: bool = False

    def __repr__(self) -> str:
        return f"Request {self.name}"

    @property
    def name(self) -> str:
        """Its name, which no other request has."""
        return self.order.names[0]

    @property
    def steps(self) -> int:
        """Steps that it takes."""
        return len(self.measure.step_tokens)

    @property
    def text_tokens(self) -> int:
        """Tokens of its caption."""
        return self.measure.text_tokens

    @property
    def image_tokens(self) -> int:
        """Tokens of its pixels."""
        return self.measure.image_tokens

    @property
    def settings(self) -> dict[str, Any] | None:
        """What makes its picture again."""
        return self.measure.settings

    @property
    def outstanding(self) -> int:
        """Tokens of all the steps before it."""
        return sum(self.measure.step_tokens[self.step :])

    @property
    def tokens(self) -> int:
        """Tokens of its next step."""
        return self.measure.step_tokens[min(self.step, self.steps - 1)]

    @property
    def adapters(self) -> tuple[tuple[str, float], ...]:
        """Names and weights of its adapters."""
        return tuple(sorted(self.order.settings.adapters.items()))


@dataclass(frozen=True)
class RemoteEvent:
    """Something that happened to a request elsewhere: see `ideoflow.engine.Event`."""

    kind: Kind
    request: RemoteRequest
    step: int = 0
    image: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class Told:
    """An event as it is sent: with the name of its request."""

    name: str
    kind: Kind
    step: int = 0
    image: Any = None
    error: Exception | None = None


@dataclass
class Report:
    """What has happened in a replica since its last report.

    Attributes:
        events: the events, in order.
        passes: tokens, requests and seconds of each pass.
        pace: tokens a second of late; None before the first pass.
    """

    events: list[Told] = field(default_factory=list)
    passes: list[tuple[int, int, float]] = field(default_factory=list)
    pace: float | None = None

"""What draws the pictures of jobs, as jobs see it: a replica in this process, or a fleet of them elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..captions.sent_prompt import ReadPrompt
from .job import Job
from .picture_changes import PictureChange


class Event(Protocol):
    """Something that happened to a request: see `ideoflow.engine.Event`."""

    @property
    def kind(self) -> str:
        """What happened."""

    @property
    def request(self) -> Any:
        """The request that it happened to."""

    @property
    def step(self) -> int:
        """Steps that it had taken by then."""

    @property
    def image(self) -> Any:
        """The picture, or a preview."""

    @property
    def error(self) -> Exception | None:
        """The reason of "failed"."""


class DrawingBackend(Protocol):
    """Draws pictures of jobs; all methods may be called from any thread."""

    def start(self) -> None:
        """Begin to step."""

    def close(self, timeout: float) -> None:
        """Let the requests that are here end, for so many seconds at most."""

    @property
    def healthy(self) -> bool:
        """Whether requests are stepped."""

    @property
    def backlog(self) -> float | None:
        """Seconds that the requests which are here take at the pace of late; None before the first pass."""

    @property
    def waiting(self) -> Sequence[Any]:
        """Requests that have steps before them, in the order in which the next ones are chosen."""

    def count_tokens(self, line: str) -> int:
        """Tokens that the model reads of a prompt's line."""

    def check_length(self, prompt: ReadPrompt, field: str) -> None:
        """See that the model can read a caption of this length."""

    def make(self, job: Job, change: PictureChange | None) -> None:
        """Make the requests of a job's pictures that are missing."""

    def add(self, requests: Sequence[Any]) -> None:
        """Let requests take part from the next step on."""

    def cancel(self, request: Any) -> None:
        """Give up a request, if it is not finished."""


# Makes one of: what is called with each event, with the tokens, requests and seconds of each pass, and when it fails.
MakeBackend = Callable[[Callable[[Any], None], Callable[[int, int, float], None], Callable[[], None]], DrawingBackend]

"""A replica as another process has it: asked by name, told in reports. It knows nothing of Ray."""

from __future__ import annotations

import copy
import os
import socket
from collections import deque
from dataclasses import dataclass
from threading import Condition
from typing import Any

from ...captions.writing import Written
from ...engine import Event, Request
from ..drawing_order import DrawingOrder
from ..job_settings import ServedModel
from ..replica import TOKENS_OF_A_PASS, Replica
from ..server_settings import ServerSettings
from ..serving_model import enhancer_of, load_model, served_by
from ..worker import breaks_the_device
from .remote_request import ENDS, Measure, Report, Told

PATIENCE = 1.0  # seconds after which a report comes though nothing has happened: it is a sign of life
LATE_CANCELS = 10_000  # names of requests that were given up before they came, or after their end


class EngineBroken(RuntimeError):
    """The replica's engine is given up, and its process with it."""


@dataclass(frozen=True)
class Introduction:
    """What a replica says of itself once it is ready.

    Attributes:
        served: what orders are settled by.
        tokenizer: the model's.
        enhances: whether the model writes captions of words.
        pass_tokens: tokens of one pass.
        pid: number of its process.
        node: name of its machine.
    """

    served: ServedModel
    tokenizer: Any
    enhances: bool
    pass_tokens: int
    pid: int
    node: str


class ReplicaHost:
    """Draws what it is sent; all methods may be called from any thread.

    Args:
        settings: the server's options, without its secrets.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._replica: Replica | None = None
        self._requests: dict[str, Request] = {}
        self._unwanted: deque[str] = deque(maxlen=LATE_CANCELS)
        self._report = Report()
        self._broken = False
        self._changed = Condition()

    @property
    def replica(self) -> Replica:
        """What draws."""
        if self._replica is None:
            raise RuntimeError("the replica has not been introduced: nothing is loaded")
        return self._replica

    def introduce(self) -> Introduction:
        """Load the model and begin to step.

        Raises:
            ValueError: as `load_model`.
        """
        pipe = load_model(self._settings)
        served = served_by(self._settings, pipe)
        self._replica = Replica(pipe, served, self._hear, self._count_pass, self._break)
        self._replica.start()
        return Introduction(
            served=served,
            tokenizer=pipe.tokenizer,
            enhances=pipe.prompt_enhancer_head is not None,
            pass_tokens=self._replica.engine.max_tokens or TOKENS_OF_A_PASS,
            pid=os.getpid(),
            node=socket.gethostname(),
        )

    def measure(self, order: DrawingOrder) -> list[Measure] | str:
        """What each picture of an order takes; or in words why the pipeline refuses it."""
        try:
            requests = self.replica.requests_of(order)
        except (ValueError, TypeError) as error:
            return str(error)
        return [
            Measure(
                request.text_tokens,
                request.image_tokens,
                tuple(request.tokens_of(step) for step in range(request.steps)),
                request.settings,
            )
            for request in requests
        ]

    def draw(self, order: DrawingOrder) -> None:
        """Draw the one picture of an order; what keeps it from being drawn is told like any failure."""
        (name,) = order.names
        try:
            requests = self.replica.requests_of(order)
            with self._changed:
                if name in self._unwanted:
                    self._tell(Told(name, "cancelled"))
                    return
                self._requests[name] = requests[0]
                self.replica.add(requests)
        except Exception as error:
            with self._changed:
                self._requests.pop(name, None)
                self._tell(Told(name, "failed", error=_portable(error)))

    def cancel(self, name: str) -> None:
        """Give up a picture, whether it has come already or comes yet."""
        with self._changed:
            request = self._requests.get(name)
            if request is None:
                self._unwanted.append(name)
            else:
                self.replica.cancel(request)

    def write(self, words: str, size: tuple[int, int] | None) -> Written:
        """A caption of words, by the model, which must have a head for that."""
        enhancer = enhancer_of(self.replica.pipe)
        assert enhancer is not None
        return enhancer(words, size)

    def report(self) -> Report:
        """What has happened since the last report, as soon as anything has; after a second in any case.

        Raises:
            EngineBroken: where nothing will be drawn any longer.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._broken or self._report.events, PATIENCE)
            report, self._report = self._report, Report()
            if self._broken:
                raise EngineBroken("its engine has failed")
            report.pace = self.replica.pace
            return report

    def _hear(self, event: Event) -> None:
        if breaks_the_device(event.error):  # no fault of the picture's, which another replica can draw
            self._break()
            return
        with self._changed:
            if event.kind in ENDS:
                self._requests.pop(event.request.id, None)
            self._tell(Told(event.request.id, event.kind, event.step, event.image, _portable(event.error)))

    def _tell(self, told: Told) -> None:
        self._report.events.append(told)
        self._changed.notify_all()

    def _count_pass(self, tokens: int, requests: int, seconds: float) -> None:
        with self._changed:
            self._report.passes.append((tokens, requests, seconds))

    def _break(self) -> None:
        with self._changed:
            self._broken = True
            self._changed.notify_all()


def _portable(error: Exception | None) -> Exception | None:
    """An error that another process can read: of its own class where that can be made of its parts, else in words."""
    if error is None:
        return None
    try:
        copy.deepcopy(error)  # as Ray sends it
    except Exception:
        return RuntimeError(str(error) or type(error).__name__)
    return error

"""A fleet: requests wait here and go to replicas in other processes; those of one that is lost go to the others.

A request is in one place at a time: it waits, or one replica has it. What a replica tells is heard by one thread, which
also learns that it is lost, and after that hears nothing more of it: so whatever had not ended by then is drawn again
elsewhere, and no picture comes twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...captions.sent_prompt import ReadPrompt
from ...captions.writing import Writer, WritingError, Written
from ..api_errors import ApiError
from ..caption_length import check_length, count_tokens
from ..drawing_order import DrawingOrder
from ..job import Job, Picture
from ..picture_changes import PictureChange
from .remote_request import ENDS, Measure, RemoteEvent, RemoteRequest, Report
from .replica_host import EngineBroken, Introduction
from .routing import Adapters, State, choose, next_change, pause, wanted

logger = logging.getLogger(__name__)

ATTEMPTS = 5  # replicas that may be lost while they draw a request: it may be what they are lost from
FAILURES = 5  # replicas in a row that do not start, with none ready, before the fleet is given up
TICK = 0.5  # seconds between looks at what is to be done
ENDING = 30.0  # seconds in which what could not be started is put away
PATIENCE = 120.0  # seconds for which a client waits where no replica is ready


class ReplicaLost(Exception):
    """A replica does not answer any longer."""


class NotStarted(Exception):
    """A replica could not be started."""


class Link(Protocol):
    """A replica in another process: the methods of `ReplicaHost`, each of which raises `ReplicaLost` once it is gone.

    `draw` and `cancel` do not wait for it.
    """

    def introduce(self) -> Introduction:
        """Wait until it is ready; raises `NotStarted` if it does not get so far."""

    def measure(self, order: DrawingOrder) -> list[Measure] | str:
        """See `ReplicaHost`."""

    def draw(self, order: DrawingOrder) -> None:
        """See `ReplicaHost`."""

    def cancel(self, name: str) -> None:
        """See `ReplicaHost`."""

    def write(self, words: str, size: tuple[int, int] | None) -> Written:
        """See `ReplicaHost`."""

    def report(self) -> Report:
        """See `ReplicaHost`."""

    def end(self) -> None:
        """End its process, whatever it does."""


class Launcher(Protocol):
    """Starts replicas. All methods are called in one thread, which lives as long as the fleet."""

    def open(self) -> None:
        """Find out where replicas can be."""

    def launch(self) -> Link:
        """Start one, without waiting for it."""

    def has_room(self) -> bool:
        """Whether one more could be placed now; it may take seconds to tell."""

    def close(self) -> None:
        """Let go of everything."""


@dataclass(eq=False)
class Member:
    """A replica of the fleet.

    Attributes:
        name: what it is called in logs and metrics.
        link: the way to it.
        generation: how often replicas had been rolled over when it was started.
        state: whether it loads, draws, or ends what it has and then goes.
        introduction: what it said of itself; None as long as it loads.
        requests: those that it has, by name.
        adapters: what it draws with, or drew with last.
        pace: tokens a second of late; None before its first pass.
    """

    name: str
    link: Link
    generation: int
    state: State = "starting"
    introduction: Introduction | None = None
    requests: dict[str, RemoteRequest] = field(default_factory=dict)
    adapters: Adapters | None = None
    pace: float | None = None

    @property
    def outstanding(self) -> int:
        """Tokens of all steps before its requests."""
        return sum(request.outstanding for request in self.requests.values())

    @property
    def in_pass(self) -> int:
        """Tokens of the next step of each of its requests."""
        return sum(request.tokens for request in self.requests.values())

    @property
    def pass_tokens(self) -> int:
        """Tokens of one of its passes."""
        return 0 if self.introduction is None else self.introduction.pass_tokens

    def view(self) -> dict[str, Any]:
        """What others are told of it."""
        known = self.introduction
        return {
            "name": self.name,
            "state": self.state,
            "node": None if known is None else known.node,
            "pid": None if known is None else known.pid,
            "pictures": len(self.requests),
            "tokens": self.outstanding,
            "tokens_per_second": None if self.pace is None else round(self.pace, 1),
        }


class Fleet:
    """Draws pictures of jobs by replicas; all methods may be called from any thread.

    Args:
        launcher: what starts replicas.
        least: the fewest replicas.
        most: the most; between the two there are as many as the work that waits asks for.
        priority: whether requests of higher priority are sent first; else the oldest are.
    """

    def __init__(self, launcher: Launcher, least: int, most: int, priority: bool = False) -> None:
        self.lost = 0  # replicas so far
        self._launcher, self._least, self._most, self._priority = launcher, least, most, priority
        self._target, self._generation = least, 0
        self._members: list[Member] = []
        self._queue: list[RemoteRequest] = []
        self._introduction: Introduction | None = None
        self._failure: Exception | None = None  # of the latest replica that did not start
        self._failures, self._not_before = 0, 0.0
        self._names, self._arrivals = 0, 0
        self._busy_at = time.monotonic()
        self._closed = self._broken = False
        self._on_event: Callable[[Any], None] = lambda event: None
        self._on_pass: Callable[[int, int, float], None] = lambda tokens, requests, seconds: None
        self._on_broken: Callable[[], None] = lambda: None
        self._changed = threading.Condition(threading.RLock())
        self._keeper = threading.Thread(target=self._keep, name="fleet", daemon=True)

    def open(self) -> Introduction:
        """Start the replicas, and wait for the first to be ready; what that one says of itself.

        Raises:
            Exception: why one could not be started, if that comes first.
        """
        self._keeper.start()  # it alone has to do with the launcher: what Ray starts ends with the thread that did
        with self._changed:
            self._changed.wait_for(lambda: self._introduction or self._failure or self._closed)
            if self._introduction is not None:
                return self._introduction
            failure = self._failure or RuntimeError("the fleet was closed before a replica was ready")
        self.close(ENDING)
        raise failure

    def listen(
        self,
        on_event: Callable[[Any], None],
        on_pass: Callable[[int, int, float], None],
        on_broken: Callable[[], None],
    ) -> Fleet:
        """Have events, passes and the fleet's own end told; the fleet itself, which is then a `DrawingBackend`."""
        self._on_event, self._on_pass, self._on_broken = on_event, on_pass, on_broken
        return self

    def start(self) -> None:
        """Nothing: replicas step as soon as they are ready."""

    def close(self, timeout: float) -> None:
        """Give up all requests, and end all replicas."""
        with self._changed:
            for request in [*self._queue, *(one for member in self._members for one in member.requests.values())]:
                self._tell(RemoteEvent("cancelled", request, request.step))
            self._closed = True
            self._queue.clear()
            members = list(self._members)
            self._changed.notify_all()
        for member in members:
            member.link.end()
        if self._keeper.is_alive():
            self._keeper.join(timeout)

    def roll_over(self) -> None:
        """Put a new replica in each one's place, one by one; what the old ones have begun, they end."""
        with self._changed:
            self._generation += 1
            logger.info("rolling over: %d replicas are replaced, one by one", len(self._members))
            self._changed.notify_all()

    # What is seen of it

    @property
    def introduction(self) -> Introduction:
        """What the first replica said of itself."""
        if self._introduction is None:
            raise RuntimeError("the fleet has not been opened")
        return self._introduction

    @property
    def healthy(self) -> bool:
        """Whether requests are, or will be, stepped."""
        return not (self._closed or self._broken)

    @property
    def views(self) -> list[dict[str, Any]]:
        """What others are told of each replica."""
        with self._changed:
            return [member.view() for member in self._members]

    @property
    def queued(self) -> int:
        """Requests that no replica has yet."""
        return len(self._queue)

    @property
    def backlog(self) -> float | None:
        """Seconds that all requests take at the pace of late; None before the first pass."""
        with self._changed:
            pace = sum(member.pace or 0.0 for member in self._members if member.state == "ready")
            return self._outstanding / pace if pace else None

    @property
    def waiting(self) -> Sequence[RemoteRequest]:
        """Requests that have steps before them: those that replicas have, then the others as they will be sent."""
        with self._changed:
            here = [request for member in self._members for request in member.requests.values()]
            return [*sorted(here, key=lambda one: one.arrival), *self._queue]

    @property
    def _outstanding(self) -> int:
        return sum(one.outstanding for one in self._queue) + sum(member.outstanding for member in self._members)

    def count_tokens(self, line: str) -> int:
        """Tokens that the model reads of a prompt's line."""
        return count_tokens(self.introduction.tokenizer, line)

    def check_length(self, prompt: ReadPrompt, field: str) -> None:
        """See that the model can read a caption of this length; arguments and errors as of the function."""
        check_length(self.introduction.tokenizer, prompt, field)

    @property
    def enhancer(self) -> Writer | None:
        """What makes captions of words by the model itself; None where it has no head for that."""
        return self._write if self.introduction.enhances else None

    # What is asked of it

    def make(self, job: Job, change: PictureChange | None) -> None:
        """Make the requests of a job's pictures that are missing, by a replica that measures them.

        Raises:
            ApiError: with status 400 where the pipeline refuses them, 503 where no replica is ready for long.
        """
        order = DrawingOrder.of(job, change)
        measures = self._ask(lambda link: link.measure(order))
        if isinstance(measures, str):
            raise ApiError(400, measures, code="invalid_value")
        for index, measure in zip(order.indices, measures, strict=True):
            job.pictures[index] = Picture.of(RemoteRequest(order.only(index), measure))

    def add(self, requests: Sequence[RemoteRequest]) -> None:
        """Let requests wait for a replica that has room."""
        with self._changed:
            for request in requests:
                self._arrivals += 1
                request.arrival = self._arrivals
                self._queue.append(request)
            self._send()

    def cancel(self, request: RemoteRequest) -> None:
        """Give up a request, if it is not finished."""
        with self._changed:
            request.given_up = True
            if request in self._queue:
                self._queue.remove(request)
                self._tell(RemoteEvent("cancelled", request))
                return
            for member in self._members:
                if member.requests.get(request.name) is request:
                    member.link.cancel(request.name)

    def _write(self, words: str, size: tuple[int, int] | None) -> Written:
        try:
            written: Written = self._ask(lambda link: link.write(words, size))
        except ApiError as error:
            raise WritingError(error.message) from None
        return written

    def _ask(self, question: Callable[[Link], Any]) -> Any:
        """What a ready replica answers; another one is asked where it is lost meanwhile.

        Raises:
            ApiError: with status 503 where none is ready for long.
        """
        end = time.monotonic() + PATIENCE
        asked: list[Member] = []
        while True:
            with self._changed:
                left = end - time.monotonic()
                if not self._changed.wait_for(lambda: not self.healthy or self._ready(asked), max(0.0, left)):
                    raise ApiError(503, "No replica is ready: ask again in a moment.", code="no_replica")
                if not self.healthy:
                    raise ApiError(503, "The server is stopping: ask again in a moment.", code="stopping")
                member = min(self._ready(asked), key=lambda one: one.outstanding)
            try:
                return question(member.link)
            except ReplicaLost:
                asked.append(member)

    def _ready(self, without: Sequence[Member]) -> list[Member]:
        return [one for one in self._members if one.state == "ready" and one not in without]

    # Sending and hearing, within `self._changed`

    def _tell(self, event: RemoteEvent) -> None:
        if not self._closed:
            self._on_event(event)

    def _send(self) -> None:
        """Send what waits to replicas that have room."""
        self._queue.sort(key=lambda one: (-one.order.settings.priority if self._priority else 0, one.arrival))
        while self._queue and (member := choose(self._members, self._queue[0].adapters)) is not None:
            request = self._queue.pop(0)
            member.requests[request.name] = request
            member.adapters = request.adapters
            member.link.draw(request.order)

    def _hear(self, member: Member, report: Report) -> None:
        """Hand on what a replica tells, and send it more."""
        member.pace = report.pace
        for counted in report.passes:
            self._on_pass(*counted)
        for told in report.events:
            request = member.requests.get(told.name)
            if request is None:
                continue
            request.step = max(request.step, told.step)
            request.started |= told.kind == "started"
            if told.kind in ENDS:
                del member.requests[told.name]
            self._tell(RemoteEvent(told.kind, request, told.step, told.image, told.error))
        self._send()

    def _take_up(self, request: RemoteRequest) -> None:
        """Have a request wait again whose replica is lost, from its first step on."""
        request.losses += request.started
        request.step, request.started = 0, False
        if request.given_up:
            self._tell(RemoteEvent("cancelled", request))
        elif request.losses == ATTEMPTS:
            error = RuntimeError(f"{request.losses} replicas were lost while they drew it: it may be what ends them.")
            self._tell(RemoteEvent("failed", request, error=error))
        else:
            self._queue.append(request)

    # A replica's life, in a thread of its own

    def _follow(self, member: Member) -> None:
        why: Exception | None = None
        try:
            introduction = member.link.introduce()
            self._welcome(member, introduction)
            while not self._has_left(member):
                report = member.link.report()
                with self._changed:
                    self._hear(member, report)
        except Exception as error:
            why = error
            if not isinstance(error, (ReplicaLost, EngineBroken, NotStarted)):
                logger.exception("%s cannot be followed any longer", member.name)
        member.link.end()  # before its requests begin elsewhere
        self._part(member, why)

    def _welcome(self, member: Member, introduction: Introduction) -> None:
        with self._changed:
            member.introduction, member.state = introduction, "ready"
            self._introduction = self._introduction or introduction
            self._failures = 0
            logger.info("%s is ready: process %d of %s", member.name, introduction.pid, introduction.node)
            self._send()
            self._changed.notify_all()

    def _has_left(self, member: Member) -> bool:
        with self._changed:
            return self._closed or (member.state == "leaving" and not member.requests)

    def _part(self, member: Member, why: Exception | None) -> None:
        """Let go of a replica, and take up what it had."""
        with self._changed:
            self._members.remove(member)
            if self._closed:
                return
            if isinstance(why, NotStarted):
                self._failures += 1
                self._failure = why.__cause__ if isinstance(why.__cause__, Exception) else why
                self._not_before = time.monotonic() + pause(self._failures)
                logger.error("%s could not be started: %s", member.name, self._failure)
            elif why is not None:
                self.lost += 1
                logger.warning(
                    "%s is lost, and %d pictures begin again elsewhere: %s", member.name, len(member.requests), why
                )
            for request in member.requests.values():
                self._take_up(request)
            self._send()
            self._changed.notify_all()

    # How many there are

    def _keep(self) -> None:
        """Have as many replicas as there should be, until the fleet is closed."""
        try:
            self._launcher.open()
            self._keep_up()
        except Exception as error:
            logger.exception("the fleet has failed")
            with self._changed:
                self._failure, self._broken = error, True
                self._on_broken()
                self._changed.notify_all()
        finally:
            self._launcher.close()

    def _keep_up(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                self._fail_late()
                self._scale()
                change = self._next(None)
                look = change == "look for room"
                if self._failures >= FAILURES and not self._ready(()) and not self._broken:
                    self._broken = True
                    self._on_broken()
                if not look:
                    self._carry_out(change)
                    self._changed.wait(TICK)
                    continue
            room = self._launcher.has_room()
            with self._changed:
                if not self._closed:
                    self._carry_out(self._next(room))

    def _next(self, room: bool | None) -> Any:
        return next_change(self._members, self._target, self._generation, room)

    def _carry_out(self, change: Any) -> None:
        if isinstance(change, Member):
            change.state = "leaving"
            logger.info("%s ends its %d pictures and leaves", change.name, len(change.requests))
        elif change == "start" and time.monotonic() >= self._not_before and not self._broken:
            self._names += 1
            member = Member(f"replica-{self._names}", self._launcher.launch(), self._generation)
            self._members.append(member)
            threading.Thread(target=self._follow, args=(member,), name=member.name, daemon=True).start()

    def _scale(self) -> None:
        """Move the target by one where the work that waits asks for it, and no replica is starting or leaving."""
        now = time.monotonic()
        if self._outstanding:
            self._busy_at = now
        if self._least < self._most and all(one.state == "ready" for one in self._members):
            target = wanted(self._target, self._least, self._most, self.backlog, now - self._busy_at)
            if target != self._target:
                logger.info("%d replicas instead of %d", target, self._target)
                self._target, self._busy_at = target, now

    def _fail_late(self) -> None:
        """Have requests fail whose time is over before a replica had room for them."""
        for request in list(self._queue):
            left = request.order.seconds_left
            if left is not None and left <= 0:
                self._queue.remove(request)
                error = TimeoutError(f"{request} passed its deadline before its first step.")
                self._tell(RemoteEvent("failed", request, error=error))

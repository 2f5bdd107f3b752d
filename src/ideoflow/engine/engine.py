"""The engine: requests come and go at every step; a scheduler picks those that share the next one."""

from __future__ import annotations

import logging
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..checks import whole
from .denoiser import Denoiser
from .events import Event, Kind
from .interrupts import Held
from .out_of_memory import out_of_memory
from .overlap import Pending, SideStream
from .request import Request
from .scheduler import Policy, Scheduler

T = TypeVar("T")
logger = logging.getLogger(__name__)

_engine_of: weakref.WeakKeyDictionary[Request, weakref.ref[Engine]] = weakref.WeakKeyDictionary()  # the last one


@dataclass(eq=False)
class _Turn:
    """A step under way, kept until all of it is told: one that an interrupt broke off goes on where it was.

    Attributes:
        requests: Those picked.
        before: Steps taken by, and tokens of the step of, those that have started.
        called: Shapes of the latents of those whose `on_step` has been called.
        seen: Those that were looked at after their step.
        failures: What requests failed from.
        previews: Pictures of requests that are due one.
    """

    requests: list[Request]
    before: dict[Request, tuple[int, int]] = field(default_factory=dict)
    called: dict[Request, torch.Size] = field(default_factory=dict)
    seen: set[Request] = field(default_factory=set)
    failures: dict[Request, Exception] = field(default_factory=dict)
    previews: dict[Request, Any] = field(default_factory=dict)


class Engine:
    """Steps the requests that it was given, some of them at a time, until each is done.

    What a request is stepped with never changes its picture, so requests may come, be cancelled, fail and finish at any
    step without a trace in the others. `add` and `cancel` may be called from any thread; `step` and `run` from one.

    Args:
        denoiser: Computes a step of a set of requests.
        max_tokens: Tokens of one pass, the branches of guidance counted together. A request that is larger runs alone.
            No limit if None. When memory runs out in a pass, the engine halves it, logs that, and tries again.
        max_requests: Requests of one pass; no limit if None.
        policy: "fair" (the fewest tokens so far goes first), "fifo" or "priority"; see `Scheduler`.
        max_request_tokens: Refuse requests of which one step has more tokens; no limit if None.
        decode: Makes a tensor of a request's latents `(image_tokens, channels)`, without waiting for the device. Runs
            beside the steps where the device can.
        to_image: Makes of that tensor what events carry; may wait for the device.
        preview_every: Give every so many steps a preview of the clean picture as estimated by then; 0 for none. Needs
            `decode`.

    Raises:
        TypeError: a limit that is no whole number, or a function that is none.
        ValueError: a limit below 1, an unknown policy, or previews that cannot be.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        max_tokens: int | None = None,
        max_requests: int | None = None,
        policy: Policy = "fair",
        max_request_tokens: int | None = None,
        decode: Callable[[Request, Tensor], Tensor] | None = None,
        to_image: Callable[[Tensor], Any] | None = None,
        preview_every: int = 0,
    ) -> None:
        if max_request_tokens is not None:
            whole("max_request_tokens", max_request_tokens, 1, ", or None for no limit")
        if whole("preview_every", preview_every, 0, ", where 0 gives no previews") and decode is None:
            raise ValueError(f"`preview_every` is {preview_every}: previews need `decode`.")
        for name, function in (("decode", decode), ("to_image", to_image)):
            if function is not None and not callable(function):
                raise TypeError(f"`{name}` is {function!r}: give a function, or None.")
        self.denoiser = denoiser
        self.max_request_tokens = max_request_tokens
        self.preview_every = preview_every
        self._decode = decode
        self._to_image = to_image or (lambda tensor: tensor)
        self._scheduler: Scheduler[Request] = Scheduler(max_tokens, max_requests, policy)
        self._lock = Lock()
        self._step_lock = Lock()  # held while a step is under way
        self._turn: _Turn | None = None  # the step under way
        self._held = Held()  # of the step under way
        self._done: list[Request] = []  # that have taken their last step, and are not being decoded yet
        self._events: deque[Event] = deque()
        self._started: set[Request] = set()
        self._ahead: dict[Request, Pending[Any]] = {}  # contexts that are being made for requests that wait
        self._decoding: list[tuple[Request, Pending[Tensor]]] = []
        self._side = SideStream(denoiser.device)

    @property
    def max_tokens(self) -> int | None:
        """Tokens of one pass; less than it was given once memory has run out."""
        return self._scheduler.max_tokens

    @property
    def requests(self) -> list[Request]:
        """Those that have steps before them, in the order in which the next ones are chosen."""
        with self._lock:
            return self._scheduler.order()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do and nothing to tell."""
        with self._lock:  # or a request that another thread cancels could be gone and its event not there yet
            return not (len(self._scheduler) or self._turn or self._events or self._done or self._decoding)

    def add(self, request: Request) -> Request:
        """Let a request take part from the next step on. From any thread.

        Returns:
            The request.

        Raises:
            TypeError: if it is no request.
            ValueError: if it is finished, is here or in another engine already, needs a branch that is missing, or is
                too large.
        """
        self._check(request)
        with Held(), self._lock:
            self._scheduler.add(request)
            _engine_of[request] = weakref.ref(self)
            self._tell("queued", request)
        return request

    def _check(self, request: Request) -> None:
        """See that a request may be added, as far as it alone can tell."""
        if not isinstance(request, Request):
            raise TypeError(f"`request` is a {type(request).__name__}: give a Request, as `make_requests` makes them.")
        if request.finished:
            raise ValueError(f"{request} is {request.status}: make a new one.")
        other = _engine_of[request]() if request in _engine_of else None
        if other is not None and other is not self and request in other._scheduler:
            raise ValueError(f"{request} is in another engine: it takes one step at a time. Make a new one.")
        self.denoiser.check(request)
        largest = max(request.tokens_of(step) for step in range(request.step, request.steps))
        if self.max_request_tokens is not None and largest > self.max_request_tokens:
            raise ValueError(
                f"{request} does not fit: a step of it has {largest} tokens ({request.text_tokens} of text and"
                f" {request.grid[0]} x {request.grid[1]} of image in each branch), and `max_request_tokens` is"
                f" {self.max_request_tokens}. Ask for a smaller picture or a shorter caption."
            )

    def cancel(self, request: Request | str) -> bool:
        """Give up a request, or the oldest unfinished one with this id. From any thread.

        Returns:
            Whether there was one to give up; if not, it is finished or was never here.

        Raises:
            TypeError: if it is neither a request nor an id.
        """
        if not isinstance(request, (Request, str)):
            raise TypeError(f"`request` is a {type(request).__name__}: give a Request, or the id of one.")
        with Held(), self._lock:
            if isinstance(request, str):
                named = [one for one in self._scheduler.jobs if one.id == request]
                if not named:
                    return False
                request = named[0]
            if request not in self._scheduler:
                return False
            request.cancelled = True
            self._leave(request, "cancelled")
        return True

    def step(self) -> list[Event]:
        """Let the next set of requests take a step, or go on with one that was interrupted.

        Returns:
            What has happened since the last call, oldest first; empty if the engine is idle.

        Raises:
            RuntimeError: if a step is under way: in another thread, or the one that has called back.
        """
        self._work()
        return self._take(len(self._events))

    def run(self) -> Iterator[Event]:
        """Step until the engine is idle. It may be left at any event, or interrupted, and called again.

        No event and no step is lost or comes twice; an `on_step` that was interrupted itself is not called again.

        Yields:
            What happens, in order.

        Raises:
            RuntimeError: as `step`.
        """
        while True:
            while self._events:
                yield self._take(1)[0]
            if self.idle:
                return
            self._work()

    def complete(self, requests: Sequence[Request]) -> None:
        """Add requests and step until the engine is idle.

        Raises:
            ValueError: as `add`; then none has been added.
            Exception: that of the first request that failed, once the others are done.
        """
        if not isinstance(requests, Sequence):
            raise TypeError(f"`requests` is a {type(requests).__name__}: give a list of requests.")
        for request in requests:
            self._check(request)
        here = set(self.requests)
        if len(set(requests)) != len(requests) or here & set(requests):
            raise ValueError("`requests` holds a request twice, or one that has been added already.")
        with Held():
            for request in requests:
                self.add(request)
        errors = [event.error for event in self.run() if event.error is not None]
        if errors:
            raise errors[0]

    def advance(self, requests: Sequence[Request]) -> dict[Request, Exception]:
        """Take one step of exactly these requests, in as many passes as the budget asks for.

        A pass that fails is taken again in halves, so that a request that cannot be stepped fails alone.

        Returns:
            What each request failed from that did not take its step; empty if all did.

        Raises:
            ValueError: if a request occurs twice.
        """
        if len(set(requests)) != len(requests):
            raise ValueError("`requests` holds a request twice: a request takes one step at a time.")
        failures: dict[Request, Exception] = {}
        rest = list(requests)
        while rest:
            count = self._fitting(rest)
            failures |= self._pass(rest[:count])
            rest = rest[count:]
        return failures

    def _work(self) -> None:
        """One step: pick, start, advance, look at the outcome, tell.

        An interrupt from the keyboard comes through where captions, passes, callbacks and pictures are made, and is
        held back between, so that what is made and what is told of it stay in step.
        """
        with Held() as held:
            if not self._step_lock.acquire(blocking=False):
                raise RuntimeError(
                    "a step is under way: call `step` and `run` from one thread, and not from what the engine calls"
                    " back; `add` and `cancel` may be called from anywhere."
                )
            try:
                self._held = held
                turn = self._turn or self._pick()
                for request in turn.requests:
                    if request not in turn.before and self._start(request):
                        turn.before[request] = (request.step, request.tokens)
                with held.let_through():
                    turn.failures.update(self.advance(self._waiting(turn)))
                self._prepare_ahead()
                for request in turn.before:
                    if request not in turn.failures and request not in turn.seen:
                        try:
                            self._look(request, turn)
                        except Exception as error:
                            turn.failures[request] = error
                        turn.seen.add(request)
                self._settle(turn)
                while self._done:
                    self._decode_done(self._done[0])
                    del self._done[0]
                self._tell_decoded()
            finally:
                self._step_lock.release()

    def _pick(self) -> _Turn:
        """Begin a step."""
        with self._lock:
            for request in self._scheduler.jobs:
                if request.cancelled:  # by its attribute; `cancel` has the others leave at once
                    self._leave(request, "cancelled")
            self._turn = _Turn(self._scheduler.pick())
            return self._turn

    def _waiting(self, turn: _Turn) -> list[Request]:
        """Those that have started and not taken the step yet: all of them, but for a step that was interrupted."""
        return [
            request
            for request, (step, _) in turn.before.items()
            if request.step == step and request not in turn.failures and request in self._scheduler
        ]

    def _settle(self, turn: _Turn) -> None:
        """Count and tell what became of the requests of a step."""
        with self._lock:
            self._turn = None
            for request in turn.requests:
                if request not in self._scheduler:  # cancelled meanwhile
                    request.release()
            here = [request for request in turn.before if request in self._scheduler]  # not cancelled meanwhile
            self._scheduler.ran(here, [turn.before[request][1] for request in here])
            for request in here:
                if request in turn.failures:
                    self._leave(request, "failed", turn.failures[request])
                    continue
                self._tell("step", request, image=turn.previews.get(request))
                if request.status == "done":
                    self._scheduler.remove(request)
                    self._done.append(request)

    def _start(self, request: Request) -> bool:
        """Make the contexts of a request that comes to its first step; whether that went well."""
        if request not in self._scheduler:
            return False
        if request in self._started:
            return not request.cancelled
        try:
            if request.conditional is None and request.prepare is not None:
                with self._held.let_through():
                    pending = self._ahead.pop(request, None) or Pending(self._retry(request.prepare))
                    contexts = pending.take()
                request.begin(*contexts)
        except Exception as error:
            with self._lock:
                if request in self._scheduler:
                    self._leave(request, "failed", error)
            return False
        with self._lock:
            if request not in self._scheduler:
                return False  # cancelled meanwhile: `_settle` lets go of its contexts
            self._started.add(request)
            self._tell("started", request)
        return True

    def _prepare_ahead(self) -> None:
        """While the device steps, make the contexts of the request that is to start next."""
        if self._side.stream is None or self._ahead:
            return
        with self._lock:
            waiting = (request for request in self._scheduler.order() if request.conditional is None)
            request = next(waiting, None)
        if request is not None and request.prepare is not None:
            try:
                with self._held.let_through():
                    self._ahead[request] = self._side.run(request.prepare)
            except Exception as error:  # its own start meets it again, and tells
                logger.debug("%s could not be prepared ahead: %s", request, error)

    def _fitting(self, requests: Sequence[Request]) -> int:
        """How many of the first requests fit in one pass."""
        if self.max_tokens is None:
            return len(requests)
        count, tokens = 0, 0
        for request in requests:
            tokens += request.tokens
            if count and tokens > self.max_tokens:
                break
            count += 1
        return count

    def _pass(self, requests: list[Request]) -> dict[Request, Exception]:
        failure = None
        try:
            self.denoiser.step(requests)
        except Exception as error:
            failure = error
        if failure is None:
            return {}
        traceback.clear_frames(failure.__traceback__)  # they hold the pass's tensors
        if out_of_memory(failure):
            self._halve_budget(requests)
        if len(requests) == 1:
            return {requests[0]: failure}
        half = len(requests) // 2
        return self._pass(requests[:half]) | self._pass(requests[half:])

    def _halve_budget(self, requests: Sequence[Request]) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        tokens = sum(request.tokens for request in requests)
        if self.max_tokens is not None and tokens > self.max_tokens:
            return  # such as one large request alone: it says nothing of passes within the budget
        budget = max(1, tokens // 2)
        logger.warning(
            "Out of memory in a pass of %d requests with %d tokens: from now on a pass has at most %d.",
            len(requests), tokens, budget,
        )  # fmt: skip
        self._scheduler.max_tokens = budget

    def _look(self, request: Request, turn: _Turn) -> None:
        """Call a request back after its step, see that its latents are finite, and add its preview if one is due."""
        if request.on_step is not None:
            if request not in turn.called:
                with self._held.let_through():
                    turn.called[request] = request.latents.shape
                    request.on_step(request)
            if request.error is not None:
                raise request.error
            request.check_latents(turn.called[request])
        # On a device each look would wait for it: there the last step tells.
        if request.status == "done" or request.latents.device.type == "cpu":
            request.check()
        due = self.preview_every and request.step % self.preview_every == 0 and request.status != "done"
        if due and self._decode is not None:
            with self._held.let_through():
                turn.previews[request] = self._to_image(self._decode(request, request.estimate))

    def _decode_done(self, request: Request) -> None:
        request.release()
        self._started.discard(request)
        decode = self._decode
        if decode is None:
            self._tell("finished", request)
            return
        try:
            with self._held.let_through():
                pending = self._side.run(lambda: self._retry(lambda: decode(request, request.latents)), request.latents)
        except Exception as error:
            request.error = error
            self._tell("failed", request, error=error)
        else:
            self._decoding.append((request, pending))

    def _tell_decoded(self) -> None:
        """Tell of pictures that are decoded; where nothing else is left to do, wait for them."""
        for one in list(self._decoding):
            request, pending = one
            if not pending.ready and len(self._scheduler):
                continue
            try:
                with self._held.let_through():
                    image = self._to_image(pending.take())
            except Exception as error:
                request.error = error
                self._tell("failed", request, error=error)
            else:
                self._tell("finished", request, image=image)
            self._decoding.remove(one)

    def _leave(self, request: Request, kind: Kind, error: Exception | None = None) -> None:
        """Give up a request; the caller holds the lock."""
        request.error = error
        self._scheduler.remove(request)
        self._started.discard(request)
        self._ahead.pop(request, None)
        # Or the step under way would be left without its contexts.
        if self._turn is None or request not in self._turn.requests:
            request.release()
        self._tell(kind, request, error=error)

    def _tell(self, kind: Kind, request: Request, image: Any = None, error: Exception | None = None) -> None:
        self._events.append(Event(kind, request, request.step, image, error))

    def _take(self, count: int) -> list[Event]:
        """So many of the oldest events, which stay where an interrupt comes before they are handed over."""
        taken: list[Event] = []
        try:
            with Held():
                for _ in range(count):
                    taken.append(self._events.popleft())
            return taken
        except BaseException:
            self._events.extendleft(reversed(taken))
            raise

    def _retry(self, work: Callable[[], T]) -> T:
        """The outcome of `work`, tried once more if memory runs out, with what can be freed for it."""
        try:
            return work()
        except Exception as error:
            if not out_of_memory(error):
                raise
        self.denoiser.give_up_graphs("memory ran out")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return work()

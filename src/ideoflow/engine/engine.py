"""The engine: requests come and go at every step; a scheduler picks those that share the next one."""

from __future__ import annotations

import logging
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Condition, Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..checks import whole
from .decoder import Decoder
from .denoiser import Denoiser
from .events import Event, Kind
from .out_of_memory import out_of_memory
from .overlap import Pending, SideStream
from .request import Request, Step
from .scheduler import Policy, Scheduler
from .uninterrupted import uninterrupted

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Engine:
    """Steps the requests that it was given, some of them at a time, until each is done.

    What a request is stepped with never changes its picture, so requests may come, be cancelled, fail and finish at any
    step without a trace in the others. `add` and `cancel` may be called from any thread; `step` and `run` from one.

    A step computes without changing a request, then writes all that it computed at once, then tells. So an interrupt
    from the keyboard may come anywhere: a step that is not written is taken again from its beginning, and what is
    written stays in a queue until it is told.

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
        preview_every: Give every so many steps a preview of the clean picture as estimated by then, of requests that
            have no interval of their own; 0 for none. Needs `decode` or `preview`.
        preview: Makes the tensor of a preview, as `decode` that of a picture, and in its place.

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
        preview: Callable[[Request, Tensor], Tensor] | None = None,
    ) -> None:
        if max_request_tokens is not None:
            whole("max_request_tokens", max_request_tokens, 1, ", or None for no limit")
        if whole("preview_every", preview_every, 0, ", where 0 gives no previews") and not (decode or preview):
            raise ValueError(f"`preview_every` is {preview_every}: previews need `decode` or `preview`.")
        for name, function in (("decode", decode), ("to_image", to_image), ("preview", preview)):
            if function is not None and not callable(function):
                raise TypeError(f"`{name}` is {function!r}: give a function, or None.")
        self.denoiser = denoiser
        self.max_request_tokens = max_request_tokens
        self.preview_every = preview_every
        self._scheduler: Scheduler[Request] = Scheduler(max_tokens, max_requests, policy)
        self._lock = Lock()  # of the scheduler, the requests' state and the events, which several threads change
        self._changed = Condition(self._lock)  # told of requests that come or leave, and of the end
        self._closed = False
        self._step_lock = Lock()  # held while a step is under way
        self._stepped: deque[Request] = deque()  # requests whose step is written and not told yet
        self._called: Request | None = None  # the first of these, once its `on_step` has been called
        self._events: deque[Event] = deque()
        self._ahead: tuple[Request, Pending[Any]] | None = None  # contexts of the request that is to start next
        self._side = SideStream(denoiser.device)
        self._decoder = Decoder(self._retried(decode), to_image, self._side, self._retried(preview))

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
            return not self._busy

    @property
    def _busy(self) -> bool:
        return bool(len(self._scheduler) or self._decoder.waiting or self._events)

    def add(self, request: Request) -> Request:
        """Let a request take part from the next step on. From any thread.

        Returns:
            The request.

        Raises:
            TypeError: if it is no request.
            ValueError: if it is finished, is here or in another engine already, needs a branch that is missing, is too
                large, or asks for previews that this engine cannot make.
        """
        self._check(request)
        with self._change():
            self._scheduler.add(request)
            request.engine, request.started = weakref.ref(self), False
            self._tell("queued", request)
        return request

    def _check(self, request: Request) -> None:
        """See that a request may be added, as far as it alone can tell."""
        if not isinstance(request, Request):
            raise TypeError(f"`request` is a {type(request).__name__}: give a Request, as `make_requests` makes them.")
        if request.finished:
            raise ValueError(f"{request} is {request.status}: make a new one.")
        if request.engine is not None and request.engine() not in (None, self):
            raise ValueError(f"{request} is in another engine: it takes one step at a time. Make a new one.")
        if request.preview_every and not self._decoder.previews:
            raise ValueError(
                f"{request} has a `preview_every` of {request.preview_every}, and this engine makes no pictures: give"
                ' `pipe.engine` an `output_type` of pictures, such as "pil".'
            )
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
        with self._change():
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
        """Let the next set of requests take a step, or tell of one that was interrupted after it was written.

        Returns:
            What has happened since the last call, oldest first; empty if the engine is idle.

        Raises:
            RuntimeError: if a step is under way: in another thread, or the one that has called back.
        """
        self._work()
        return self._take(len(self._events))

    def run(self, wait: bool = False) -> Iterator[Event]:
        """Step until the engine is idle. It may be left at any event, or interrupted, and called again.

        No event and no step is lost or comes twice. An `on_step` that was interrupted itself has been called: its step
        is taken, and it is not called again for it.

        Args:
            wait: Where there is nothing to do, wait for requests, until `close` is called and the last one is done.

        Yields:
            What happens, in order.

        Raises:
            RuntimeError: as `step`.
        """
        while True:
            while self._events:
                yield self._take(1)[0]
            if self.idle:
                if not wait or not self.wait():
                    return
            else:
                self._work()

    def close(self) -> None:
        """Have `wait` and `run(wait=True)` end once the requests that are here are done. From any thread."""
        with self._change():
            self._closed = True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is something to do or to tell. From one thread, between calls of `step`.

        Args:
            timeout: The most seconds to wait; None for no limit.

        Returns:
            Whether there is something; if not, the time has passed, or the engine is closed and idle.
        """
        with self._lock:
            self._changed.wait_for(lambda: self._busy or self._closed, timeout)
            return self._busy

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
        with uninterrupted():
            for request in requests:
                self.add(request)
        errors = [event.error for event in self.run() if event.error is not None]
        if errors:
            raise errors[0]

    def advance(self, requests: Sequence[Request]) -> dict[Request, Exception]:
        """Take one step of exactly these requests, in as many passes as the budget asks for.

        They need not have been added; events tell only of those that were. Those that were given up are left out. A
        pass that fails is taken again in halves, so that a request that cannot be stepped fails alone.

        Returns:
            What each request failed from; empty if all took their step.

        Raises:
            ValueError: if a request occurs twice.
            RuntimeError: as `step`.
        """
        if len(set(requests)) != len(requests):
            raise ValueError("`requests` holds a request twice: a request takes one step at a time.")
        waiting = list(requests)
        while waiting:
            picked = set(self._work(waiting))
            waiting = [request for request in waiting if request not in picked]
        return {request: request.error for request in requests if request.error is not None}

    def _work(self, requests: Sequence[Request] | None = None) -> list[Request]:
        """One step: pick, start, advance, settle, deliver.

        Args:
            requests: Those to pick from; None for those that were added.

        Returns:
            The requests that were picked; none where an interrupted step had something left to deliver.
        """
        if self._step_lock.locked():
            raise RuntimeError(
                "a step is under way: call `step` and `run` from one thread, and not from what the engine calls"
                " back; `add` and `cancel` may be called from anywhere."
            )
        picked: list[Request] = []
        with self._step_lock:
            if not self._stepped:
                picked = self._pick(requests)
                ready = self._start(picked)
                steps = self._advance(ready)
                self._settle(steps)
            self._deliver()
        return picked

    def _pick(self, requests: Sequence[Request] | None) -> list[Request]:
        """The requests of the step; those that were given up by their attributes leave."""
        with self._change():
            for request in self._scheduler.jobs:
                if request.late and not request.given_up:
                    request.error = TimeoutError(
                        f"{request} passed its deadline after {request.step} of {request.steps} steps."
                    )
                if request.given_up:
                    self._leave(request, "cancelled" if request.error is None else "failed", request.error)
            order = self._scheduler.order() if requests is None else requests
            # Steps that are not computed wait for no pass: they are taken at once, before the next one that is.
            if passing := [one for one in order if one.cache is not None and not one.tokens]:
                return [one for one in passing if one.adapters == passing[0].adapters]
            # Those of other adapters take turns with these: one pass computes with one set.
            return self._scheduler.pick([one for one in order if one.adapters == order[0].adapters])

    def _start(self, requests: Sequence[Request]) -> list[Request]:
        """Make what requests that come to their first step start from, and their contexts; those that can take it."""
        for request in requests:
            edit = request.edit
            try:
                if edit is not None and edit.start is not None and not request.given_up:
                    self.denoiser.retried(partial(edit.start, request))
                    edit.start = None
                for side in request.sides:
                    if side.conditional is None and side.prepare is not None and not request.given_up:
                        side.begin(*self._contexts(side.prepare, side))
            except Exception as error:
                with self._change():
                    self._fail(request, error)
        with self._change():
            for request in requests:
                if request.given_up:  # perhaps while its contexts were made
                    request.release()
                elif request in self._scheduler and not request.started:
                    request.started = True
                    self._tell("started", request)
            return [request for request in requests if not request.given_up]

    def _retried(self, make: Callable[[Request, Tensor], Tensor] | None) -> Callable[[Request, Tensor], Tensor] | None:
        """What makes pictures, tried once more where memory runs out."""
        return None if make is None else lambda *given: self.denoiser.retried(lambda: make(*given))

    def _contexts(self, prepare: Callable[[], T], request: Request) -> T:
        """What `prepare` makes for a request, or has made ahead."""
        ahead = self._ahead
        if ahead is None or ahead[0] is not request:
            return self.denoiser.retried(prepare)
        self._ahead = None
        return ahead[1].take()

    def _advance(self, requests: list[Request]) -> dict[Request, Step | Exception]:
        """Velocity and latents of each request's step, or what it failed from. No request is changed."""
        failure = None
        try:
            return dict(self.denoiser.compute(requests))
        except Exception as error:
            failure = error
        traceback.clear_frames(failure.__traceback__)  # they hold the pass's tensors
        if out_of_memory(failure):
            self._halve_budget(requests)
        if len(requests) == 1:
            return {requests[0]: failure}
        half = len(requests) // 2
        return self._advance(requests[:half]) | self._advance(requests[half:])

    def _settle(self, steps: dict[Request, Step | Exception]) -> None:
        """Write a step into its requests, all at once; but for those that were given up meanwhile."""
        with self._change():
            tokens: dict[Request, int] = {}
            for request, step in steps.items():
                if request.given_up:
                    continue
                if isinstance(step, Exception):
                    self._fail(request, step)
                    continue
                if request in self._scheduler:
                    tokens[request] = request.tokens
                request.take(step)
                self._stepped.append(request)
            if not tokens or any(tokens.values()):  # a step that nothing was computed in is no turn of anybody's
                self._scheduler.ran(list(tokens), list(tokens.values()))

    def _deliver(self) -> None:
        """Call back, tell what has happened, and make pictures of requests that are done."""
        self._prepare_ahead()
        while self._stepped:
            self._conclude(self._stepped[0])
        for request, image, error in self._decoder.pictures(wait=len(self._scheduler) == 0):
            with self._change():
                del self._decoder.waiting[request]
                request.engine, request.error = None, error
                self._tell("finished" if error is None else "failed", request, image, error)

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

    def _conclude(self, request: Request) -> None:
        """Call the first of the stepped requests back, and tell of its step, with a preview if one is due."""
        preview = None
        try:
            preview = self._look(request)
        except Exception as error:
            request.error = None if request.cancelled else error
        with self._change():
            self._stepped.popleft()
            self._called = None
            if request.error is not None:
                self._fail(request, request.error)
            elif request in self._scheduler:  # not cancelled meanwhile
                self._tell("step", request, image=preview)
                if request.status == "done":
                    self._scheduler.remove(request)
                    self._decoder.waiting[request] = None
            if request.finished:
                request.release()

    def _look(self, request: Request) -> Any:
        """Call a request back after its step, see that its latents are finite, and make its preview if one is due."""
        if request.given_up:
            return None
        if request.on_step is not None:
            assert request.velocity is not None
            shape = request.velocity.shape
            if request is not self._called:
                self._called = request
                request.on_step(request)
            if request.error is not None:
                return None
            request.check_latents(shape)
        # On a device each look would wait for it: there the last step tells.
        if request.status == "done" or request.latents.device.type == "cpu":
            request.check()
        every = self.preview_every if request.preview_every is None else request.preview_every
        due = every and request.step % every == 0 and request.status != "done"
        return self._decoder.preview(request) if due and request in self._scheduler else None

    def _prepare_ahead(self) -> None:
        """While the device steps, make the contexts of the request that is to start next."""
        if self._side.stream is None or self._ahead is not None:
            return
        with self._lock:
            waiting = (request for request in self._scheduler.order() if request.conditional is None)
            request = next(waiting, None)
        if request is not None and request.prepare is not None:
            try:
                self._ahead = request, self._side.run(request.prepare)
            except Exception as error:  # its own start meets it again, and tells
                logger.debug("%s could not be prepared ahead: %s", request, error)

    @contextmanager
    def _change(self) -> Iterator[None]:
        """What the block changes is changed for other threads, and for what an interrupt leaves, all at once."""
        with uninterrupted(), self._lock:
            yield
            self._changed.notify_all()

    def _fail(self, request: Request, error: Exception) -> None:
        """Have a request fail, added or not, unless it was cancelled meanwhile; within `_change`."""
        if request in self._scheduler:
            self._leave(request, "failed", error)
        elif not request.cancelled:
            request.error = error

    def _leave(self, request: Request, kind: Kind, error: Exception | None = None) -> None:
        """Give up a request that was added; within `_change`."""
        self._scheduler.remove(request)
        request.engine, request.error = None, error
        if self._ahead is not None and self._ahead[0] is request:
            self._ahead = None
        request.release()
        self._tell(kind, request, error=error)

    def _tell(self, kind: Kind, request: Request, image: Any = None, error: Exception | None = None) -> None:
        self._events.append(Event(kind, request, request.step, image, error))

    def _take(self, count: int) -> list[Event]:
        """So many of the oldest events, which stay where an interrupt comes before they are handed over."""
        taken: list[Event] = []
        try:
            with uninterrupted():
                for _ in range(count):
                    taken.append(self._events.popleft())
            return taken
        except BaseException:
            self._events.extendleft(reversed(taken))
            raise

"""The calls of a pipeline that are under way: each has its own state, whatever thread it runs in."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from ..ops.exclusive import exclusive

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(eq=False)
class Call:
    """One call of a pipeline.

    Attributes:
        attention_kwargs: The argument of that name.
        num_timesteps: Number of its steps; 0 until they are known.
        guidance_scale: Guidance of the step just taken.
        interrupted: Whether it stops after this step.
        thread: The thread that it runs in.
    """

    attention_kwargs: dict[str, Any] | None = None
    num_timesteps: int = 0
    guidance_scale: float | None = None
    interrupted: bool = False
    thread: int = field(default_factory=threading.get_ident)


class Calls:
    """The calls of one pipeline. A copy has calls of its own."""

    def __init__(self) -> None:
        self._under_way: list[Call] = []  # in any thread, the innermost of a thread last
        self._changing: list[int] = []  # threads that change what all calls share
        self._lock = threading.Condition()
        self._ended = threading.local()  # its `call` is the one that ended last in this thread

    def __reduce__(self) -> tuple[type[Calls], tuple[()]]:
        return type(self), ()

    def __len__(self) -> int:
        return len(self._under_way)

    @contextmanager
    def begin(self, attention_kwargs: dict[str, Any] | None) -> Iterator[Call]:
        """A new call, under way while the block runs. It waits for other threads within `between`."""
        call = Call(attention_kwargs)
        with self._lock:
            self._lock.wait_for(self._unchanged)
            self._under_way.append(call)
        try:
            yield call
        finally:
            with self._lock:
                self._under_way.remove(call)
            self._ended.call = call

    @property
    def latest(self) -> Call:
        """The innermost call that is under way in this thread, or else the one that ended here last."""
        here = [call for call in self._all() if call.thread == threading.get_ident()]
        return here[-1] if here else getattr(self._ended, "call", None) or Call()

    def interrupt(self, value: bool) -> None:
        """Stop, or do not stop, the call that is under way in this thread; if there is none, all of them."""
        under_way = self._all()
        here = [call for call in under_way if call.thread == threading.get_ident()]
        for call in here[-1:] or under_way:
            call.interrupted = value

    @contextmanager
    def between(self) -> Iterator[bool]:
        """Change what all calls share: calls of other threads that begin meanwhile wait for the block's end.

        Yields:
            Whether the block may do so: False where a call is under way in another thread.
        """
        thread = threading.get_ident()
        with self._lock:
            # Of two threads that change it, one waits for the other; this one may be in such a block already.
            self._lock.wait_for(self._unchanged)
            free = all(call.thread == thread for call in self._under_way)
            if free:
                self._changing.append(thread)
        try:
            yield free
        finally:
            with self._lock:
                if free:
                    self._changing.remove(thread)
                self._lock.notify_all()

    def _unchanged(self) -> bool:
        """Whether no other thread changes what all calls share."""
        return all(thread == threading.get_ident() for thread in self._changing)

    def _all(self) -> list[Call]:
        with self._lock:
            return list(self._under_way)


def between_calls(method: F) -> F:
    """A method that changes adapters, refused while another thread draws, whose picture would be half of each."""

    @functools.wraps(method)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._calls.between() as free:
            if not free:
                raise RuntimeError(
                    f"`{method.__name__}` would change pictures that another thread is drawing with this pipeline: call"
                    " it between calls. For a strength of each call's own pass `attention_kwargs={'scale': ...}` to"
                    " the call."
                )
            with exclusive(self.transformer, self.unconditional_transformer):
                return method(self, *args, **kwargs)

    return cast(F, guarded)

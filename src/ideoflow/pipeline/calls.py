"""What a call of a pipeline knows of itself while it is under way: each has its own, whatever thread it runs in."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Condition, get_ident
from typing import Any


@dataclass(eq=False)
class Call:
    """One call of a pipeline.

    Attributes:
        attention_kwargs: The argument of that name.
        num_timesteps: Number of its steps; 0 until they are known.
        guidance_scale: Guidance of the step just taken.
        interrupted: Whether it stops after this step.
    """

    attention_kwargs: dict[str, Any] | None = None
    num_timesteps: int = 0
    guidance_scale: float | None = None
    interrupted: bool = False


_Entry = tuple["weakref.ref[Any]", Call]  # a pipeline, and one of its calls

_here: ContextVar[tuple[_Entry, ...]] = ContextVar("calls under way in this thread, the outermost first", default=())
_ended: ContextVar[tuple[_Entry, ...]] = ContextVar("the call that ended last in this thread", default=())
_under_way: list[_Entry] = []  # in any thread
_changing: list[tuple[weakref.ref[Any], int]] = []  # pipelines whose adapters a thread is changing, and the thread
_lock = Condition()


@contextmanager
def call_of(pipeline: Any, attention_kwargs: dict[str, Any] | None) -> Iterator[Call]:
    """A new call of `pipeline`, under way while the block runs."""
    call = Call(attention_kwargs)
    entry = (weakref.ref(pipeline), call)
    token = _here.set((*_here.get(), entry))
    with _lock:
        _lock.wait_for(lambda: not _is_changing_elsewhere(pipeline))
        _under_way.append(entry)
    try:
        yield call
    finally:
        with _lock:
            _under_way.remove(entry)
        _here.reset(token)
        _ended.set((entry,))


def latest_call(pipeline: Any) -> Call:
    """The innermost call of `pipeline` that is under way in this thread, or else the one that ended here last."""
    own = _innermost(pipeline, (*_ended.get(), *_here.get()))
    return own or Call()


def interrupt(pipeline: Any, value: bool) -> None:
    """Stop, or do not stop, the call of `pipeline` that is under way in this thread; if there is none, all of them."""
    own = _innermost(pipeline, _here.get())
    with _lock:
        others = [call for reference, call in _under_way if reference() is pipeline]
    for call in others if own is None else [own]:
        call.interrupted = value


@contextmanager
def between_calls(pipeline: Any) -> Iterator[bool]:
    """Change what all calls of `pipeline` share: calls of other threads that begin meanwhile wait for the block's end.

    Yields:
        Whether the block may do so: False where a call is under way that this thread is not within.
    """
    own = [call for _, call in _here.get()]
    entry = (weakref.ref(pipeline), get_ident())
    with _lock:
        # Of two threads that change it, one waits for the other; this one may be in such a block already.
        _lock.wait_for(lambda: not _is_changing_elsewhere(pipeline))
        free = not any(reference() is pipeline and call not in own for reference, call in _under_way)
        if free:
            _changing.append(entry)
    try:
        yield free
    finally:
        with _lock:
            if free:
                _changing.remove(entry)
            _lock.notify_all()


def _is_changing_elsewhere(pipeline: Any) -> bool:
    return any(reference() is pipeline and thread != get_ident() for reference, thread in _changing)


def _innermost(pipeline: Any, entries: tuple[_Entry, ...]) -> Call | None:
    return next((call for reference, call in reversed(entries) if reference() is pipeline), None)

"""Captions that are written for clients: in turn, by one rule for every route that takes words.

A language model may take minutes. So many captions are written at a time, others wait for their turn, more are told to
come again; a client that goes away gives up its place, and the connection to the language model with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from ..captions.sent_prompt import ReadPrompt
from ..captions.writing.giving_up import Wait
from .jobs import Jobs
from .preparing import Preparing

AT_ONCE = 8  # captions that are written at a time
MOST = 64  # of those and of others that wait for their turn

Result = TypeVar("Result")


def writing_turns() -> Preparing:
    """Where captions are written in turn."""
    return Preparing(MOST, AT_ONCE, "captions are being written or wait for their turn", "writers_busy")


async def in_turn(request: Request, work: Callable[[], Result]) -> Result:
    """What a call gives that has a caption written.

    Raises:
        ApiError: with status 429 where too many wait, 503 where the server stops; and what the call raises.
    """
    wait = Wait()
    turns: Preparing = request.app.state.writing
    found: Result = await turns.run(request, partial(wait.run, work), wait.give_up)
    return found


async def read_in_turn(
    request: Request,
    jobs: Jobs,
    prompt: str | Mapping[str, Any],
    size: str | None,
    *,
    drop_unknown: bool = False,
    field: str = "caption",
    write: bool = True,
) -> ReadPrompt:
    """A client's prompt as read; arguments as of `Jobs.read`. Only words that are written of wait for a turn.

    Raises:
        ApiError: as of `Jobs.read` and `in_turn`.
    """
    read = partial(jobs.read, prompt, size, drop_unknown=drop_unknown, field=field)
    found = await run_in_threadpool(read, write=False)
    if found.was != "wrapped" or not write or jobs.write is None:
        return found
    return await in_turn(request, read)

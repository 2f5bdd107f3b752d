"""Jobs that take work before they can be accepted: a few at a time, in threads that a stop does not wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from threading import Thread
from typing import Any

from fastapi import Request

from .api_errors import ApiError

AT_ONCE = 4  # pictures that are unpacked, and encoded by the model, at a time


class Preparing:
    """Runs calls that read pictures and make requests of them.

    Args:
        most: calls that may be here; more are told 429.
    """

    def __init__(self, most: int) -> None:
        self._most, self._here = most, 0
        self._free = asyncio.Semaphore(AT_ONCE)

    async def run(self, request: Request, work: Callable[[], Any]) -> Any:
        """What a call gives, once it has had its turn.

        Raises:
            ApiError: with status 429 where too many wait, 503 where the server stops, 499 where the client has gone
                before its turn; and what the call raises.
        """
        if self._here >= self._most:
            raise ApiError(
                429,
                f"{self._here} changes of pictures are being prepared: ask again in a moment.",
                code="queue_full",
                headers={"Retry-After": "5"},
            )
        self._here += 1
        stops = asyncio.ensure_future(request.app.state.stopping.wait())
        try:
            async with self._free:
                if await request.is_disconnected():
                    raise ApiError(499, "The client has gone.")
                coming = None if stops.done() else asyncio.wrap_future(_apart(work))
                if coming is not None:
                    await asyncio.wait([coming, stops], return_when=asyncio.FIRST_COMPLETED)
                if coming is None or not coming.done():
                    raise ApiError(
                        503, "The server is stopping: ask again in a moment.", code="stopping",
                        headers={"Retry-After": "5"},
                    )  # fmt: skip
                return coming.result()
        finally:
            stops.cancel()
            self._here -= 1


def _apart(work: Callable[[], Any]) -> Future[Any]:
    """What a call will give, in a thread that does not keep the process from ending."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            found = work()
        except BaseException as error:  # told to whoever waits
            with suppress(InvalidStateError):
                future.set_exception(error)
        else:
            with suppress(InvalidStateError):  # nobody waits any longer
                future.set_result(found)

    Thread(target=run, name="preparing", daemon=True).start()
    return future

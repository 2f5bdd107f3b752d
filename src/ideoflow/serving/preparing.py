"""Work that takes long before a request can be answered: a few calls at a time, in threads that nobody else needs.

Pictures that jobs change are unpacked here, and captions are written here of clients' words, which may take a language
model minutes. Threads of the server's own pool, which all other requests need, are never held by either. Pictures are
encoded elsewhere: by the engine, between its steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from threading import Thread
from typing import Any

from fastapi import Request

from .api_errors import ApiError

AT_ONCE = 4  # pictures that are unpacked at a time


class Preparing:
    """Runs calls that take long, in turn.

    Args:
        most: calls that may be here; more are told 429.
        at_once: of those, how many run at a time.
        what: what they do, in words, with their number before it.
        code: of the error for those that are too many.
    """

    def __init__(
        self,
        most: int,
        at_once: int = AT_ONCE,
        what: str = "changes of pictures are being prepared",
        code: str = "queue_full",
    ) -> None:
        self._most, self._here = most, 0
        self._what, self._code = what, code
        self._free = asyncio.Semaphore(at_once)

    async def run(self, request: Request, work: Callable[[], Any], give_up: Callable[[], None] | None = None) -> Any:
        """What a call gives, once it has had its turn.

        Args:
            request: whose client waits for it.
            work: the call.
            give_up: has the call end soon where nobody waits for it any longer; None for a call that goes on to its
                end, and is waited for unless the server stops.

        Raises:
            ApiError: with status 429 where too many wait, 503 where the server stops, 499 where the client has gone;
                and what the call raises.
        """
        if self._here >= self._most:
            raise ApiError(
                429,
                f"{self._here} {self._what}: ask again in a moment.",
                code=self._code,
                headers={"Retry-After": "5"},
            )
        self._here += 1
        stops = asyncio.ensure_future(request.app.state.stopping.wait())
        gone = asyncio.ensure_future(has_gone(request))
        turn = asyncio.ensure_future(self._free.acquire())
        coming: asyncio.Future[Any] | None = None
        try:
            await asyncio.wait([turn, stops, gone], return_when=asyncio.FIRST_COMPLETED)
            if turn.done() and not stops.done() and not gone.done():
                coming = asyncio.wrap_future(self._apart(work))
                ends = [stops] if give_up is None else [stops, gone]
                await asyncio.wait([coming, *ends], return_when=asyncio.FIRST_COMPLETED)
            if coming is not None and coming.done():
                return coming.result()
            if gone.done() and not stops.done():
                raise ApiError(499, "The client has gone.")
            raise ApiError(
                503, "The server is stopping: ask again in a moment.", code="stopping", headers={"Retry-After": "5"}
            )
        finally:
            self._here -= 1
            stops.cancel()
            gone.cancel()
            if coming is None and not turn.cancel():
                self._free.release()  # a turn that was not taken
            if coming is not None and not coming.done():
                coming.add_done_callback(_heard)
                if give_up is not None:
                    give_up()

    def _apart(self, work: Callable[[], Any]) -> Future[Any]:
        """What a call will give, in a thread that does not keep the process from ending; its turn ends with it."""
        future: Future[Any] = Future()
        loop = asyncio.get_running_loop()

        def run() -> None:
            try:
                found = work()
            except BaseException as error:  # told to whoever waits
                with suppress(InvalidStateError):
                    future.set_exception(error)
            else:
                with suppress(InvalidStateError):  # nobody waits any longer
                    future.set_result(found)
            finally:
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(self._free.release)

        Thread(target=run, name="preparing", daemon=True).start()
        return future


async def has_gone(request: Request) -> None:
    """Wait until a client goes away; its request has been read to the end."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _heard(future: asyncio.Future[Any]) -> None:
    """Take note of how a call has ended that nobody waits for, so that no log tells of it."""
    if not future.cancelled():
        future.exception()

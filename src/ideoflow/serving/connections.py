"""Connections: how many may be open, how long a request may take to come, and what is no HTTP, in our errors' shape."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .api_errors import ApiError
from .guard import BODY_SECONDS, OVER_LIMIT, SECURITY_HEADERS

SPARE = 64  # connections beyond the limit that are told so; still more are closed unheard
HEAD_SECONDS = 20  # from a connection, or the first byte of its next request, to the end of the head
LAST_SECONDS = BODY_SECONDS + 15  # from there to the end of a body, of which the guard has told before


class Connection(H11Protocol):
    """A connection as uvicorn serves it, within bounds.

    Args:
        most: connections of this server that may be open at a time.
    """

    def __init__(self, *args: Any, most: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self._most = most
        self._awaited: str | None = None  # the part of a request that has not come to its end
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; one connection too many has its first request answered with 503."""
        super().connection_made(transport)
        if len(self.connections) > self._most + SPARE:
            transport.abort()
            return
        if len(self.connections) > self._most:
            self.app_state = {**self.app_state, OVER_LIMIT: True}
        self._wait_for_the_rest()

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        super().data_received(data)
        self._wait_for_the_rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(ApiError(400, "This is no request of HTTP/1.1 that can be read.", code="bad_http"))

    def _wait_for_the_rest(self) -> None:
        state = self.conn.their_state
        awaited = "head" if state is h11.IDLE else "body" if state is h11.SEND_BODY else None
        if awaited == self._awaited:
            return
        self._awaited = awaited
        if self._timer is not None:
            self._timer.cancel()
        seconds = HEAD_SECONDS if awaited == "head" else LAST_SECONDS
        self._timer = None if awaited is None else self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        if self._awaited == "head" and self.conn.trailing_data[0]:
            message = f"The request's head has not come within {HEAD_SECONDS} seconds."
            self._refuse(ApiError(408, message, code="head_too_slow"))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answer by itself, and close: there is no request that the application could be given."""
        if not self.transport.is_closing() and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body).encode()
            lines = [
                f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}".encode(),
                b"content-type: application/json",
                b"content-length: %d" % len(body),
                b"connection: close",
                *(name + b": " + value for name, value in SECURITY_HEADERS),
            ]
            self.transport.write(b"\r\n".join([*lines, b"", body]))
        self.transport.close()

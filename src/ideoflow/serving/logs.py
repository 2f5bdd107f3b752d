"""The server's log: one line for each answered request and each job that ends, for people or as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..checks import printable
from .api_errors import ApiError, answer
from .metrics import Metrics

METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH")
logger = logging.getLogger("ideoflow.serving")


class Plain(logging.Formatter):
    """A line for people: the time, the level where it is a warning or worse, and the message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with the traceback of an error below it."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        line = f"{clock} {level}{printable(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class Json(logging.Formatter):
    """A line for programs: a JSON object with time, level, message and the fields of the record."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields: dict[str, Any] = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def set_up(as_json: bool) -> None:
    """Write the log to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(Json() if as_json else Plain())
    for name in ("ideoflow", "uvicorn"):
        own = logging.getLogger(name)
        own.handlers, own.propagate = [handler], False
        own.setLevel(logging.INFO)
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


class AccessLog:
    """Counts every answer and writes a line of it: method, path, status, milliseconds, and the job that it is about."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, and write its line once it is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        scope.setdefault("state", {})
        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "OTHER"  # or clients could make up thousands
            self._metrics.count_request(method, route, status)
            seconds = time.perf_counter() - started
            job = scope["state"].get("job")
            quiet = status < 400 and (route.startswith("/health") or route in ("/metrics", "other"))
            fields = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "seconds": round(seconds, 4),
                "job": job,
            }
            about = f" {job}" if job else ""
            logger.log(
                logging.DEBUG if quiet else logging.INFO,
                "%s %s %s %.0f ms%s",
                scope["method"],
                scope["path"][:200],
                status or "gone",
                seconds * 1000,
                about,
                extra={"fields": fields},
            )


class OwnFailures:
    """Answers what failed in the application with an error that tells nothing of the inside; the log does.

    Where the server stops and has waited long enough, it ends what is still being answered.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:  # by uvicorn, which would answer in words of its own
            if not begun:
                message = "The server is stopping: ask again in a moment."
                await answer(ApiError(503, message, code="stopping", headers={"Retry-After": "5"}), send)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"][:200])
            if begun:
                raise  # in the middle of an answer, which ends here
            await answer(ApiError(500, "The server has met an error of its own, of which its log tells more."), send)

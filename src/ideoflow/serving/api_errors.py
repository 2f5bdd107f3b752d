"""Errors as clients get them, in the shape of OpenAI's, and never with a traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from starlette.types import Send

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    502: "caption_writer_error",
    503: "service_unavailable_error",
    507: "storage_error",
}


class ErrorDetail(BaseModel):
    """What went wrong: in words, and for programs."""

    message: str
    type: str
    code: str | None = None
    param: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


class ApiError(Exception):
    """An error that a client is told.

    Attributes:
        status: HTTP status.
        message: what was given, what is allowed, what to do.
        code: a word for programs.
        param: name of the field that is wrong.
        headers: headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        detail = ErrorDetail(
            message=self.message, type=TYPES.get(self.status, "server_error"), code=self.code, param=self.param
        )
        return ErrorBody(error=detail).model_dump()


def invalid_caption(error: Exception, param: str) -> ApiError:
    """What a client is told of a caption, in the field of this name, that cannot be read."""
    return ApiError(400, str(error), code="invalid_caption", param=param)


async def answer(error: ApiError, send: Send) -> None:
    """Send an error as JSON."""
    body = json.dumps(error.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of a route's errors; those that any route may answer are among them."""
    always = (400, 401, 403, 408, 413, 415, 431, 500, 503, 507)
    return {status: {"model": ErrorBody} for status in sorted({*always, *statuses})}

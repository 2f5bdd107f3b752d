"""What every request goes through before a route sees it: whose it is, where it comes from, and how large it is."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api_errors import ApiError
from .server_settings import ServerSettings

MOST_HEADERS = 32 * 1024  # bytes of all headers but the key
POURED = 64 * 2**20  # bytes of a body that is too large which are read before it is answered
DEPTH = 64  # of JSON: captions have no more either
TEXTS, BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL), re.compile(rb"[][{}]")  # of JSON
OPEN = ("/health/live", "/health/ready")  # without a key, as are the page's own files
LOCAL = ("localhost", "127.0.0.1", "[::1]", "::1")
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; connect-src 'self';"
        b" object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
)


class Keys:
    """The keys of a server. Comparing takes the same time whatever is given, but for its length."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def fit(self, header: str | None) -> bool:
        """Whether an `Authorization` header bears one of the keys."""
        scheme, _, given = (header or "").partition(" ")
        own = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        matches = [hmac.compare_digest(own, digest) for digest in self._digests]  # all of them, whichever it is
        return scheme.lower() == "bearer" and any(matches)


class Guard:
    """Answers what may not reach the application by itself; hands on the rest.

    Args:
        app: the application.
        settings: the server's options.
        open_paths: prefixes of paths that need no key beside those of health: those of the studio's own files.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, open_paths: tuple[str, ...] = ()) -> None:
        self._app = app
        self._settings = settings
        self._open = open_paths
        self._keys = Keys(key.get_secret_value() for key in settings.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, and hand it on or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
            receive = await self._checked_body(scope, receive)
        except ApiError as error:
            if error.status == 413:
                await _pour_away(receive)
            await answer(error, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        path = scope["path"]
        needs_key = self._keys and path not in OPEN and not self._is_page(path)
        if needs_key and scope["method"] != "OPTIONS" and not self._keys.fit(headers.get("authorization")):
            raise ApiError(
                401,
                "A key is needed: send it as `Authorization: Bearer KEY`.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        size = sum(len(name) + len(value) for name, value in headers.raw)
        if size > MOST_HEADERS:
            raise ApiError(431, f"The headers have {size} bytes: {MOST_HEADERS} is the most.", code="headers_too_large")
        self._check_origin(headers)

    def _is_page(self, path: str) -> bool:
        return path == "/" or any(path.startswith(prefix) for prefix in self._open)

    def _check_origin(self, headers: Headers) -> None:
        """Keep other pages in the user's browser from using a server that only this machine can reach.

        A page of another origin may send simple requests here, and, if a name is made to point to this machine, even
        read the answers.
        """
        host = headers.get("host", "")
        if self._settings.is_local and not self._keys and _name(host) not in LOCAL:
            raise ApiError(403, f"This server answers to localhost alone, not to {host[:80]!r}.", code="wrong_host")
        origin = headers.get("origin")
        if origin is None or origin in self._settings.cors_origins or "*" in self._settings.cors_origins:
            return
        if urlsplit(origin).netloc != host:
            raise ApiError(
                403,
                f"Pages of {origin[:80]!r} may not use this server: start it with --cors-origin to let them.",
                code="wrong_origin",
            )

    async def _checked_body(self, scope: Scope, receive: Receive) -> Receive:
        """Read a JSON body as far as it may go, and give it again; other bodies are counted as they come."""
        headers = Headers(scope=scope)
        most = self._settings.max_body
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            most = max(most, 256 * 2**20)
        length = headers.get("content-length", "")
        if length.isascii() and length.isdecimal() and int(length[:20]) > most:
            raise _too_large(most)
        if kind == "multipart/form-data":
            return _counted(receive, most)
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return receive
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return _again(bytes(body), receive, message)
            body += message.get("body", b"")
            if len(body) > most:
                raise _too_large(most)
            if not message.get("more_body", False):
                break
        check_depth(bytes(body))
        return _again(bytes(body), receive, None)


def check_depth(body: bytes) -> None:
    """See that JSON is not nested too deeply to be read.

    Raises:
        ApiError: with status 400 if it is.
    """
    depth = most = 0
    for bracket in BRACKETS.findall(TEXTS.sub(b"", body)):
        depth += 1 if bracket in b"[{" else -1
        most = max(most, depth)
    if most > DEPTH:
        raise ApiError(400, f"The JSON is nested {most} levels deep: {DEPTH} is the most.", code="too_deep")


async def answer(error: ApiError, send: Send) -> None:
    """Send an error as JSON."""
    body = json.dumps(error.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class SecurityHeaders:
    """Adds to every answer what keeps browsers from doing anything else with it than it is for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, and add to the answer."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                have = {name.lower() for name, _ in message.get("headers", [])}
                more = [pair for pair in SECURITY_HEADERS if pair[0] not in have]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        await self._app(scope, receive, with_headers)


def _name(host: str) -> str:
    """The name in a `Host` header, without its port."""
    return host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and ":" in host else host


def _too_large(most: int) -> ApiError:
    return ApiError(
        413, f"The body is too large: {most} bytes is the most.", code="body_too_large", headers={"Connection": "close"}
    )


async def _pour_away(receive: Receive) -> None:
    """Read what a client is still sending, within bounds: before it is done, few clients look at the answer."""
    got = 0
    while got < POURED:
        message = await receive()
        got += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


def _counted(receive: Receive, most: int) -> Receive:
    """Receive no more than so many bytes: the body ends there as if the client had gone."""
    got = 0

    async def counted() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        return {"type": "http.disconnect"} if got > most else message

    return counted


def _again(body: bytes, receive: Receive, last: Message | None) -> Receive:
    """Receive a body that was read already, then what else comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}] if last is None else [last]

    async def again() -> Message:
        return waiting.pop(0) if waiting else await receive()

    return again

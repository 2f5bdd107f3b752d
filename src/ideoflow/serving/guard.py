"""What every request goes through before a route sees it: whose it is, where it comes from, and how large it is."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api_errors import ApiError, answer
from .server_settings import MEBIBYTE, ServerSettings, is_loopback, plain_name

MOST_HEADERS = 32 * 1024  # bytes of all headers but the key
BODY_SECONDS = 60  # from a request's head to the end of its body
POURED, POURING_SECONDS = 64 * MEBIBYTE, 10  # of a body that is too large, which are read before it is answered
DEPTH = 64  # of JSON: captions have no more either
# Of JSON. A text that does not end reaches to the end; what has matched is never looked at again, or a body of
# quotation marks would take as many looks as the square of its bytes.
TEXTS, BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL), re.compile(rb"[][{}]")
OPEN = ("/health/live", "/health/ready")  # without a key, as are the page's own files
FILES_PATH = "/v1/images/edits"  # where bodies have files in them
MOST_IMAGE, MOST_MASK = 50 * MEBIBYTE, 4 * MEBIBYTE  # bytes of those files
MOST_FILES = MOST_IMAGE + MOST_MASK + 2 * MEBIBYTE  # bytes of such a body
DESCRIBED_PATH = "/v1/captions/describe"  # where a body of JSON has a picture in it
MOST_DESCRIBED = 4 * MOST_IMAGE // 3 + MEBIBYTE  # bytes of such a body, in base64
FILES_AT_ONCE = 512 * MEBIBYTE  # bytes of all such bodies that are being read, or described
OVER_LIMIT = "over_limit"  # in the state of a request whose connection is one too many
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
        self.file_bytes = 0  # of bodies with files that are being read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, and hand it on or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        room = _Room(self)
        try:
            try:
                self._check(scope)
                receive = await self._checked_body(scope, receive, room)
            except ApiError as error:
                if error.status == 413 and "Connection" in error.headers:  # its body has not come whole
                    await _pour_away(receive)
                await answer(error, send)
                return
            if scope["path"] != DESCRIBED_PATH:  # where the body stays in memory until it is answered
                room.leave()
            await self._app(scope, receive, send)
        finally:
            room.leave()

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        path = scope["path"]
        if path not in OPEN and scope.get("state", {}).get(OVER_LIMIT):
            raise ApiError(
                503,
                f"The server has its {self._settings.max_connections} connections already: try again in a moment.",
                code="too_many_connections",
                headers={"Retry-After": "5", "Connection": "close"},
            )
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
        if self._settings.is_local and not self._keys and not self._answers_to(host):
            message = (
                f"This server answers to localhost alone, not to {host[:80]!r}: start it with --allowed-host to have it"
                " answer to another name."
            )
            raise ApiError(403, message, code="wrong_host")
        origin = headers.get("origin")
        if origin is None or origin in self._settings.cors_origins or "*" in self._settings.cors_origins:
            return
        if _place(origin) != host.lower():
            raise ApiError(
                403,
                f"Pages of {origin[:80]!r} may not use this server: start it with --cors-origin to let them.",
                code="wrong_origin",
            )

    def _answers_to(self, host: str) -> bool:
        """Whether a `Host` header means this server."""
        name, _, port = host.rpartition(":")
        name = name if port.isdecimal() else host
        known = (self._settings.host, *self._settings.allowed_hosts)
        return is_loopback(name) or plain_name(name) in map(plain_name, known)

    async def _checked_body(self, scope: Scope, receive: Receive, room: _Room) -> Receive:
        """Read a body as far, and for as long, as it may go; check it, and give it again."""
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):  # which no route reads
            return receive
        headers = Headers(scope=scope)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        has_files = kind == "multipart/form-data" and scope["path"] == FILES_PATH
        is_described = kind != "multipart/form-data" and scope["path"] == DESCRIBED_PATH
        most = MOST_FILES if has_files else MOST_DESCRIBED if is_described else self._settings.max_body
        length = headers.get("content-length", "")
        if length.isascii() and length.isdecimal() and int(length[:20]) > most:
            raise _too_large(most)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                counted = room.counting(receive) if has_files or is_described else receive
                body, last = await _whole_body(counted, most)
        except TimeoutError:
            message = f"The body has not come within {BODY_SECONDS} seconds."
            raise ApiError(408, message, code="body_too_slow", headers={"Connection": "close"}) from None
        if last is None and not has_files:
            if len(body) > self._settings.max_body:
                check_picture(body)
            else:
                check_text(body)
        return _again(body, receive, last)


class _Room:
    """What the body of a request takes of the memory that there is for bodies with pictures."""

    def __init__(self, guard: Guard) -> None:
        self._guard, self._taken = guard, 0

    def counting(self, receive: Receive) -> Receive:
        """Receive a body where memory has room for it beside those of others."""

        async def counted() -> Message:
            message = await receive()
            more = len(message.get("body", b""))
            self._taken, self._guard.file_bytes = self._taken + more, self._guard.file_bytes + more
            if self._guard.file_bytes > FILES_AT_ONCE:
                raise ApiError(
                    503,
                    "Too many pictures are being sent just now: try again in a moment.",
                    code="too_many_files",
                    headers={"Retry-After": "5", "Connection": "close"},
                )
            return message

        return counted

    def leave(self) -> None:
        """The body is gone."""
        self._guard.file_bytes -= self._taken
        self._taken = 0


def check_picture(body: bytes) -> None:
    """See that a large body of JSON has a picture in base64 in it and little else: others take long to read.

    Raises:
        ApiError: with status 413 if it has more.
    """
    signs = len(body) - len(body.translate(None, b'"[{,:\\\0'))
    if signs > DEPTH or not body.isascii():
        raise ApiError(
            413, 'The body is too large for anything but {"image": "..."}, a picture in base64.', code="body_too_large"
        )


def check_text(body: bytes) -> None:
    """See that a body of JSON is UTF-8, as the standard has it, and not nested too deeply to be read.

    Raises:
        ApiError: with status 400 if it is not.
    """
    try:
        body.decode()
        wrong = b"\0" in body  # which JSON has nowhere, and UTF-16 and UTF-32 have everywhere
    except UnicodeDecodeError:
        wrong = True
    if wrong:
        raise ApiError(400, "The body is not UTF-8, in which JSON is sent.", code="not_utf8")
    depth = 0
    for bracket in BRACKETS.finditer(TEXTS.sub(b"", body)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > DEPTH:
            raise ApiError(400, f"The JSON is nested more than {DEPTH} levels deep.", code="too_deep")


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


def _too_large(most: int, ended: bool = False) -> ApiError:
    """A body of more than so many bytes; the connection of one that has not come whole is closed."""
    headers = {} if ended else {"Connection": "close"}
    return ApiError(413, f"The body is too large: {most} bytes is the most.", code="body_too_large", headers=headers)


async def _whole_body(receive: Receive, most: int) -> tuple[bytes, Message | None]:
    """A body of at most so many bytes; and what came instead of its end, if that did not come.

    Raises:
        ApiError: with status 413 for a larger one.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body), message
        body += message.get("body", b"")
        ended = not message.get("more_body", False)
        if len(body) > most:
            raise _too_large(most, ended)
        if ended:
            return bytes(body), None


async def _pour_away(receive: Receive) -> None:
    """Read what a client is still sending, within bounds: before it is done, few clients look at the answer."""
    got = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(POURING_SECONDS):
            while got < POURED:
                message = await receive()
                got += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return


def _again(body: bytes, receive: Receive, last: Message | None) -> Receive:
    """Receive a body that was read already, then what else comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}] if last is None else [last]

    async def again() -> Message:
        return waiting.pop(0) if waiting else await receive()

    return again


def _place(origin: str) -> str | None:
    """Host and port of an origin, in small letters; None for what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None

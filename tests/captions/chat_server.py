"""A chat server on loopback that answers as it is told: rightly, wrongly, late, or without end."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ideoflow.captions.writing import Endpoint

# What a request's body gets: a text for an answer of a chat model, or (status, body) as it is.
Reply = Callable[[dict[str, Any]], "str | tuple[int, bytes]"]


class ChatServer:
    """Where it is, and what came.

    Attributes:
        url: The address for an endpoint.
        bodies: Of each request, as JSON.
        headers: Of each request.
        paths: Of each request.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []

    def endpoint(self, **options: Any) -> Endpoint:
        return Endpoint(self.url, "small", **{"timeout": 20, "retries": 0, **options})


@contextmanager
def chat_server(*replies: Any) -> Iterator[ChatServer]:
    """A server that gives these answers in turn, the last one ever after.

    A reply is a text, an exception-free function of the body, `(status, body)`, or a function that is handed the
    request's handler, marked by the attribute `raw`.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = replies[min(len(server.bodies), len(replies) - 1)]
            server.bodies.append(body)
            server.paths.append(self.path)
            server.headers.append({key.lower(): value for key, value in self.headers.items()})
            if getattr(reply, "raw", False):
                reply(self)
                return
            given = reply(body) if callable(reply) else reply
            status, data = given if isinstance(given, tuple) else (200, completion(given))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = ChatServer(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def completion(text: Any, **more: Any) -> bytes:
    """The body of a chat model's answer."""
    message = {"role": "assistant", "content": text, **more}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"id": "x", "object": "chat.completion", "created": 0, "choices": [choice]}).encode()


def raw(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """A reply that writes to the connection itself; a client that has gone is no error of the server's."""

    def reply(handler: Any) -> None:
        try:
            function(handler)
        except OSError:
            handler.close_connection = True

    reply.raw = True  # type: ignore[attr-defined]
    return reply


@raw
def endless(handler: Any) -> None:
    """Garbage without end."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    handler.close_connection = True
    while True:
        handler.wfile.write(b"\xff{garbage" * 4096)


@raw
def dripping(handler: Any) -> None:
    """A byte now and then, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    handler.close_connection = True
    while True:
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


@raw
def silent(handler: Any) -> None:
    """Nothing for a long time."""
    handler.close_connection = True
    time.sleep(3)


@raw
def hanging_up(handler: Any) -> None:
    """The connection closed in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def dripping_headers(handler: BaseHTTPRequestHandler) -> None:
    """One line after another, each in time."""
    handler.send_response(200)
    handler.flush_headers()
    with suppress(OSError):
        for number in range(200):
            handler.wfile.write(f"X-{number}: a\r\n".encode())
            time.sleep(0.05)
    handler.close_connection = True


def compressed(handler: BaseHTTPRequestHandler) -> None:
    """A small answer that unpacks to a large one, which nobody asked for."""
    data = gzip.compress(b" " * 10_000_000)
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    with suppress(OSError):
        handler.wfile.write(data)


for one in (dripping_headers, compressed):
    one.raw = True  # type: ignore[attr-defined]

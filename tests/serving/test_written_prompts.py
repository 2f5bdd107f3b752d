"""Whoever waits for a language model holds up nobody else, and gives up its place by going away."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import httpx2 as httpx
import pytest

from ideoflow.serving import written_prompts
from ideoflow.serving.api_errors import ApiError
from ideoflow.serving.preparing import Preparing
from ideoflow.sketch.prose import write
from tests.captions.chat_server import chat_server

from .conftest import HEART, serve, small

LINE = write("a red heart on pink").caption.line()
WORDS = {"caption": "a heart in words", "size": "32x32", "num_inference_steps": 1}
ASKED = [
    ("/v1/jobs", WORDS),
    ("/v1/images/generations", {"prompt": "a heart in words", "size": "32x32"}),
    ("/sdapi/v1/txt2img", {"prompt": "a heart in words", "width": 32, "height": 32}),
    ("/v1/captions/write", {"words": "a heart in words"}),
]


class Slow:
    """A server whose language model answers no request before it is told to; how many wait for it."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.waiting = 0
        self.lock = threading.Lock()

    def __call__(self, handler) -> None:
        with self.lock:
            self.waiting += 1
        handler.connection.settimeout(0.05)
        try:
            while not self.answers.is_set():
                try:
                    if handler.connection.recv(1) == b"":
                        return
                except TimeoutError:
                    continue
            body = json.dumps({"choices": [{"message": {"content": LINE}}]}).encode()
            handler.connection.settimeout(5)
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        finally:
            handler.close_connection = True
            with self.lock:
                self.waiting -= 1

    raw = True


@pytest.fixture
def slow(tmp_path):
    """A server whose captions a slow language model writes."""
    model = Slow()
    with chat_server(model) as chat:
        running = serve(tmp_path / "data", endpoint=chat.url, llm="small", llm_timeout=60, drain=0)
        running.model, running.chat = model, chat
        yield running
        model.answers.set()
        running.close()


@contextmanager
def asking(server, route, body):
    """A request that is sent, and whose client waits for its answer, which it does not look at, as long as it likes."""
    host, port = server.http.base_url.host, server.http.base_url.port
    data = json.dumps(body).encode()
    with socket.create_connection((host, port)) as client:
        head = f"POST {route} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        yield client


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_slow_language_model_holds_up_nobody_else(slow):
    quick = httpx.Client(base_url=slow.url, timeout=20)
    with ExitStack() as clients:
        for number in range(48):  # more than the server's pool has threads
            clients.enter_context(asking(slow, *ASKED[number % len(ASKED)]))
        until(lambda: slow.model.waiting == written_prompts.AT_ONCE)
        time.sleep(0.2)  # for those that have no turn yet
        assert slow.model.waiting == written_prompts.AT_ONCE
        assert quick.get("/health/live").status_code == 200
        assert quick.get("/v1/jobs").json()["data"] == []
        answer = quick.post("/v1/jobs", json=small(caption=HEART))
        assert answer.status_code == 202 and slow.wait(answer.json()["id"])["status"] == "finished"
    until(lambda: slow.model.waiting == 0)  # those who went away
    slow.model.answers.set()
    assert quick.post("/v1/captions/write", json={"words": "a heart"}).json()["line"] == LINE
    assert len(quick.get("/v1/jobs").json()["data"]) == 1, "nothing is drawn for those who went away"


def test_a_client_that_goes_away_gives_up_its_place(slow):
    with ExitStack() as first:
        for _ in range(written_prompts.AT_ONCE):
            first.enter_context(asking(slow, *ASKED[3]))
        until(lambda: slow.model.waiting == written_prompts.AT_ONCE)
        asked = len(slow.chat.bodies)
        with asking(slow, *ASKED[3]):
            first.close()
            until(lambda: len(slow.chat.bodies) == asked + 1 and slow.model.waiting == 1)


def test_more_than_can_wait_are_told_to_come_again(slow):
    with ExitStack() as clients:
        for number in range(written_prompts.MOST):
            clients.enter_context(asking(slow, *ASKED[number % len(ASKED)]))
        until(lambda: slow.app.state.writing._here == written_prompts.MOST)
        for route, body in ASKED:
            answer = slow.http.post(route, json=body)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (429, "writers_busy"), answer.text
            assert "64 captions are being written" in error["message"] and answer.headers["Retry-After"] == "5"


def test_a_server_that_stops_waits_for_no_language_model(slow):
    told = []
    client = threading.Thread(target=lambda: told.append(slow.http.post("/v1/jobs", json=WORDS)))
    client.start()
    until(lambda: slow.model.waiting == 1)
    slow.stop()
    slow.thread.join(20)
    client.join(20)
    assert told[0].status_code == 503 and told[0].json()["error"]["code"] == "stopping"
    until(lambda: slow.model.waiting == 0)


def test_a_job_that_cannot_be_accepted_asks_no_language_model(slow):
    for route, body in (("/v1/jobs", {**WORDS, "preset": "x"}), ("/v1/images/generations", {**ASKED[1][1], "n": 99})):
        assert slow.http.post(route, json=body).status_code == 400
    assert slow.chat.bodies == []


def test_a_job_of_a_known_key_asks_no_language_model(slow):
    slow.model.answers.set()
    key = {"Idempotency-Key": "mine"}
    first = slow.http.post("/v1/jobs", json=WORDS, headers=key)
    assert first.status_code == 202
    again = slow.http.post("/v1/jobs", json=WORDS, headers=key)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"]) and len(slow.chat.bodies) == 1


def test_a_turn_is_free_again_when_its_thread_ends_and_not_before():
    """However its client leaves: given up, its call holds its turn until it has come to its end."""

    async def scenario():
        turns = Preparing(4, at_once=1, what="calls", code="busy")
        state = SimpleNamespace(stopping=asyncio.Event())
        leaves, ends, ran = asyncio.Event(), threading.Event(), []

        def request(leave):
            async def receive():
                await leave.wait()
                return {"type": "http.disconnect"}

            return SimpleNamespace(app=SimpleNamespace(state=state), receive=receive)

        def work():
            ran.append("first")
            ends.wait(20)

        first = asyncio.ensure_future(turns.run(request(leaves), work, lambda: ran.append("given up")))
        second = asyncio.ensure_future(turns.run(request(asyncio.Event()), lambda: ran.append("second")))
        gone = asyncio.ensure_future(turns.run(request(leaves), lambda: ran.append("never")))
        await asyncio.sleep(0.05)
        leaves.set()
        for one in (first, gone):
            with pytest.raises(ApiError, match="gone"):
                await one
        await asyncio.sleep(0.05)
        assert ran == ["first", "given up"]
        ends.set()
        await asyncio.wait_for(second, 20)
        assert ran == ["first", "given up", "second"] and turns._here == 0
        await asyncio.sleep(0.05)
        assert turns._free._value == 1

    asyncio.run(scenario())

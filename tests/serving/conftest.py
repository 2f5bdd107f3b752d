"""A real server on loopback, in a thread of the tests' process or in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx2 as httpx
import pytest

from . import postgres as postgres_server

HEART = (Path(__file__).parents[2] / "examples" / "captions" / "heart.json").read_text("utf-8")
ENDED = ("finished", "failed", "cancelled")


class Running:
    """A server that runs: its address, a client, and its jobs."""

    def __init__(self, url, app=None, server=None, thread=None, headers=None):
        self.url, self.app, self.server, self.thread = url, app, server, thread
        self.http = httpx.Client(base_url=url, timeout=120, headers=headers)

    def job(self, **order):
        """Submit an order of one step and the smallest picture, but for what is given; the job."""
        answer = self.http.post("/v1/jobs", json=small(**order))
        assert answer.status_code == 202, answer.text
        return answer.json()

    def wait(self, id, until=ENDED):
        """The job once its status is one of these."""
        end = time.monotonic() + 120
        while (job := self.http.get(f"/v1/jobs/{id}").json())["status"] not in until:
            assert time.monotonic() < end, job
            time.sleep(0.02)
        return job

    def stop(self):
        """Tell it to stop, as SIGTERM does."""
        self.server.handle_exit(signal.SIGTERM, None)

    def close(self):
        """Stop it as SIGTERM does after its drain."""
        self.http.close()
        if self.server is not None:
            self.server.should_exit = True
            self.thread.join(60)


def small(**order):
    """An order that takes next to nothing."""
    return {"caption": HEART, "size": "32x32", "num_inference_steps": 1, "seed": 3, **order}


def serve(data, ready=True, **options):
    """Start a server of the bundled model in a thread, and wait until it is ready unless told otherwise."""
    from ideoflow.serving.app import create_app
    from ideoflow.serving.running import DrainingServer, config_of
    from ideoflow.serving.server_settings import ServerSettings

    settings = ServerSettings(data=data, **options)
    app = create_app(settings)
    server = DrainingServer(config_of(app, settings), app.state, settings.drain)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    keys = [key.get_secret_value() for key in settings.api_keys]
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
    running = Running(f"http://127.0.0.1:{listener.getsockname()[1]}", app, server, thread, headers)
    if ready:
        until_ready(running.http)
    return running


def until_ready(http, seconds=120):
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            if http.get("/health/ready").status_code == 200:
                return
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server of the tests' own."""
    with postgres_server.running() as server:
        if server is None:
            pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
        yield server


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server that tests share: its limits are the defaults, but for previews of every step."""
    running = serve(tmp_path_factory.mktemp("server"))
    yield running
    running.close()


@pytest.fixture
def own_server(tmp_path):
    """A function that starts a server of the test's own, with options."""
    started = []

    def start(data=None, **options):
        started.append(serve(data or tmp_path / "data", **options))
        return started[-1]

    yield start
    for running in started:
        running.close()


class Process(Running):
    """A server in a process of its own, as users start it."""

    def __init__(self, python, data, *options, environment=None, seconds=120, log=None):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [*python, "-m", "ideoflow", "serve", "--port", str(port), "--data", str(data), *options],
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE if log is None else log.open("a"),  # a pipe that nobody reads fills up in minutes
            stderr=subprocess.STDOUT,
            text=True,
        )
        super().__init__(f"http://127.0.0.1:{port}")
        until_ready(self.http, seconds)

    def kill(self, number=signal.SIGKILL):
        """End it by a signal; what it wrote, and its exit code."""
        self.process.send_signal(number)
        text, _ = self.process.communicate(timeout=60)
        self.http.close()
        return text, self.process.returncode


@pytest.fixture
def process(tmp_path, warm):
    """A function that starts a server in a process of its own, with options."""
    started = []

    def start(*options, data=None, environment=None):
        started.append(Process(warm, data or tmp_path / "data", *options, environment=environment))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.kill()

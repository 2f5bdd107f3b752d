"""Running the server: the socket first, then one line with its address, and an end that lets running jobs finish."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
import webbrowser
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from .app import create_app
from .connections import Connection
from .jobs import Jobs
from .logs import set_up
from .server_settings import ServerSettings

logger = logging.getLogger("ideoflow.serving")
MOST_HEADERS = 4 * 2**20  # bytes that are read of a request's head: the guard answers what is too long
LAST_ANSWERS = 5  # seconds that open connections have once the jobs are done
GIVING_UP = 2.0  # seconds in which jobs that are given up come to their ends


class DrainingServer(uvicorn.Server):
    """A server that, told to stop, accepts no more jobs and lets those that are there end, for so many seconds.

    Args:
        config: uvicorn's options.
        state: the application's state.
        seconds: how long jobs are waited for.
    """

    def __init__(self, config: uvicorn.Config, state: Any, seconds: float) -> None:
        super().__init__(config)
        self._state, self._seconds = state, seconds
        self._until: float | None = None
        self._rolls_over = state.settings.ray and hasattr(signal, "SIGHUP")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second signal stops at once."""
        jobs: Jobs | None = self._state.jobs
        if self._until is not None or self.should_exit:
            super().handle_exit(sig, frame)
            return
        if jobs is None:
            self.should_exit = True
            return
        jobs.drain()
        self._until = time.monotonic() + self._seconds
        if jobs.unfinished:
            logger.info(
                "stopping: %d jobs have %g seconds to end; once more stops at once", jobs.unfinished, self._seconds
            )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen; from then on SIGHUP rolls replicas over, where there are some elsewhere."""
        await super().startup(sockets)
        if self._rolls_over and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._roll_over)

    def _roll_over(self) -> None:
        if self._state.fleet is None:
            logger.info("there is no replica to roll over yet")
        else:
            self._state.fleet.roll_over()

    async def on_tick(self, counter: int) -> bool:
        """Stop once the jobs are done, or the time is over; or where the model cannot be loaded."""
        jobs: Jobs | None = self._state.jobs
        if self._until is not None and jobs is not None and (jobs.unfinished == 0 or time.monotonic() > self._until):
            self.should_exit = True
        if self._state.failure is not None:
            self.should_exit = True
        if self.should_exit and not self._state.stopping.is_set():
            if jobs is not None and jobs.unfinished:
                await _give_up(jobs)
            self._state.stopping.set()  # whoever still waits for a job is told
        return await super().on_tick(counter)


async def _give_up(jobs: Jobs) -> None:
    """End the jobs that are not stored, and let those who follow them hear of it."""
    jobs.drain()
    await asyncio.get_running_loop().run_in_executor(None, jobs.stop_unstored)
    end = time.monotonic() + GIVING_UP
    while any(not job.settings.stored for job in jobs.table.unfinished) and time.monotonic() < end:
        await asyncio.sleep(0.05)


def config_of(app: FastAPI, settings: ServerSettings) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        http=partial(Connection, most=settings.max_connections),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        h11_max_incomplete_event_size=MOST_HEADERS,
        timeout_graceful_shutdown=LAST_ANSWERS,
    )


def run(settings: ServerSettings, announce: Callable[[str, Path], None], open_browser: bool = False) -> bool:
    """Serve until told to stop.

    Args:
        settings: the options.
        announce: called with the address and the folder of jobs, once connections are accepted.
        open_browser: whether to open the page.

    Returns:
        Whether the model could be loaded; if not, the log has said why.

    Raises:
        OSError: an address that cannot be listened on.
    """
    warnings.simplefilter("ignore")  # what clients should know is among the warnings of their jobs
    set_up(settings.log_json)
    listener = _listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else "localhost" if host in ("127.0.0.1", "0.0.0.0") else host
    address = f"http://{shown}:{port}/"
    app = create_app(settings)
    server = DrainingServer(config_of(app, settings), app.state, settings.drain)
    announce(address, settings.data)
    if open_browser and _has_display():
        webbrowser.open(address)
    asyncio.run(server.serve(sockets=[listener]))
    return app.state.failure is None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise OSError(
            errno.EADDRINUSE, f"port {port} of {host} is in use, perhaps by another server: give another --port, or 0"
        ) from None


def _has_display() -> bool:
    """Whether a browser with windows can be there: in a terminal alone, one of text would take it."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))

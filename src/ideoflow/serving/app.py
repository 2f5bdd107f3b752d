"""The application: routes, the guard before them, and the model that is loaded beside them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match

from .._version import __version__
from . import captions_api, edits_api, health, jobs_api, openai_api, sdapi, server_api, studio_page
from .api_errors import ApiError
from .fleet.replica_fleet import Fleet
from .guard import Guard, SecurityHeaders
from .jobs import Jobs
from .logs import METHODS, AccessLog, OwnFailures
from .metrics import Metrics
from .replica import Replica
from .server_settings import ServerSettings
from .serving_model import enhancer_of, load_model, name_of_model, served_by, writer_for
from .store import Store, StoreError
from .written_prompts import writing_turns

logger = logging.getLogger("ideoflow.serving")
LONGEST_PLACE = 100  # characters of the name of a wrong field, which may be a key that a client made up


def create_app(settings: ServerSettings) -> FastAPI:
    """The server as an ASGI application.

    It answers at once; the model is loaded meanwhile, and jobs are accepted once it is there. `app.state` has `jobs`
    (None until then), `fleet` (None until then, and without Ray), `failure` (what kept the model from being loaded,
    else None) and `stopping`, an event: once it is set, whoever waits for a job is told that the server stops.

    Args:
        settings: the server's options.

    Raises:
        StoreError: a folder of jobs that cannot be used, before anything is loaded.
    """
    metrics = Metrics()
    database = None if settings.database is None else settings.database.get_secret_value()
    store = Store(settings.data, settings.keep_jobs, settings.keep_bytes, database)
    loading = Loading(settings, store, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading.start(app.state)
        try:
            yield
        finally:
            app.state.stopping.set()
            await asyncio.get_running_loop().run_in_executor(None, loading.end)
            store.close()

    app = FastAPI(
        title="ideoflow", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.jobs, app.state.failure, app.state.metrics = None, None, metrics
    app.state.settings, app.state.stopping = settings, asyncio.Event()
    app.state.writing, app.state.fleet = writing_turns(), None
    app.include_router(jobs_api.router)
    app.include_router(server_api.router)
    app.include_router(openai_api.router)
    app.include_router(edits_api.router)
    app.include_router(sdapi.router)
    app.include_router(captions_api.router)
    app.include_router(health.router)
    app.include_router(studio_page.router)
    app.mount(studio_page.FILES, studio_page.StudioFiles())
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(StoreError, _not_kept)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    # The last one added sees a request first.
    app.add_middleware(Guard, settings=settings, open_paths=(studio_page.FILES,))
    app.add_middleware(OwnFailures)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
            expose_headers=["Location", "Retry-After"],
        )
    app.add_middleware(AccessLog, metrics=metrics)
    app.add_middleware(SecurityHeaders)
    return app


class Loading:
    """Loads the model in a thread of its own, which nobody waits for when the server stops meanwhile.

    Args:
        settings: the server's options.
        store: where jobs are kept.
        metrics: what is counted.
    """

    def __init__(self, settings: ServerSettings, store: Store, metrics: Metrics) -> None:
        self._settings, self._store, self._metrics = settings, store, metrics
        self._ended = False
        self._lock = threading.Lock()  # held while jobs are taken up and when they are given up
        self._jobs: Jobs | None = None
        self._fleet: Fleet | None = None

    def start(self, state: Any) -> None:
        """Begin; the application's state gets `jobs`, or `failure`."""
        threading.Thread(target=self._load, args=(state,), name="loading", daemon=True).start()

    def end(self) -> None:
        """Stop: jobs are given up, or never taken up where the model is still being loaded."""
        self._ended = True
        with self._lock:
            if self._jobs is not None:
                self._jobs.close()

    def _load(self, state: Any) -> None:
        try:
            make_jobs = self._of_fleet() if self._settings.ray else self._of_replica()
            with self._lock:
                if self._ended:
                    return
                self._jobs = make_jobs()
                self._jobs.start()
        except Exception as error:
            logger.error("the model could not be loaded: %s: %s", type(error).__name__, error)
            logger.debug("where it failed:", exc_info=error)
            state.failure = error
            return
        state.jobs, state.fleet = self._jobs, self._fleet
        logger.info("ready: %s", name_of_model(self._settings))

    def _of_replica(self) -> Callable[[], Jobs]:
        """What makes jobs that a replica in this process draws, once its model is loaded."""
        pipe = load_model(self._settings)
        self._metrics.watch_device(pipe.device)
        served, write = served_by(self._settings, pipe), writer_for(self._settings, enhancer_of(pipe))
        return partial(Jobs, partial(Replica, pipe, served), served, self._store, self._metrics, write)

    def _of_fleet(self) -> Callable[[], Jobs]:
        """What makes jobs that replicas in a Ray cluster draw, once the first of them is ready."""
        # Read by Ray while it is imported, which takes its time: it would take SIGTERM for a crash.
        os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
        from .fleet.ray_replicas import open_fleet

        self._fleet = fleet = open_fleet(self._settings)
        self._metrics.watch_fleet(fleet)
        served = replace(fleet.introduction.served, settings=self._settings)
        write = writer_for(self._settings, fleet.enhancer)
        return partial(Jobs, fleet.listen, served, self._store, self._metrics, write)


async def _api_error(request: Request, error: Any) -> Response:
    # Escaped, for a message may name what a client sent, and that may be half of a character.
    return Response(json.dumps(error.body), error.status, error.headers, "application/json")


async def _not_kept(request: Request, error: Any) -> Response:
    logger.error("%s %s: %s", request.method, request.url.path, error)
    message = "The server cannot keep this, such as where its disk is full or its database away: its log says more."
    return await _api_error(request, ApiError(507, message, code="storage_failed"))


async def _invalid(request: Request, error: Any) -> Response:
    """A body or a parameter of another form, by its first fault: its place, and what is wrong there."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])[:LONGEST_PLACE] or None
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "there is no such field"
    shown = f"`{place}`: {message}." if place else f"{message}."
    return await _api_error(request, ApiError(400, shown, code="invalid_value", param=place))


async def _http_error(request: Request, error: Any) -> Response:
    path = request.url.path
    told = {404: f"There is nothing at {path[:80]!r}.", 405: "This path does not take that method."}
    if path.startswith(("/images/", "/models")):
        told[404] += f" OpenAI's API is under /v1 (/v1{path[:80]}): end `base_url` in /v1."
    elif path.startswith("/v1/"):
        told[404] += " This server draws: /v1/images/generations, /v1/jobs, and what /openapi.json lists."
    message = told.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed(request))
    return await _api_error(request, ApiError(error.status_code, message, headers=headers))


def _allowed(request: Request) -> list[str]:
    """The methods that a path takes, whichever of its routes has them."""

    def fits(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes)

    if request.url.path.startswith(studio_page.FILES):
        return ["GET", "HEAD"]
    return [method for method in METHODS if fits(method)]

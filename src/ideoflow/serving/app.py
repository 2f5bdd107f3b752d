"""The application: routes, the guard before them, and the model that is loaded beside them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from .._version import __version__
from ..bundled import SKETCH
from ..sizes import UNIT
from . import captions_api, health, jobs_api, openai_api, sdapi, studio_page
from .api_errors import ApiError
from .guard import Guard, SecurityHeaders
from .job_settings import preset_list
from .jobs import Jobs
from .logs import AccessLog
from .metrics import Metrics
from .records import FORMATS
from .server_settings import ServerSettings
from .serving_model import load_model, name_of_model, served_by
from .store import Store

logger = logging.getLogger("ideoflow.serving")
EXAMPLES = Path(__file__).parent / "examples.json"


def create_app(settings: ServerSettings) -> FastAPI:
    """The server as an ASGI application.

    It answers at once; the model is loaded meanwhile, and jobs are accepted once it is there.

    Args:
        settings: the server's options.

    Raises:
        StoreError: a folder of jobs that cannot be used, before anything is loaded.
    """
    metrics = Metrics()
    store = Store(settings.data, settings.keep_jobs, settings.keep_bytes)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.get_running_loop().run_in_executor(None, _load, app, settings, store, metrics)
        try:
            yield
        finally:
            await loading
            if app.state.jobs is not None:
                await asyncio.get_running_loop().run_in_executor(None, app.state.jobs.close)
            store.close()

    app = FastAPI(
        title="ideoflow", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.jobs, app.state.failure, app.state.metrics = None, None, metrics
    app.state.settings = settings
    app.state.told = tell(settings, ready=False)
    app.include_router(jobs_api.router)
    app.include_router(openai_api.router)
    app.include_router(sdapi.router)
    app.include_router(captions_api.router)
    app.include_router(health.router)
    app.include_router(studio_page.router)
    app.mount(studio_page.FILES, studio_page.StudioFiles())
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    # The last one added sees a request first.
    app.add_middleware(Guard, settings=settings, open_paths=(studio_page.FILES,))
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
            expose_headers=["Location", "Retry-After"],
        )
    app.add_middleware(SecurityHeaders)
    app.add_middleware(AccessLog, metrics=metrics)
    return app


def _load(app: FastAPI, settings: ServerSettings, store: Store, metrics: Metrics) -> None:
    """Load the model and begin to work at jobs; what fails is kept for those who ask."""
    try:
        pipe = load_model(settings)
        jobs = Jobs(pipe, served_by(settings, pipe), store, metrics)
        jobs.start()
    except Exception as error:
        logger.exception("the model could not be loaded")
        app.state.failure = f"{type(error).__name__}"
        return
    app.state.jobs, app.state.told = jobs, tell(settings, ready=True)
    logger.info("ready: %s", name_of_model(settings))


def tell(settings: ServerSettings, ready: bool) -> dict[str, Any]:
    """What clients are told of the server."""
    served = served_by(settings, None)
    return {
        "version": __version__,
        "model": name_of_model(settings),
        "bundled": settings.model == SKETCH,
        "ready": ready,
        "auth": bool(settings.api_keys),
        "limits": {
            "max_pixels": settings.max_pixels,
            "max_steps": settings.max_steps,
            "max_pictures": settings.max_pictures,
            "max_queue": settings.max_queue,
            "multiple": UNIT,
        },
        "sizes": {
            "default": "{}x{}".format(*served.default_size),
            "trained": list(served.side_limits),
        },
        "presets": preset_list(),
        "default_preset": served.default_preset,
        "default_guidance": served.default_guidance,
        "adapters": list(served.adapters),
        "formats": list(FORMATS),
        "examples": json.loads(EXAMPLES.read_text("utf-8")) if settings.model == SKETCH else [],
    }


async def _api_error(request: Request, error: Any) -> Response:
    # Escaped, for a message may name what a client sent, and that may be half of a character.
    return Response(json.dumps(error.body), error.status, error.headers, "application/json")


async def _invalid(request: Request, error: Any) -> Response:
    """A body or a parameter of another form, by its first fault: its place, and what is wrong there."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:]) or None
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "there is no such field"
    shown = f"`{place}`: {message}." if place else f"{message}."
    return await _api_error(request, ApiError(400, shown, code="invalid_value", param=place))


async def _http_error(request: Request, error: Any) -> Response:
    told = {404: f"There is nothing at {request.url.path[:80]!r}.", 405: "This path does not take that method."}
    message = told.get(error.status_code, str(error.detail))
    return await _api_error(request, ApiError(error.status_code, message, headers=error.headers))

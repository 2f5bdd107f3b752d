"""The route that tells what a server has: its model, its limits, and whether it takes jobs."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from .._version import __version__
from ..bundled import SKETCH
from ..sizes import UNIT
from .api_errors import responses
from .health import status_of
from .job_settings import preset_list
from .jobs import Jobs
from .records import FORMATS
from .server_settings import ServerSettings
from .serving_model import name_of_model, served_by

EXAMPLES = Path(__file__).parent / "examples.json"

router = APIRouter(prefix="/v1", tags=["server"])


class ServerView(BaseModel):
    """What a server has, and how much of it may be asked for."""

    version: str
    model: str
    bundled: bool
    ready: bool
    auth: bool
    writer: str | None
    describes: bool
    limits: dict[str, int]
    sizes: dict[str, Any]
    presets: list[dict[str, Any]]
    default_preset: str
    default_guidance: float | None
    adapters: list[str]
    formats: list[str]
    examples: list[dict[str, Any]]


@router.get("/server", response_model=ServerView, responses=responses())
async def server(request: Request) -> Any:
    """What this server has, for pages and programs that ask for pictures."""
    state = request.app.state
    settings: ServerSettings = state.settings
    jobs: Jobs | None = state.jobs
    served = jobs.served if jobs is not None else served_by(settings, None)
    bundled = settings.model == SKETCH
    return {
        "version": __version__,
        "model": name_of_model(settings),
        "bundled": bundled,
        "ready": status_of(state) == "ready",
        "auth": bool(settings.api_keys),
        "writer": served.writer,
        "describes": settings.llm is not None,
        "limits": {
            "max_pixels": settings.pixel_limit,
            "max_steps": settings.max_steps,
            "max_pictures": settings.max_pictures,
            "max_queue": settings.max_queue,
            "multiple": UNIT,
        },
        "sizes": {
            "default": "{}x{}".format(*served.default_size),
            "trained": list(served.side_limits),
        },
        "presets": preset_list(served),
        "default_preset": served.default_preset,
        "default_guidance": served.default_guidance,
        "adapters": list(served.adapters),
        "formats": list(FORMATS),
        "examples": examples() if bundled else [],
    }


@cache
def examples() -> list[dict[str, Any]]:
    """Captions to start from, which the bundled model was trained to draw."""
    read: list[dict[str, Any]] = json.loads(EXAMPLES.read_text("utf-8"))
    return read

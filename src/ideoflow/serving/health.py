"""The routes by which others see how the server is: live, ready, and its metrics."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from .api_errors import responses

router = APIRouter(tags=["health"])


class ReplicaView(BaseModel):
    """A replica elsewhere, and what it has before it."""

    name: str
    state: Literal["starting", "ready", "leaving"]
    node: str | None
    pid: int | None
    pictures: int
    tokens: int
    tokens_per_second: float | None


class Health(BaseModel):
    """How the server is, in a word; and its replicas, where it has some elsewhere."""

    status: str
    replicas: list[ReplicaView] | None = None


def status_of(state: Any) -> Literal["loading", "ready", "draining", "failed"]:
    """How the server is that has this application state."""
    if state.failure is not None:
        return "failed"
    if state.jobs is None:
        return "loading"
    if not state.jobs.healthy:
        return "failed"
    return "draining" if state.jobs.draining else "ready"


@router.get("/health/live", response_model=Health, responses={503: {"model": Health}})
async def live(request: Request) -> Any:
    """Whether the process works; if not, restart it."""
    failed = status_of(request.app.state) == "failed"
    return JSONResponse({"status": "failed" if failed else "live"}, 503 if failed else 200)


@router.get("/health/ready", response_model=Health, responses={503: {"model": Health}})
async def ready(request: Request) -> Any:
    """Whether jobs are accepted; if not, send them elsewhere."""
    status = status_of(request.app.state)
    fleet = request.app.state.fleet
    replicas = {} if fleet is None else {"replicas": fleet.views}
    return JSONResponse({"status": status, **replicas}, 200 if status == "ready" else 503)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **responses()},
)
async def metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

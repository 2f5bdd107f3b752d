"""The studio: its page at `/`, and the modules and style sheets that it is made of under `/studio/`."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FILES = "/studio/"  # where the page's own files are, which need no key
FOLDER = Path(__file__).parent / "studio"
FRESH = {"Cache-Control": "no-cache"}  # asked for again each time, and answered with 304 while nothing has changed

router = APIRouter()


class StudioFiles(StaticFiles):
    """The page's files, which browsers may keep but must ask after: the next version has the same names."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The answer to a request for a file."""
        response = await super().get_response(path, scope)
        response.headers.update(FRESH)
        return response


@router.get("/", include_in_schema=False)
async def index() -> FileResponse:
    """The page itself."""
    return FileResponse(FOLDER / "index.html", headers=FRESH)

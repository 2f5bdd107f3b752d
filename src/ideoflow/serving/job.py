"""A job in memory: what was asked for, how far its pictures are, what has happened to it, and how clients see it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event as Flag
from threading import RLock
from typing import Any, Protocol

from .job_settings import JobSettings
from .journal import LAST, Journal
from .records import JobRecord, PictureInfo

NEWEST = 0.3  # what the latest step counts for in the seconds that a step takes
UNSEEN = 2**52  # beyond the numbers of events that anyone has seen, which begin with the microseconds since 1970


class PictureRequest(Protocol):
    """What a job knows of the request of a picture, wherever that is stepped."""

    @property
    def steps(self) -> int:
        """Steps that it takes."""

    @property
    def text_tokens(self) -> int:
        """Tokens of its caption."""

    @property
    def image_tokens(self) -> int:
        """Tokens of its pixels."""


@dataclass(eq=False)
class Picture:
    """One picture of a job in the making.

    Attributes:
        request: what the engine steps; None once it is finished, failed or cancelled: it has tensors on the device.
        steps: steps that it takes.
        text_tokens: tokens of its caption.
        image_tokens: tokens of its pixels.
        step: steps taken.
        pace: seconds a step of late; None before the second.
        stepped: time of its latest step; None before the first.
    """

    request: PictureRequest | None
    steps: int
    text_tokens: int
    image_tokens: int
    step: int = 0
    pace: float | None = None
    stepped: float | None = None

    @classmethod
    def of(cls, request: PictureRequest) -> Picture:
        """The picture that a request is for."""
        return cls(request, request.steps, request.text_tokens, request.image_tokens)

    def take(self, step: int, now: float) -> None:
        """Note a step, and how long it took."""
        if self.stepped is not None:
            seconds = now - self.stepped
            self.pace = seconds if self.pace is None else self.pace + NEWEST * (seconds - self.pace)
        self.step, self.stepped = step, now

    @property
    def seconds_left(self) -> float | None:
        """Seconds until its last step at this pace; None where that is not known yet."""
        if self.request is None or self.step == self.steps:
            return 0.0
        return None if self.pace is None else round(self.pace * (self.steps - self.step), 2)


@dataclass(eq=False)
class Job:
    """A job that is under way, or has ended.

    Attributes:
        record: what is kept of it.
        settings: what was asked for.
        given_pixels: pixels of the picture that is changed; 0 where pictures are drawn from the caption alone.
        pictures: those that were to be made when it was submitted or taken up, by index.
        journal: its events.
        data: bytes of the pictures of a job that is not stored, by index.
        given_up: whether somebody cancelled it.
        ended: set once its last event has been told.
        lock: of all this.
    """

    record: JobRecord
    settings: JobSettings
    given_pixels: int = 0
    pictures: dict[int, Picture] = field(default_factory=dict)
    journal: Journal = field(default_factory=lambda: Journal(first=int(time.time() * 1e6)))
    data: dict[int, bytes] = field(default_factory=dict)
    given_up: bool = False
    ended: Flag = field(default_factory=Flag)
    lock: RLock = field(default_factory=RLock)

    @classmethod
    def ended_before(cls, record: JobRecord) -> Job:
        """A job of which nothing but its record is left."""
        job = cls(record, JobSettings.of_request(record.request), journal=Journal(first=UNSEEN))
        job.tell_status()
        return job

    @property
    def id(self) -> str:
        """Its id."""
        return self.record.id

    @property
    def missing(self) -> list[int]:
        """Indices of the pictures that are not finished."""
        with self.lock:
            made = {info.index for info in self.record.pictures}
        return [index for index in range(len(self.settings.seeds)) if index not in made]

    @property
    def under_way(self) -> list[PictureRequest]:
        """Requests of the pictures that have not ended."""
        with self.lock:
            return [picture.request for picture in self.pictures.values() if picture.request is not None]

    def tell(self, event: str, told: dict[str, Any], key: str | None = None) -> None:
        """Add an event to its journal."""
        self.journal.tell(event, {"job": self.id, "created_at": time.time(), **told}, key)

    def tell_status(self) -> None:
        """Add the event that tells how the job has ended, with all of it."""
        status = self.record.status
        self.tell(status, {"job": self.view(), **({"error": self.record.error} if status == "failed" else {})})
        if status in LAST:
            self.ended.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for its last event, for so many seconds at most; whether it has been told."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for event in self.journal.follow():
                    if event is not None and event.type in LAST:
                        return True
        return self.journal.ended

    def view(self, queue_position: int | None = None) -> dict[str, Any]:
        """The job as clients see it."""
        with self.lock:
            record, settings = self.record, self.settings
            caption = record.request["caption"]
            return {
                "id": record.id,
                "object": "job",
                "status": record.status,
                "created_at": record.created_at,
                "started_at": record.started_at,
                "finished_at": record.finished_at,
                "queue_position": queue_position if record.status == "queued" else None,
                "progress": self._progress(),
                "request": record.request,
                "caption": caption if isinstance(caption, dict) else None,
                "prompt": record.prompt,
                "revised_prompt": record.revised_prompt,
                "prompt_was": record.prompt_was,
                "warnings": record.warnings,
                "stored": settings.stored,
                "pictures": self.picture_views(record.pictures),
                "error": record.error,
                "links": {
                    "self": f"/v1/jobs/{record.id}",
                    "events": f"/v1/jobs/{record.id}/events",
                    "pictures": f"/v1/jobs/{record.id}/pictures/{{n}}",
                },
            }

    def picture_views(self, infos: Sequence[PictureInfo]) -> list[dict[str, Any]]:
        """Finished pictures as clients see them."""
        return [
            {
                "index": info.index,
                "seed": info.seed,
                "width": info.width,
                "height": info.height,
                "format": info.format,
                "bytes": info.bytes,
                "url": f"/v1/jobs/{self.id}/pictures/{info.index}",
            }
            for info in infos
        ]

    def _progress(self) -> dict[str, Any]:
        """Steps taken and to be taken, over all pictures, and seconds left where that is known."""
        pictures = list(self.pictures.values())
        steps = len(self.settings.seeds) * self.settings.steps
        made_before = sum(info.index not in self.pictures for info in self.record.pictures)
        taken = made_before * self.settings.steps + sum(picture.step for picture in pictures)
        left = [picture.seconds_left for picture in pictures]
        known = [seconds for seconds in left if seconds is not None]
        over = self.record.status in LAST
        return {
            "step": steps if self.record.status == "finished" else taken,
            "steps": steps,
            "seconds_left": None if over or len(known) < len(left) else max(known, default=0),
        }

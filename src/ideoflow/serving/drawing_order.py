"""What a replica is asked to draw: pictures of one job, in a form that can be sent to another process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .job import Job
from .job_settings import JobSettings
from .picture_changes import PictureChange


@dataclass(frozen=True)
class DrawingOrder:
    """Pictures of a job.

    Attributes:
        job: the job's id.
        prompt: the line that is drawn.
        settings: what was asked for.
        indices: which of the job's pictures.
        created_at: when the job was accepted, in Unix seconds.
        change: what is done to a picture; None where they are drawn from the caption alone.
    """

    job: str
    prompt: str
    settings: JobSettings
    indices: tuple[int, ...]
    created_at: float
    change: PictureChange | None = None

    @classmethod
    def of(cls, job: Job, change: PictureChange | None) -> DrawingOrder:
        """The pictures of a job that are missing."""
        record = job.record
        return cls(record.id, record.prompt, job.settings, tuple(job.missing), record.created_at, change)

    def only(self, index: int) -> DrawingOrder:
        """One of the pictures."""
        return replace(self, indices=(index,))

    @property
    def names(self) -> Sequence[str]:
        """A name for the request of each picture."""
        return [f"{self.job} picture {index}" for index in self.indices]

    @property
    def seconds_left(self) -> float | None:
        """Seconds of the job's time limit that are left; None without one."""
        limit = self.settings.timeout
        return None if limit is None else self.created_at + limit - time.time()

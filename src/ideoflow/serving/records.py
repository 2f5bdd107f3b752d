"""What the server keeps of a job and of its pictures, and which ids and formats there are."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Status = Literal["queued", "running", "finished", "failed", "cancelled"]
STATUSES: tuple[Status, ...] = get_args(Status)
UNFINISHED: tuple[Status, ...] = ("queued", "running")
ENDED: tuple[Status, ...] = tuple(status for status in STATUSES if status not in UNFINISHED)
Format = Literal["png", "jpeg", "webp"]
FORMATS: tuple[Format, ...] = get_args(Format)
MOST_PICTURES = 10_000  # pictures of one job: what a name of a file has digits for

_ID = re.compile(r"job_[A-Za-z0-9]{22}")


def is_job_id(text: object) -> bool:
    """Whether this is written as the ids of jobs are: `job_` and 22 letters or digits of ASCII."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


@dataclass(frozen=True)
class PictureInfo:
    """A finished picture of a job, without its pixels.

    Attributes:
        index: Its number within the job, from 0.
        seed: Seed of its noise.
        width: Pixels.
        height: Pixels.
        format: One of `FORMATS`.
        bytes: Size of its file.
    """

    index: int
    seed: int
    width: int
    height: int
    format: str
    bytes: int


@dataclass
class JobRecord:
    """A job as it is kept. Times are Unix seconds.

    Attributes:
        id: `job_` and 22 letters or digits.
        status: One of `STATUSES`.
        created_at: When it was accepted.
        request: The body as it was understood, with nothing left open: what JSON can say.
        prompt: The line that is drawn.
        prompt_was: How the line came about: "json", "repaired", "wrapped" or "written".
        revised_prompt: The line where it is not what the client sent.
        warnings: Remarks for the client.
        started_at: When its first step was taken.
        finished_at: When it was finished, failed or cancelled.
        error: Why it failed: "type" and "message".
        key: The client's idempotency key; no two jobs have the same.
        body_digest: Digest of the body that came with the key.
        model: The model that it is for, as the server was given it; nothing for clients.
        attempts: How often the server was killed while it was running.
        pictures: Its finished pictures, by index. The store fills this in: `Store.add_picture` adds them.
    """

    id: str
    status: Status
    created_at: float
    request: dict[str, Any]
    prompt: str
    prompt_was: str = "json"
    revised_prompt: str | None = None
    warnings: list[str] = field(default_factory=list)
    started_at: float | None = None
    finished_at: float | None = None
    error: dict[str, Any] | None = None
    key: str | None = None
    body_digest: str | None = None
    model: str = ""
    attempts: int = 0
    pictures: list[PictureInfo] = field(default_factory=list)

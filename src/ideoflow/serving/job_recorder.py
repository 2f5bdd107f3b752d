"""The recorder: one thread that writes what happens to pictures into jobs, files and the database, in its order."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..bundled import SKETCH
from ..pictures import encode_image
from ..placeholder import PLACEHOLDER, looks_like_placeholder
from ..provenance import to_text
from .drawing_backend import Event
from .job import Job, PictureRequest
from .job_table import JobTable
from .metrics import Metrics
from .records import PictureInfo, Status
from .server_settings import without_folders
from .store import Store, StoreError, UnknownJob

logger = logging.getLogger(__name__)


class JobRecorder:
    """Writes down what the engine tells; whoever tells it goes on at once.

    Args:
        table: the jobs in memory.
        store: where jobs are kept.
        metrics: what is counted.
        cancel: gives up a request.
    """

    def __init__(
        self, table: JobTable, store: Store, metrics: Metrics, cancel: Callable[[PictureRequest], object]
    ) -> None:
        self.stopping = False  # jobs that are stored and not finished stay as they are, for the next start
        self._table = table
        self._store = store
        self._metrics = metrics
        self._cancel = cancel
        self._unwritten: deque[Job] = deque()  # jobs that have ended, which the database does not know yet
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recorder")

    def hear(self, event: Event) -> None:
        """Write an event of the engine down."""
        self._thread.submit(self._note, event, time.monotonic())

    def refuse(self, job: Job, error: Exception) -> None:
        """Have a job fail that the engine did not take."""
        for index in job.pictures:
            self._thread.submit(self._fail, job, index, error)

    def give_up(self, job: Job, kind: str, message: str, resume: bool = False) -> None:
        """Have a job fail for a reason that is not its own.

        Args:
            job: the job.
            kind: the type of its error.
            message: the error in words.
            resume: a job that is stored stays as it is in the database, for the next start.
        """
        self._thread.submit(self._give_up, job, kind, message, resume)

    def settle(self, job: Job) -> None:
        """Give a job of which no picture is under way its end."""
        self._thread.submit(self._settle, job)

    def close(self) -> None:
        """Write down what was heard so far, and end."""
        self._thread.submit(self._catch_up)
        self._thread.shutdown(wait=True)

    def _note(self, event: Event, now: float) -> None:
        found = self._table.of_request(event.request)
        if found is None:
            return
        job, index = found
        try:
            if event.kind == "started":
                self._note_start(job)
            elif event.kind == "step":
                self._note_step(job, index, event, now)
            elif event.kind == "finished":
                self._keep(job, index, event)
                self._end_picture(job, index)
            elif event.kind == "failed":
                self._fail(job, index, event.error or RuntimeError("for an unknown reason"))
            elif event.kind == "cancelled":
                self._end_picture(job, index)
        except Exception as error:
            logger.exception("%s could not be written down", job.id)
            self._fail(job, index, error)

    def _note_start(self, job: Job) -> None:
        if job.record.status != "queued":
            return
        self._change(job, status="running", started_at=time.time())
        self._metrics.count_start(job.record)
        job.tell("started", {})

    def _note_step(self, job: Job, index: int, event: Event, now: float) -> None:
        picture = job.pictures[index]
        picture.take(event.step, now)
        told = {"picture": index, "step": event.step, "steps": event.request.steps}
        job.tell("step", {**told, "seconds_left": picture.seconds_left}, key=f"step {index}")
        if event.image is not None:
            shown = {"image": event.image, "width": event.image.width, "height": event.image.height}
            job.tell("preview", {**told, **shown}, key=f"preview {index}")

    def _keep(self, job: Job, index: int, event: Event) -> None:
        """Keep a finished picture, with the settings that make it again."""
        settings = _without_paths(event.request.settings or {})
        form = job.settings.format
        data = encode_image(
            event.image, form.upper(), to_text(settings) if settings else None, job.settings.compression
        )
        info = PictureInfo(index, job.settings.seeds[index], event.image.width, event.image.height, form, len(data))
        if job.settings.stored:
            self._store.add_picture(job.id, index, data, info)
        else:
            job.data[index] = data
        with job.lock:
            job.record.pictures = sorted([*job.record.pictures, info], key=lambda one: one.index)
        self._metrics.count_picture()
        empty = job.record.model != SKETCH and looks_like_placeholder(event.image)
        if empty:
            self._change(job, warnings=[*job.record.warnings, f"picture {index}: {PLACEHOLDER}"])
        job.tell("picture", {"picture": job.picture_views([info])[0], "placeholder": empty})

    def _fail(self, job: Job, index: int, error: Exception) -> None:
        """Have a job fail: its other pictures are given up."""
        if job.record.error is None:
            kind = "timeout" if isinstance(error, TimeoutError) else "failed"
            job.record.error = {"type": kind, "message": _message(error)}
            for request in job.under_way:
                self._cancel(request)
        self._end_picture(job, index)

    def _give_up(self, job: Job, kind: str, message: str, resume: bool) -> None:
        if not self._table.is_unfinished(job):
            return
        job.record.error = {"type": kind, "message": message}
        for request in job.under_way:
            self._cancel(request)
        for index in job.pictures:
            self._table.end_picture(job, index)
        self._settle(job, written=not (resume and job.settings.stored))

    def _end_picture(self, job: Job, index: int) -> None:
        if self._table.end_picture(job, index):
            self._settle(job)

    def _settle(self, job: Job, written: bool = True) -> None:
        if not self._table.is_unfinished(job):
            return
        whole = not job.missing
        if self.stopping and job.settings.stored and not (whole or job.given_up or job.record.error is not None):
            return
        status: Status = "failed" if job.record.error is not None else "finished" if whole else "cancelled"
        with job.lock:
            job.record.status, job.record.finished_at = status, time.time()
            self._metrics.count_end(job.record)  # before anybody sees it ended
        if written and job.settings.stored:
            self._unwritten.append(job)
            self._catch_up()
        self._table.end(job)
        job.tell_status()

    def _catch_up(self) -> None:
        """Write down how jobs have ended; what cannot be written, such as to a full disk, is tried again later."""
        try:
            while self._unwritten:
                record = self._unwritten[0].record
                with suppress(UnknownJob):  # it was forgotten meanwhile
                    self._store.update(
                        record.id, status=record.status, finished_at=record.finished_at, error=record.error
                    )
                self._unwritten.popleft()
            self._store.retain()
        except Exception:
            logger.exception("%d jobs have ended, and that could not be written down", len(self._unwritten))

    def _change(self, job: Job, **changes: Any) -> None:
        with job.lock:
            for name, value in changes.items():
                setattr(job.record, name, value)
        if job.settings.stored:
            self._store.update(job.id, **changes)


def _without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the names of files in place of paths on this machine, which are nobody's business."""
    named = {key: without_folders(settings[key]) for key in ("model", "base") if settings.get(key)}
    loras = [{**lora, "path": Path(lora["path"]).name} for lora in settings.get("loras", [])]
    return {**settings, **named, "loras": loras} if named else settings


def _message(error: Exception) -> str:
    """An error in words that may leave the machine: without paths of files."""
    if isinstance(error, StoreError):
        return "The picture was drawn and could not be kept: the server's log says why."
    if isinstance(error, OSError) and error.filename is not None:
        return f"{type(error).__name__}: {error.strerror}"
    return f"{error}" if str(error) else type(error).__name__

"""Jobs: what clients asked for, from the queue through the engine to kept pictures.

Three kinds of threads meet here. Routes submit, cancel and look from the server's; the engine's thread hands on what
happens and goes on at once; and one clerk alone writes what happened into jobs, files and the database, in its order.
"""

from __future__ import annotations

import base64
import io
import logging
import math
import secrets
import string
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as Flag
from threading import RLock
from typing import Any

import torch

from ..engine import Event, Request
from ..pictures import encode_image
from ..pipeline import Ideogram4Pipeline, preview_map_of
from ..provenance import to_text
from ..text_encoder import tokenise
from .api_errors import ApiError
from .job_settings import Order, Served, Settled, settle, unusual_size
from .journal import Journal
from .metrics import Metrics
from .prompts import ReadPrompt, read_prompt
from .records import JobRecord, PictureInfo, Status
from .store import DuplicateKey, Store, UnknownJob
from .worker import Worker

logger = logging.getLogger(__name__)

LETTERS = string.ascii_letters + string.digits
ENDED_JOBS = 256  # that are kept in memory for those who come for their last events
ENDED_BYTES = 64 * 2**20  # of pictures of jobs that are not stored
PATIENCE = 3.0  # seconds that a cancellation is waited for, which comes with the next step
NEWEST = 0.3  # what the latest step counts for in the seconds that a step takes
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


@dataclass(eq=False)
class Picture:
    """One picture of a job in the making.

    Attributes:
        request: what the engine steps.
        step: steps taken.
        pace: seconds a step of late; None before the second.
        stepped: time of its latest step; None before the first.
        ended: whether it is finished, failed or cancelled.
    """

    request: Request
    step: int = 0
    pace: float | None = None
    stepped: float | None = None
    ended: bool = False

    def take(self, step: int, now: float) -> None:
        """Note a step, and how long it took."""
        if self.stepped is not None:
            seconds = now - self.stepped
            self.pace = seconds if self.pace is None else self.pace + NEWEST * (seconds - self.pace)
        self.step, self.stepped = step, now

    @property
    def seconds_left(self) -> float | None:
        """Seconds until its last step at this pace; None where that is not known yet."""
        if self.ended or self.step == self.request.steps:
            return 0.0
        return None if self.pace is None else round(self.pace * (self.request.steps - self.step), 2)


@dataclass(eq=False)
class Job:
    """A job that is under way, or has just ended.

    Attributes:
        record: what is kept of it.
        settled: what was asked for.
        pictures: those that were to be made when it was submitted, by index.
        journal: its events.
        kept: bytes of the pictures of a job that is not stored, by index.
        given_up: whether somebody cancelled it.
        ended: set once its last event has been told.
    """

    record: JobRecord
    settled: Settled
    pictures: dict[int, Picture] = field(default_factory=dict)
    journal: Journal = field(default_factory=Journal)
    kept: dict[int, bytes] = field(default_factory=dict)
    given_up: bool = False
    ended: Flag = field(default_factory=Flag)

    @property
    def id(self) -> str:
        """Its id."""
        return self.record.id


class Jobs:
    """All jobs of a server.

    Args:
        pipe: the pipeline, which nobody else uses.
        served: what orders are settled by.
        store: where jobs are kept.
        metrics: what is counted.
    """

    def __init__(self, pipe: Ideogram4Pipeline, served: Served, store: Store, metrics: Metrics) -> None:
        self.served = served
        self.draining = False
        self._pipe = pipe
        self._store = store
        self._metrics = metrics
        self._lock = RLock()  # of what follows, and of the jobs themselves
        self._unfinished: dict[str, Job] = {}
        self._reserved = 0  # places of jobs that are being submitted
        self._ended: OrderedDict[str, Job] = OrderedDict()
        self._of_request: dict[Request, tuple[Job, int]] = {}
        self._clerk = ThreadPoolExecutor(1, thread_name_prefix="clerk")
        engine = pipe.engine(
            policy=served.settings.policy,
            max_tokens=served.settings.max_tokens,
            output_type="pil",
            preview_every=1,
            previews=preview_map_of(pipe.vae, served.settings.data),
        )
        self._worker = Worker(engine, self._hear, metrics.count_pass)
        metrics.watch(self)

    # What routes ask for

    def submit(
        self, order: Order, prompt: ReadPrompt | None = None, key: str | None = None, digest: str | None = None
    ) -> tuple[Job, bool]:
        """Accept a job.

        Args:
            order: what is asked for.
            prompt: its caption as read; None to read it here.
            key: the client's idempotency key.
            digest: digest of the body that came with it.

        Returns:
            The job, and whether it is new: an idempotency key that is known gives the job that it came with.

        Raises:
            ApiError: with status 400 for what cannot be drawn, 409 for a key that came with another body, 429 where the
                queue is full, 503 where the server is about to stop or the engine has failed.
        """
        if key is not None and (known := self._store.by_key(key)) is not None:
            return self._same(known, digest), False
        self._check_open()
        settled = settle(order, self.served)
        prompt = prompt or _read(order)
        with self._lock:
            self._check_room()
            self._reserved += 1
        try:
            record = JobRecord(
                id=f"job_{''.join(secrets.choice(LETTERS) for _ in range(22))}",
                status="queued",
                created_at=time.time(),
                request={**settled.as_request(prompt.caption or prompt.line), "model": self.served.settings.model},
                prompt=prompt.line,
                prompt_was=prompt.was,
                revised_prompt=prompt.revised,
                warnings=self._remarks(prompt, settled),
                key=key,
                body_digest=digest,
            )
            job = Job(record, settled)
            requests = self._make(job, range(len(settled.seeds)))
            if settled.stored:
                self._store.put(record)
            self._begin(job, requests)
        except DuplicateKey:  # two of one key at one moment
            known = self._store.by_key(key or "")
            if known is None:
                raise
            return self._same(known, digest), False
        finally:
            with self._lock:
                self._reserved -= 1
        return job, True

    def find(self, id: str) -> Job | None:
        """The job of this id, under way or kept; None if there is none."""
        with self._lock:
            job = self._unfinished.get(id) or self._ended.get(id)
        if job is not None:
            return job
        record = self._store.get(id)
        return None if record is None else self._of_record(record)

    def get(self, id: str) -> Job:
        """The job of this id.

        Raises:
            ApiError: with status 404 if there is none.
        """
        job = self.find(id)
        if job is None:
            raise ApiError(404, f"There is no job {id[:40]!r}.", code="not_found", param="id")
        return job

    def page(self, statuses: Sequence[Status] | None, limit: int, after: str | None, text: str | None) -> list[Job]:
        """Stored jobs, the newest first; arguments as in `Store.find`.

        Raises:
            ApiError: with status 400 for an `after` that is no job's, or no longer.
        """
        try:
            found = self._store.find(statuses, limit, after, text)
        except UnknownJob:
            raise ApiError(
                400, "`after` is the id of no job that is kept.", code="invalid_value", param="after"
            ) from None
        return [self.find(record.id) or self._of_record(record) for record in found]

    def cancel(self, id: str) -> Job:
        """Give up a job that is not finished, and wait, shortly, for its last event.

        Raises:
            ApiError: with status 404 if there is none.
        """
        job = self.get(id)
        with self._lock:
            if job.id not in self._unfinished:
                return job
            job.given_up = True
            requests = [picture.request for picture in job.pictures.values() if not picture.ended]
        for request in requests:
            self._worker.engine.cancel(request)
        job.ended.wait(PATIENCE)
        return job

    def forget(self, id: str) -> None:
        """Cancel a job if need be, and remove it with its pictures.

        Raises:
            ApiError: with status 404 if there is none.
        """
        job = self.cancel(id)
        if not job.ended.wait(PATIENCE):
            raise ApiError(409, f"{job.id} is still being ended: try again in a moment.", code="busy")
        with self._lock:
            self._ended.pop(id, None)
        self._store.forget(id)

    def picture(self, id: str, index: int) -> tuple[PictureInfo, Path | bytes]:
        """A finished picture of a job: what is known of it, and its file, or its bytes where the job is not stored.

        Raises:
            ApiError: with status 404 if there is none.
        """
        job = self.get(id)
        info = next((info for info in job.record.pictures if info.index == index), None)
        found: Path | bytes | None = job.kept.get(index)
        if info is not None and found is None and job.settled.stored:
            found = self._store.picture(id, index)
        if info is None or found is None:
            raise ApiError(404, f"{job.id} has no picture {index}.", code="not_found", param="index")
        return info, found

    def view(self, job: Job) -> dict[str, Any]:
        """A job as clients see it."""
        with self._lock:
            record, pictures = job.record, list(job.pictures.values())
            steps = len(job.settled.seeds) * job.settled.steps
            made = len(job.settled.seeds) - len(pictures)
            taken = made * job.settled.steps + sum(picture.step for picture in pictures)
            left = [picture.seconds_left for picture in pictures]
            finished = record.status in ("finished", "failed", "cancelled")
            seconds_left = (
                None if finished or None in left else max((one for one in left if one is not None), default=0)
            )
            caption = record.request["caption"]
            return {
                "id": record.id,
                "object": "job",
                "status": record.status,
                "created_at": record.created_at,
                "started_at": record.started_at,
                "finished_at": record.finished_at,
                "queue_position": self._position(job) if record.status == "queued" else None,
                "progress": {
                    "step": steps if record.status == "finished" else taken,
                    "steps": steps,
                    "seconds_left": seconds_left,
                },
                "request": record.request,
                "caption": caption if isinstance(caption, dict) else None,
                "prompt": record.prompt,
                "revised_prompt": record.revised_prompt,
                "prompt_was": record.prompt_was,
                "warnings": record.warnings,
                "stored": job.settled.stored,
                "pictures": [picture_view(job, info) for info in record.pictures],
                "error": record.error,
                "links": {
                    "self": f"/v1/jobs/{record.id}",
                    "events": f"/v1/jobs/{record.id}/events",
                    "pictures": f"/v1/jobs/{record.id}/pictures/{{n}}",
                },
            }

    def count_tokens(self, line: str) -> int:
        """Tokens that the model reads of a prompt's line."""
        return len(tokenise(self._pipe.tokenizer, [line], max_sequence_length=len(line.encode()) + 1000)[0])

    # The server's life

    def start(self) -> None:
        """Take up what was left unfinished, and begin to step."""
        for record in self._store.unfinished():
            try:
                self._take_up(record)
            except Exception as error:
                message = error.message if isinstance(error, ApiError) else f"{type(error).__name__}: {error}"
                logger.warning("%s cannot be taken up again: %s", record.id, message)
                self._fail_kept(record, f"It cannot be taken up after the server's restart: {message}")
        self._worker.start()

    @property
    def healthy(self) -> bool:
        """Whether jobs are worked at."""
        return self._worker.healthy

    @property
    def unfinished(self) -> int:
        """Jobs that are waiting or running."""
        with self._lock:
            return len(self._unfinished)

    @property
    def running(self) -> int:
        """Jobs that have begun and are not finished."""
        with self._lock:
            return sum(job.record.status == "running" for job in self._unfinished.values())

    def drain(self) -> None:
        """Accept no more jobs."""
        self.draining = True

    def close(self) -> None:
        """Stop at once. Stored jobs that are not finished stay as they are, for the next start; others are lost."""
        self.drain()
        with self._lock:
            self._closing = True
            requests = list(self._of_request)
        for request in requests:
            self._worker.engine.cancel(request)
        self._worker.close(timeout=60)
        self._clerk.shutdown(wait=True)

    _closing = False

    # Accepting

    def _check_open(self) -> None:
        if self.draining:
            raise ApiError(
                503,
                "The server is about to stop: ask again in a moment.",
                code="draining",
                headers={"Retry-After": "5"},
            )
        if not self.healthy:
            raise ApiError(503, "The engine has failed: the server has to be restarted.", code="engine_failed")

    def _check_room(self) -> None:
        """See that there is a place in the queue; within the lock."""
        places = self.served.settings.max_queue
        if len(self._unfinished) + self._reserved < places:
            return
        seconds = self.seconds_to_a_place()
        raise ApiError(
            429,
            f"The queue is full: {places} jobs are waiting or running. Ask again in {seconds} seconds.",
            code="queue_full",
            headers={"Retry-After": str(seconds)},
        )

    def seconds_to_a_place(self) -> int:
        """Seconds until a job is done, on average, at the engine's pace of late."""
        backlog = self._worker.backlog
        if backlog is None:
            return 5
        return max(1, min(3600, math.ceil(backlog / max(1, self.unfinished))))

    def _same(self, record: JobRecord, digest: str | None) -> Job:
        if record.body_digest != digest:
            raise ApiError(
                409,
                "This idempotency key came with another body before: use a key of its own for each job.",
                code="idempotency_key_reused",
                param="Idempotency-Key",
            )
        return self.find(record.id) or self._of_record(record)

    def _remarks(self, prompt: ReadPrompt, settled: Settled) -> list[str]:
        size = unusual_size(settled.width, settled.height, self.served.side_limits)
        return [*prompt.warnings, *([size] if size else [])]

    def _make(self, job: Job, indices: Sequence[int]) -> list[Request]:
        """Requests of pictures of a job.

        Raises:
            ApiError: with status 400 where the pipeline refuses them.
        """
        settled = job.settled
        options: dict[str, Any] = {} if settled.guidance is None else {"guidance_scale": settled.guidance}
        try:
            requests = self._pipe.make_requests(
                [job.record.prompt] * len(indices),
                size=(settled.width, settled.height),
                preset=settled.preset,
                num_inference_steps=settled.steps,
                generator=[torch.Generator().manual_seed(settled.seeds[index]) for index in indices],
                defer=True,
                priority=settled.priority,
                adapters=dict(settled.adapters) if self.served.adapters else None,
                deadline=None if settled.timeout is None else time.monotonic() + settled.timeout,
                preview_every=settled.preview_every,
                **options,
            )
        except (ValueError, TypeError) as error:
            raise ApiError(400, str(error), code="invalid_value") from None
        for index, request in zip(indices, requests, strict=True):
            request.id = f"{job.id} picture {index}"
        return requests

    def _begin(self, job: Job, requests: Sequence[Request]) -> None:
        """Put a job into the queue and its requests into the engine."""
        missing = [index for index in range(len(job.settled.seeds)) if index not in _made(job)]
        with self._lock:
            for index, request in zip(missing, requests, strict=True):
                job.pictures[index] = Picture(request)
                self._of_request[request] = job, index
            self._unfinished[job.id] = job
        job.journal.tell("queued", {**_about(job), "queue_position": self._position(job)})
        try:
            self._worker.add(requests)
        except ValueError as error:  # such as one that is too large for the engine
            self._clerk.submit(self._refuse, job, error)
            raise ApiError(400, str(error), code="invalid_value") from None

    def _take_up(self, record: JobRecord) -> None:
        """Put a job that was unfinished when the server stopped into the queue again."""
        settings = self.served.settings
        asked = dict(record.request)
        model = asked.pop("model", settings.model)
        if settings.on_restart == "fail":
            raise ApiError(503, "the server was told not to take up jobs.")
        if model != settings.model:
            raise ApiError(503, f"it was for the model {model!r}, and this server has {settings.model!r}.")
        job = Job(record, settle(Order.model_validate(asked), self.served))
        missing = [index for index in range(len(job.settled.seeds)) if index not in _made(job)]
        record.status, record.started_at = "queued", None
        self._store.update(record.id, status="queued", started_at=None)
        self._begin(job, self._make(job, missing) if missing else [])
        if not missing:
            self._clerk.submit(self._settle_job, job)

    # What happens, in the engine's thread and in the clerk's

    def _hear(self, event: Event) -> None:
        self._clerk.submit(self._note, event, time.monotonic())

    def _note(self, event: Event, now: float) -> None:
        """Write an event of the engine into its job; the clerk's."""
        with self._lock:
            found = self._of_request.get(event.request)
        if found is None:
            return
        job, index = found
        try:
            if event.kind == "started":
                self._note_start(job)
            elif event.kind == "step":
                self._note_step(job, index, event, now)
            elif event.kind in ("finished", "failed", "cancelled"):
                self._note_end(job, index, event)
        except Exception as error:
            logger.exception("%s could not be written down", job.id)
            self._note_failure(job, index, error)

    def _note_start(self, job: Job) -> None:
        if job.record.status != "queued":
            return
        self._change(job, status="running", started_at=time.time())
        self._metrics.count_start(job.record)
        job.journal.tell("started", _about(job))

    def _note_step(self, job: Job, index: int, event: Event, now: float) -> None:
        picture = job.pictures[index]
        picture.take(event.step, now)
        told = {"picture": index, "step": event.step, "steps": event.request.steps}
        job.journal.tell("step", {**_about(job), **told, "seconds_left": picture.seconds_left}, key=f"step {index}")
        if event.image is not None:
            shown = {**told, "image": _data_url(event.image), "width": event.image.width, "height": event.image.height}
            job.journal.tell("preview", {**_about(job), **shown}, key=f"preview {index}")

    def _note_end(self, job: Job, index: int, event: Event) -> None:
        if event.kind == "finished":
            self._keep(job, index, event)
        elif event.kind == "failed":
            self._note_failure(job, index, event.error or RuntimeError("for an unknown reason"))
            return
        self._end_picture(job, index)

    def _note_failure(self, job: Job, index: int, error: Exception) -> None:
        """Have a job fail: its other pictures are given up."""
        if job.record.error is None:
            kind = "timeout" if isinstance(error, TimeoutError) else "failed"
            job.record.error = {"type": kind, "message": _told(error)}
            for other in list(job.pictures.values()):
                if not other.ended:
                    self._worker.engine.cancel(other.request)
        self._end_picture(job, index)

    def _keep(self, job: Job, index: int, event: Event) -> None:
        """Keep a finished picture, with the settings that make it again."""
        settings = dict(event.request.settings or {})
        if settings.get("model"):
            settings["model"] = (
                Path(settings["model"]).name if Path(settings["model"]).is_absolute() else settings["model"]
            )
            settings["loras"] = [{**lora, "path": Path(lora["path"]).name} for lora in settings["loras"]]
        form = job.settled.format
        text = to_text(settings) if settings else None
        data = encode_image(event.image, FORMATS[form], text, job.settled.compression)
        info = PictureInfo(index, job.settled.seeds[index], event.image.width, event.image.height, form, len(data))
        if job.settled.stored:
            self._store.add_picture(job.id, index, data, info)
        else:
            job.kept[index] = data
        with self._lock:
            job.record.pictures = sorted([*job.record.pictures, info], key=lambda one: one.index)
        self._metrics.count_picture()
        job.journal.tell("picture", {**_about(job), "picture": picture_view(job, info)})

    def _refuse(self, job: Job, error: Exception) -> None:
        """Have a job fail that the engine did not take."""
        for index in list(job.pictures):
            self._note_failure(job, index, error)

    def _end_picture(self, job: Job, index: int) -> None:
        with self._lock:
            picture = job.pictures[index]
            picture.ended = True
            self._of_request.pop(picture.request, None)
            over = all(one.ended for one in job.pictures.values())
        if over:
            self._settle_job(job)

    def _settle_job(self, job: Job) -> None:
        """Give a job of which no picture is under way its end."""
        stopped = self._closing and job.settled.stored and not job.given_up and job.record.error is None
        if stopped and len(job.record.pictures) < len(job.settled.seeds):
            return  # it stays as it is, for the next start
        if job.record.error is not None:
            status = "failed"
        elif len(job.record.pictures) < len(job.settled.seeds):
            status = "cancelled"
        else:
            status = "finished"
        self._change(job, status=status, finished_at=time.time(), error=job.record.error)
        self._metrics.count_end(job.record)
        with self._lock:
            self._unfinished.pop(job.id, None)
            self._ended[job.id] = job
            self._let_go_of_old()
        view = {**_about(job), "job": self.view(job)}
        job.journal.tell(status, {**view, "error": job.record.error} if status == "failed" else view)
        job.ended.set()
        if job.settled.stored:
            self._store.retain()

    def _change(self, job: Job, **changes: Any) -> None:
        with self._lock:
            for name, value in changes.items():
                setattr(job.record, name, value)
        if job.settled.stored:
            self._store.update(job.id, **changes)

    def _fail_kept(self, record: JobRecord, message: str) -> None:
        error = {"type": "restarted", "message": message}
        self._store.update(record.id, status="failed", finished_at=time.time(), error=error)

    def _let_go_of_old(self) -> None:
        """Keep the latest jobs alone in memory; within the lock."""
        held = sum(len(data) for job in self._ended.values() for data in job.kept.values())
        while len(self._ended) > ENDED_JOBS or (held > ENDED_BYTES and len(self._ended) > 1):
            _, oldest = self._ended.popitem(last=False)
            held -= sum(map(len, oldest.kept.values()))

    def _of_record(self, record: JobRecord) -> Job:
        """A job that has ended before, from what was kept of it."""
        asked = {name: value for name, value in record.request.items() if name != "model"}
        width, _, height = asked["size"].partition("x")
        seeds = tuple(asked["seed"] + picture for picture in range(asked["n"]))
        job = Job(
            record,
            Settled(
                int(width), int(height), asked["preset"], asked["num_inference_steps"], asked["guidance_scale"], seeds,
                asked["adapters"], asked["format"], asked["preview_every"], asked["priority"], asked["timeout"],
                asked["stored"], asked.get("compression"),
            ),
        )  # fmt: skip
        job.ended.set()
        told = {**_about(job), "job": self.view(job)}
        job.journal = Journal(first=2**31)  # beyond the numbers that anyone has seen
        job.journal.tell(record.status, {**told, "error": record.error} if record.status == "failed" else told)
        return job

    def _position(self, job: Job) -> int:
        """Jobs that go before this one, as far as can be told now."""
        before: set[str] = set()
        for request in self._worker.engine.requests:
            with self._lock:
                found = self._of_request.get(request)
            if found is not None and found[0] is job:
                break
            if found is not None:
                before.add(found[0].id)
        return len(before)


def _read(order: Order) -> ReadPrompt:
    try:
        return read_prompt(order.caption)
    except ValueError as error:
        raise ApiError(400, str(error), code="invalid_caption", param="caption") from None


def picture_view(job: Job, info: PictureInfo) -> dict[str, Any]:
    """A finished picture as clients see it."""
    return {
        "index": info.index,
        "seed": info.seed,
        "width": info.width,
        "height": info.height,
        "format": info.format,
        "bytes": info.bytes,
        "url": f"/v1/jobs/{job.id}/pictures/{info.index}",
    }


def _about(job: Job) -> dict[str, Any]:
    return {"job": job.id, "created_at": time.time()}


def _made(job: Job) -> set[int]:
    return {info.index for info in job.record.pictures}


def _told(error: Exception) -> str:
    """An error in words that may leave the machine: without paths of files."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{type(error).__name__}: {error.strerror}"
    return f"{error}" if str(error) else type(error).__name__


def _data_url(image: Any) -> str:
    encoded = io.BytesIO()
    image.convert("RGB").save(encoded, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"

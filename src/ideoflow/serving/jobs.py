"""Jobs: what clients asked for, from the queue through the replica to kept pictures.

Three kinds of threads meet here. Routes submit, cancel and look from the server's; the engine's thread hands on what
happens and goes on at once; and the recorder alone writes what happened into jobs, files and the database, in its
order.
"""

from __future__ import annotations

import logging
import math
import secrets
import string
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..bundled import SKETCH
from ..captions.schema import is_placed
from ..captions.sent_prompt import ReadPrompt, read_prompt
from ..captions.writing import Writer, WritingError
from ..sizes import UNIT
from .api_errors import ApiError, invalid_caption
from .drawing_backend import MakeBackend
from .job import Job
from .job_recorder import JobRecorder
from .job_settings import JobSettings, Order, ServedModel, read_size, settle, unusual_size, wrong
from .job_table import JobTable
from .journal import LAST
from .metrics import Metrics
from .picture_changes import LARGER, PictureChange, Wanted
from .preparing import Preparing
from .records import JobRecord, PictureInfo, Status
from .server_settings import without_folders
from .store import DuplicateKey, Store, StoreError, UnknownJob

logger = logging.getLogger(__name__)

UNPLACED = (
    "the bundled model draws elements with a box (`bbox`) alone, and this caption has others: it shows an empty"
    " field there. Give a background and boxes, such as those in examples/captions/."
)
LETTERS = string.ascii_letters + string.digits
ATTEMPTS = 3  # times that a job may be running when the server is killed: it may be what kills it
MOST_GIVEN = 2**29  # pixels of the pictures that jobs change, which are held until those are done: 1.5 GiB
PACE_SECONDS = 1.0  # for which a measured time to a free place is told again


class Jobs:
    """All jobs of a server.

    Args:
        make_backend: makes what draws the pictures: a replica, or a fleet of them.
        served: what orders are settled by.
        store: where jobs are kept.
        metrics: what is counted.
        write: makes captions of clients' words; None to put them into minimal ones.
    """

    def __init__(
        self,
        make_backend: MakeBackend,
        served: ServedModel,
        store: Store,
        metrics: Metrics,
        write: Writer | None = None,
    ) -> None:
        self.served = served
        self.write = write
        self.table = JobTable(served.settings.max_queue)
        self.draining = False
        self.closed = False
        self.preparing = Preparing(self.table.places)
        self._store = store
        self._replica = make_backend(lambda event: self._recorder.hear(event), metrics.count_pass, self._give_up_all)
        self._recorder = JobRecorder(self.table, store, metrics, self._replica.cancel)
        self._to_a_place = (0.0, 0)  # until when seconds to a free place are told again, and those
        metrics.watch(self)

    # What routes ask for

    def submit(
        self,
        order: Order,
        prompt: ReadPrompt,
        key: str | None = None,
        digest: str | None = None,
        field: str = "caption",
        change: Callable[[str], PictureChange] | None = None,
    ) -> tuple[Job, bool]:
        """Accept a job.

        Args:
            order: what is asked for.
            prompt: its caption as read.
            key: the client's idempotency key.
            digest: digest of the body that came with it.
            field: what the client calls the caption.
            change: makes, of the caption as read, what is done to a picture; None where the order says it.

        Returns:
            The job, and whether it is new: an idempotency key that is known gives the job that it came with.

        Raises:
            ApiError: with status 400 for what cannot be drawn, 409 for a key that came with another body, 429 where the
                queue is full, 503 where the server is about to stop or the engine has failed.
        """
        if (same := self.known(order, key, digest, change is not None)) is not None:
            return same, False
        self._replica.check_length(prompt, field)
        if not self.table.reserve():  # before pictures are read, which takes its time
            raise self._full()
        try:
            made = self._change_of(order, prompt.line) if change is None else change(prompt.line)
            settings = self._settle(order, made)
            given = 0 if made is None else math.prod(made.image.size)
            if given and given + sum(job.given_pixels for job in self.table.unfinished) > MOST_GIVEN:
                raise self._full("Memory has no room for another picture to be changed just now")
            record = JobRecord(
                id=f"job_{''.join(secrets.choice(LETTERS) for _ in range(22))}",
                status="queued",
                created_at=time.time(),
                request=settings.as_request(prompt.caption or prompt.line),
                prompt=prompt.line,
                prompt_was=prompt.was,
                revised_prompt=prompt.revised,
                warnings=self._remarks(prompt, settings),
                key=key,
                body_digest=digest,
                model=self.served.settings.model,
            )
            job = Job(record, settings, given_pixels=given)
            self._replica.make(job, made)
            if self.closed:
                raise ApiError(503, "The server is stopping: ask again in a moment.", code="stopping")
            self.table.add(job)
            try:
                if settings.stored:
                    self._store.put(record)
            except BaseException:
                self.table.drop(job)
                raise
            self._begin(job)
        except DuplicateKey:  # two of one key at one moment
            known = self._store.by_key(key or "")
            if known is None:
                raise
            return self._same(known, digest), False
        finally:
            self.table.release()
        return job, True

    def known(
        self, order: Order, key: str | None = None, digest: str | None = None, changes: bool = False
    ) -> Job | None:
        """The job that came with an idempotency key before; None for an order that could be accepted now.

        Looked at before a caption is written for it, or a writer is asked in vain.

        Args:
            order: what is asked for.
            key: the client's idempotency key.
            digest: digest of the body that came with it.
            changes: whether a picture is changed that does not stand in the order.

        Raises:
            ApiError: as of `submit`, but for what the caption and a picture that is changed may have.
        """
        if key is not None and (record := self._store.by_key(key)) is not None:
            return self._same(record, digest)
        self.check_room()
        if key is not None and not order.stored:
            raise ApiError(400, "An idempotency key needs a job that is stored.", code="invalid_value", param="stored")
        if not changes and order.edit is None:
            settle(order, self.served)
        return None

    def read(
        self,
        prompt: str | Mapping[str, Any],
        size: str | None,
        *,
        drop_unknown: bool = False,
        field: str = "caption",
        write: bool = True,
    ) -> ReadPrompt:
        """Read what a client gave as a caption, which may take as long as a caption writer does.

        Args:
            prompt: as it was given.
            size: of the picture, as it was given.
            drop_unknown: leave out all keys that are not the schema's.
            field: what the client calls the caption.
            write: have a caption written of words. Not for a change: its writer has not seen the picture.

        Raises:
            ApiError: with status 400 for what cannot be drawn, 502 where the caption writer fails.
        """
        writer = self.write if write else None
        sides = None if writer is None else read_size(size, self.served.default_size)
        try:
            return read_prompt(prompt, drop_unknown=drop_unknown, write=writer, size=sides)
        except WritingError as error:
            raise ApiError(502, str(error), code="caption_writer_failed", param=field) from None
        except ValueError as error:
            raise invalid_caption(error, field) from None

    def find(self, id: str) -> Job | None:
        """The job of this id, under way or kept; None if there is none."""
        job = self.table.find(id)
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
        return [self._of_record(record) for record in found]

    def cancel(self, job: Job) -> None:
        """Give up a job, if it is not finished; its last event comes with the engine's next step. At once."""
        if self.table.is_unfinished(job):
            job.given_up = True
            for request in job.under_way:
                self._replica.cancel(request)

    def forget(self, job: Job) -> None:
        """Remove a job that has ended, with its pictures.

        Raises:
            ApiError: with status 409 where it has not ended.
        """
        if self.table.is_unfinished(job):
            raise ApiError(409, f"{job.id} is still being ended: try again in a moment.", code="busy")
        self.table.forget(job.id)
        self._store.forget(job.id)

    def picture(self, id: str, index: int) -> tuple[PictureInfo, bytes]:
        """A finished picture of a job: what is known of it, and its bytes.

        Raises:
            ApiError: with status 404 if there is none.
        """
        job = self.get(id)
        info = next((info for info in job.record.pictures if info.index == index), None)
        data = job.data.get(index)
        if info is not None and data is None and job.settings.stored:
            path = self._store.picture(id, index)
            with suppress(FileNotFoundError):  # it was forgotten just now
                data = path.read_bytes() if path is not None else None
        if info is None or data is None:
            raise ApiError(404, f"{job.id} has no picture {index}.", code="not_found", param="index")
        return info, data

    def view(self, job: Job) -> dict[str, Any]:
        """A job as clients see it, with its place in the queue."""
        return job.view(self._position(job) if job.record.status == "queued" else None)

    def count_tokens(self, line: str) -> int:
        """Tokens that the model reads of a prompt's line."""
        return self._replica.count_tokens(line)

    # The server's life

    def start(self) -> None:
        """Take up what was left unfinished, and begin to step."""
        for record in self._store.unfinished():
            try:
                self._take_up(record)
            except Exception as error:
                message = error.message if isinstance(error, ApiError) else f"{type(error).__name__}: {error}"
                logger.warning("%s cannot be taken up again: %s", record.id, message)
                told = {"type": "restarted", "message": f"It cannot be taken up after the server's restart: {message}"}
                self._store.update(record.id, status="failed", finished_at=time.time(), error=told)
        self._replica.start()

    @property
    def healthy(self) -> bool:
        """Whether jobs are worked at."""
        return self._replica.healthy

    @property
    def unfinished(self) -> int:
        """How many jobs wait or run."""
        return len(self.table.unfinished)

    @property
    def running(self) -> int:
        """How many jobs have begun and not ended."""
        return sum(job.record.status == "running" for job in self.table.unfinished)

    def drain(self) -> None:
        """Accept no more jobs."""
        self.draining = True

    def stop_unstored(self) -> None:
        """Have the jobs fail that are not stored, for the server is about to stop."""
        for job in self.table.unfinished:
            if not job.settings.stored:
                self._recorder.give_up(job, "stopping", "The server is stopping: ask again in a moment.")

    def close(self) -> None:
        """Stop at once. Stored jobs that are not finished are queued for the next start; others are lost."""
        self.drain()
        self.closed = True
        self._recorder.stopping = True
        for request in self.table.requests:
            self._replica.cancel(request)
        self._replica.close(timeout=60)
        self._recorder.close()
        for job in self.table.unfinished:
            if job.settings.stored:
                try:
                    self._store.update(job.id, status="queued", started_at=None)
                except StoreError as error:  # the next start takes it for one that was killed
                    logger.error("%s stays as it is in the database: %s", job.id, error)

    def seconds_to_a_place(self) -> int:
        """Seconds until a job is done, on average, at the engine's pace of late."""
        until, seconds = self._to_a_place
        if time.monotonic() < until:
            return seconds
        backlog = self._replica.backlog
        seconds = 5 if backlog is None else max(1, min(3600, math.ceil(backlog / max(1, self.unfinished))))
        self._to_a_place = time.monotonic() + PACE_SECONDS, seconds
        return seconds

    # Accepting

    def check_room(self) -> None:
        """See that a job could be accepted now: before any work is done for it.

        Raises:
            ApiError: with status 429 where the queue is full, 503 where the server is about to stop or has failed.
        """
        if self.draining:
            raise ApiError(
                503,
                "The server is about to stop: ask again in a moment.",
                code="draining",
                headers={"Retry-After": "5"},
            )
        if not self.healthy:
            raise ApiError(503, "The engine has failed: the server has to be restarted.", code="engine_failed")
        if self.table.full:
            raise self._full()

    def _give_up_all(self) -> None:
        """Have every job fail, for the engine has; those that are stored are taken up by the next start."""
        for job in self.table.unfinished:
            again = " This job is taken up again after that." if job.settings.stored else ""
            message = f"The engine has failed: the server has to be restarted.{again}"
            self._recorder.give_up(job, "engine_failed", message, resume=True)

    def _full(self, why: str | None = None) -> ApiError:
        seconds = self.seconds_to_a_place()
        why = why or f"The queue is full: {self.table.places} jobs are waiting or running"
        return ApiError(
            429,
            f"{why}. Ask again in {seconds} seconds.",
            code="queue_full",
            headers={"Retry-After": str(seconds)},
        )

    def _same(self, record: JobRecord, digest: str | None) -> Job:
        if record.body_digest != digest:
            raise ApiError(
                409,
                "This idempotency key came with another body before: use a key of its own for each job.",
                code="idempotency_key_reused",
                param="Idempotency-Key",
            )
        return self._of_record(record)

    def _of_record(self, record: JobRecord) -> Job:
        return self.table.find(record.id) or Job.ended_before(record)

    def _remarks(self, prompt: ReadPrompt, settings: JobSettings) -> list[str]:
        remarks = [*prompt.warnings]
        if size := unusual_size(settings.width, settings.height, self.served.side_limits):
            remarks.append(size)
        if self.served.settings.model == SKETCH and not is_placed(prompt.line):
            remarks.append(UNPLACED)
        if settings.guidance == 0:
            remarks.append("a guidance of 0 leaves the caption out: the picture shows anything.")
        return remarks

    def _change_of(self, order: Order, line: str) -> PictureChange | None:
        """What an order does to a picture that is kept; None where it draws a new one.

        Raises:
            ApiError: with status 404 where there is no such picture, 409 where it is not finished, 400 for what cannot
                be done to it.
        """
        edit = order.edit
        if edit is None:
            return None
        if (job := self.find(edit.job)) is None:
            raise ApiError(404, f"There is no job {edit.job[:40]!r}.", code="not_found", param="edit.job")
        try:
            _, picture = self.picture(edit.job, edit.picture)
        except ApiError as error:
            if job.record.status in LAST or edit.picture >= len(job.settings.seeds):
                raise ApiError(error.status, error.message, code=error.code, param="edit.picture") from None
            message = f"{job.id} is {job.record.status}: wait until its picture {edit.picture} is finished."
            raise ApiError(409, message, code="not_finished", param="edit.job") from None
        wanted = Wanted.of(edit, job.record.prompt)
        return wanted.change(picture, line, LARGER * self.served.settings.pixel_limit)

    def _settle(self, order: Order, change: PictureChange | None) -> JobSettings:
        """An order with nothing left open; a change is drawn in whole tokens, and has the picture's own size."""
        canvas = None if change is None else change.canvas(UNIT, self.served.side_limits[1])
        if change is None or canvas is None:
            return settle(order, self.served)
        settings = settle(order.model_copy(update={"size": "{}x{}".format(*canvas.picture.size)}), self.served)
        width, height = change.result_size(UNIT, self.served.side_limits[1])
        if order.edit is not None and order.size not in (None, "auto", f"{width}x{height}"):
            raise wrong("size", f"`size` is {order.size}, and the picture has {width}x{height}: leave it out.")
        return replace(settings, width=width, height=height)

    def _begin(self, job: Job) -> None:
        """Put the requests of a job, which is in the table, into the engine.

        Raises:
            ApiError: with status 400 where the engine refuses one, such as one that is too large.
        """
        job.tell("queued", {"queue_position": self._position(job)})
        requests = job.under_way
        try:
            self._replica.add(requests)
        except ValueError as error:
            self._recorder.refuse(job, error)
            raise ApiError(400, str(error), code="invalid_value") from None
        if job.given_up:  # meanwhile
            self.cancel(job)
        if not requests:
            self._recorder.settle(job)

    def _take_up(self, record: JobRecord) -> None:
        """Put a job that was unfinished when the server stopped into the queue again."""
        settings = self.served.settings
        if settings.on_restart == "fail":
            raise ApiError(503, "the server was told not to take up jobs.")
        if record.model != settings.model:
            own, other = without_folders(settings.model), without_folders(record.model)
            raise ApiError(503, f"it was for the model {other!r}, and this server has {own!r}.")
        record.attempts += record.status == "running"
        if record.attempts >= ATTEMPTS:
            raise ApiError(503, f"the server was killed {record.attempts} times while it was running.")
        record.status, record.started_at = "queued", None
        order = Order.model_validate(record.request)
        change = self._change_of(order, record.prompt)
        given = 0 if change is None else math.prod(change.image.size)
        job = Job(record, self._settle(order, change), given_pixels=given)
        if job.missing:
            self._replica.make(job, change)
        self._store.update(record.id, status="queued", started_at=None, attempts=record.attempts)
        self.table.add(job)
        self._begin(job)

    def _position(self, job: Job) -> int:
        """How many jobs go before this one, as far as can be told now."""
        return self.table.position(job, self._replica.waiting)

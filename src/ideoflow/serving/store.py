"""Jobs and pictures kept: rows in a database, pictures as files in a folder, never half of either.

A picture's file is written whole before its row, and removed after it. So whenever the process is killed, a row has its
file, and a file without a row is rubbish, which the next start sweeps.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, select
from sqlalchemy.orm import Session, selectinload

from ..checks import whole
from ..files import check_place, lock, meant_for, sync, write_bytes
from .database import Database, PostgresDatabase, SqliteFile, StoreError
from .records import FORMATS, MOST_PICTURES, STATUSES, UNFINISHED, JobRecord, PictureInfo, Status, is_job_id
from .tables import JobRow, PictureRow

_FILE = re.compile(rf"job_[A-Za-z0-9]{{22}}-\d{{1,4}}\.(?:{'|'.join(FORMATS)})")
_CHANGEABLE = frozenset(
    (
        "status",
        "started_at",
        "finished_at",
        "request",
        "prompt",
        "prompt_was",
        "revised_prompt",
        "warnings",
        "error",
        "attempts",
    )
)

_log = logging.getLogger(__name__)


class DuplicateKey(ValueError):
    """Another job has the idempotency key."""


class UnknownJob(LookupError):
    """No job of that id is kept."""


class Store:
    """The jobs of a server and their pictures, kept in a folder and a database that belong to one server at a time.

    All methods may be called from any thread. What one wrote is on the disk when it returns, all of it or, after an
    error, nothing; what it reads is of one moment. Whatever does not have the form of a job's id is a job that is not
    kept, and no part of it reaches the name of a file.

    Args:
        folder: Where `pictures/` and `jobs.sqlite` are kept. It is made, for this user alone, if need be.
        keep_jobs: How many of the jobs that have ended `retain` leaves; None for all.
        keep_bytes: How many bytes of pictures `retain` leaves; None for all.
        database: Address of a PostgreSQL database for the rows; None for a file of SQLite in the folder.

    Attributes:
        lost: Id and index of the pictures whose files were not there at the start, or not with the bytes they had.

    Raises:
        ValueError: if nothing can be written into the folder, or a limit is none.
        InUseError: if another server holds the folder or the database.
        StoreError: if the database is damaged, not ours, of a newer version, another folder's, or gone while its
            pictures are there; if it cannot be reached.
    """

    def __init__(
        self,
        folder: Path,
        keep_jobs: int | None = None,
        keep_bytes: int | None = None,
        database: str | None = None,
    ) -> None:
        self.keep_jobs = None if keep_jobs is None else whole("keep_jobs", keep_jobs, 1, " or None")
        self.keep_bytes = None if keep_bytes is None else whole("keep_bytes", keep_bytes, 1, " or None")
        self.folder = folder.absolute()
        self._pictures = self.folder / "pictures"
        self._lock = threading.RLock()  # of one writer at a time: SQLite has no more, and would make them poll
        self._open = True
        check_place(self.folder / "jobs.sqlite", "--data")
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(lock(self.folder / "lock", f"the folder {folder} (--data)"))
            self._database: Database = (
                SqliteFile(self.folder / "jobs.sqlite") if database is None else PostgresDatabase(database, self.folder)
            )
            stack.callback(self._database.close)
            if self._database.is_new:
                if left := sum(1 for _ in self._files()):
                    raise StoreError(
                        f"{self._database.name} holds no jobs, but {self._pictures} {left} pictures, which a new"
                        " database would not know: put the database back, or move the pictures away."
                    )
                self._database.create()
            self._pictures.mkdir(exist_ok=True)
            self.lost = self._sweep()
            self._held = stack.pop_all()

    def close(self) -> None:
        """Let go of the folder; no other method works from then on."""
        with self._lock:
            self._open = False
            self._held.close()

    def put(self, record: JobRecord) -> None:
        """Keep a new job, without pictures.

        Raises:
            DuplicateKey: if a job with its idempotency key is kept.
            ValueError: if its id or status is none, if it is kept already, or if it has pictures.
            StoreError: if it cannot be written.
        """
        _check_id(record.id)
        _check_status(record.status)
        if record.pictures:
            raise ValueError(f"The new job {record.id} has pictures: they come by `add_picture`.")
        with self._write() as session:
            if record.key is not None and session.scalar(select(JobRow.id).where(JobRow.key == record.key)):
                raise DuplicateKey(f"Another job has the idempotency key {record.key!r}.")
            if session.scalar(select(JobRow.id).where(JobRow.id == record.id)):
                raise ValueError(f"The job {record.id} is kept already.")
            values = {name: value for name, value in vars(record).items() if name != "pictures"}
            session.add(JobRow(**values, searched=record.prompt.casefold()))

    def update(self, id: str, **changes: Any) -> None:
        """Change what is kept of a job: any of its fields but the id, `created_at`, the key and the pictures.

        Raises:
            UnknownJob: if it is not kept.
            TypeError: if it has no such field, or one that stays.
            ValueError: if the status is none.
            StoreError: if it cannot be written.
        """
        if unknown := sorted(set(changes) - _CHANGEABLE):
            raise TypeError(f"{', '.join(unknown)} of a job cannot be changed, only {', '.join(sorted(_CHANGEABLE))}.")
        if "status" in changes:
            _check_status(changes["status"])
        if "prompt" in changes:
            changes["searched"] = changes["prompt"].casefold()
        if not is_job_id(id):
            raise _unknown(id)
        with self._write() as session:
            job = session.scalar(select(JobRow).where(JobRow.id == id))
            if job is None:
                raise _unknown(id)
            for name, value in changes.items():
                setattr(job, name, value)

    def add_picture(self, id: str, index: int, data: bytes, info: PictureInfo) -> None:
        """Keep a picture of a job; one of the same index goes first, should it be there.

        Args:
            id: The job.
            index: The picture's number within it.
            data: The file.
            info: What it is; with the same index, and the size of `data`.

        Raises:
            UnknownJob: if the job is not kept, or was forgotten meanwhile.
            ValueError: if the index or format is none, or `info` is of another picture.
            OSError: if the file cannot be written: nothing is left of it.
        """
        whole("index", index, 0, most=MOST_PICTURES - 1)
        if info.format not in FORMATS:
            raise ValueError(f"The picture's format is {info.format!r}: give one of {', '.join(FORMATS)}.")
        if info.index != index or info.bytes != len(data) or not data:
            raise ValueError(f"Picture {index} of {len(data)} bytes is not what is said of it: {info}.")
        if not is_job_id(id):
            raise _unknown(id)
        path = self._path(id, index, info.format)
        with self._lock:
            with self._read() as session:
                if not session.scalar(select(JobRow.id).where(JobRow.id == id)):
                    raise _unknown(id)
                before = session.scalar(select(PictureRow.format).where(*_one(id, index)))
            if before is not None:  # goes first, so that its row never stands beside the bytes of the new one
                with self._write() as session:
                    session.execute(delete(PictureRow).where(*_one(id, index)))
                self._unlink([self._path(id, index, before)])
            if not path.parent.is_dir():
                path.parent.mkdir()
                sync(self._pictures)
            write_bytes(path, data)
            try:
                with self._write() as session:
                    values = {**vars(info), "seed": str(info.seed)}
                    session.add(PictureRow(job=id, **values))
            except BaseException:
                path.unlink(missing_ok=True)
                raise

    def get(self, id: str) -> JobRecord | None:
        """The job of that id, or None."""
        if not is_job_id(id):
            return None
        with self._read() as session:
            return next(_records(session, select(JobRow).where(JobRow.id == id)), None)

    def by_key(self, key: str) -> JobRecord | None:
        """The job with that idempotency key, or None."""
        with self._read() as session:
            return next(_records(session, select(JobRow).where(JobRow.key == key)), None)

    def find(
        self,
        statuses: Iterable[Status] | None = None,
        limit: int = 50,
        after: str | None = None,
        text: str | None = None,
    ) -> list[JobRecord]:
        """Jobs in the reverse of the order in which they were put: going on from the last one skips and repeats none.

        Args:
            statuses: Those they may have; None for all.
            limit: The most of them.
            after: Id of the job behind which to go on; None from the newest.
            text: What their prompts must hold, in letters of either case.

        Raises:
            UnknownJob: if `after` is not kept.
            ValueError: if the limit or a status is none.
        """
        query = select(JobRow).order_by(JobRow.number.desc()).limit(whole("limit", limit, 1))
        if statuses is not None:
            query = query.where(JobRow.status.in_([_check_status(status) for status in statuses]))
        if text:
            query = query.where(self._database.holds(JobRow.searched, text.casefold()))
        with self._read() as session:
            if after is not None:
                known = is_job_id(after) and session.scalar(select(JobRow.number).where(JobRow.id == after))
                if not known:
                    raise _unknown(after)
                query = query.where(JobRow.number < known)
            return list(_records(session, query))

    def unfinished(self) -> list[JobRecord]:
        """The jobs that are queued or running, in the order in which they were put."""
        with self._read() as session:
            return list(_records(session, select(JobRow).where(JobRow.status.in_(UNFINISHED)).order_by(JobRow.number)))

    def picture(self, id: str, index: int) -> Path | None:
        """The file of a picture; None if it is not kept, or if its file is gone or has not the bytes it had."""
        if not is_job_id(id) or not 0 <= index < MOST_PICTURES:
            return None
        with self._read() as session:
            row = session.execute(select(PictureRow.format, PictureRow.bytes).where(*_one(id, index))).first()
        if row is None:
            return None
        path = self._path(id, index, row.format)
        try:
            return path if path.stat().st_size == row.bytes else None
        except OSError:
            return None

    def forget(self, id: str) -> bool:
        """Remove a job, whatever its status, and its pictures; whether it was kept."""
        return bool(is_job_id(id) and self._forget([id]))

    def retain(self) -> int:
        """Remove jobs and their pictures until the rest is within the limits; those that ended first go first.

        `keep_jobs` counts the jobs that have ended, `keep_bytes` the pictures of all; a job that is queued or running
        stays whatever the limits say.

        Returns:
            How many jobs were removed.
        """
        has_ended = JobRow.status.not_in(UNFINISHED)
        size = select(func.coalesce(func.sum(PictureRow.bytes), 0))
        of_job = size.where(PictureRow.job == JobRow.id).scalar_subquery()
        going = []
        with self._lock:
            with self._read() as session:
                jobs = session.scalar(select(func.count()).select_from(JobRow).where(has_ended)) or 0
                bytes = session.scalar(size) or 0
                if self._is_over(jobs, bytes):
                    oldest = select(JobRow.id, of_job).where(has_ended).order_by(JobRow.finished_at, JobRow.number)
                    for id, freed in session.execute(oldest.execution_options(yield_per=20)):  # no further than need be
                        going.append(id)
                        jobs, bytes = jobs - 1, bytes - freed
                        if not self._is_over(jobs, bytes):
                            break
            return self._forget(going)

    def _is_over(self, jobs: int, bytes: int) -> bool:
        return (self.keep_jobs is not None and jobs > self.keep_jobs) or (
            self.keep_bytes is not None and bytes > self.keep_bytes
        )

    def _forget(self, ids: list[str]) -> int:
        """Remove the rows of jobs, then the files; how many jobs there were."""
        if not ids:
            return 0
        files, count = [], 0
        with self._lock:
            with self._write() as session:
                for id in ids:
                    pictures = session.execute(select(PictureRow.index, PictureRow.format).where(PictureRow.job == id))
                    files += [self._path(id, index, format) for index, format in pictures]
                    count += len(session.scalars(delete(JobRow).where(JobRow.id == id).returning(JobRow.id)).all())
            self._unlink(files)
        return count

    def _path(self, id: str, index: int, format: str) -> Path:
        return self._pictures / id[4:6] / f"{id}-{index}.{format}"  # folders of two characters keep each of them small

    def _unlink(self, files: list[Path]) -> None:
        """Remove files that no row speaks of any more; one that cannot be removed is left to the next start."""
        for path in files:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                _log.warning("%s cannot be removed: %s.", path, error.strerror)

    @contextmanager
    def _read(self) -> Iterator[Session]:
        self._check_open()
        with self._database.read() as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with self._lock:
            self._check_open()
            with self._database.write() as session:
                yield session

    def _check_open(self) -> None:
        if not self._open:
            raise StoreError(f"{self._database.name} is closed.")

    def _files(self) -> Iterator[os.DirEntry[str]]:
        """Every file under `pictures/` with a name that we give: pictures, and what writing them was killed at."""
        for folder in self._pictures.glob("[A-Za-z0-9][A-Za-z0-9]"):
            with os.scandir(folder) as entries:
                yield from (entry for entry in entries if _FILE.fullmatch(meant_for(entry.name) or entry.name))

    def _sweep(self) -> tuple[tuple[str, int], ...]:
        """Remove files without a row, and tell of the rows without their file.

        The row goes as well where its job has not ended, so that the picture is made again.
        """
        with self._read() as session:
            pictures = session.execute(select(PictureRow.job, PictureRow.index, PictureRow.format, PictureRow.bytes))
            rows = {str(self._path(job, index, format)): (job, index, bytes) for job, index, format, bytes in pictures}
        gone = dict(rows)
        for file in self._files():
            if file.path not in rows:
                self._unlink([Path(file.path)])
            elif file.stat().st_size == rows[file.path][2]:
                del gone[file.path]
        lost = [(job, index) for job, index, _ in gone.values()]
        if lost:
            names = ", ".join(Path(path).name for path in list(gone)[:10]) + (", ..." if len(lost) > 10 else "")
            _log.warning("%d pictures of %s are gone, or not whole: %s.", len(lost), self._pictures, names)
            unfinished = select(JobRow.id).where(JobRow.status.in_(UNFINISHED))
            with self._write() as session:
                for id, index in lost:
                    session.execute(delete(PictureRow).where(*_one(id, index), PictureRow.job.in_(unfinished)))
        return tuple(lost)


def _records(session: Session, query: Select[JobRow]) -> Iterator[JobRecord]:
    return (job.record() for job in session.scalars(query.options(selectinload(JobRow.pictures))))


def _one(id: str, index: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return PictureRow.job == id, PictureRow.index == index


def _check_id(id: str) -> None:
    if not is_job_id(id):
        raise ValueError(f"{_short(id)} is no id of a job: give `job_` and 22 letters or digits.")


def _check_status(status: Status) -> Status:
    if status not in STATUSES:
        raise ValueError(f"{status!r} is no status of a job: give one of {', '.join(STATUSES)}.")
    return status


def _unknown(id: str) -> UnknownJob:
    return UnknownJob(f"No job {_short(id)} is kept.")


def _short(id: object) -> str:
    return ascii(id)[:60]

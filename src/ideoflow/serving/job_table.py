"""The jobs in memory: those that wait or run, those that have just ended, and whose picture each request is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from threading import RLock

from .job import Job, PictureRequest

ENDED_JOBS = 256  # that are kept for those who come for their last events
ENDED_BYTES = 64 * 2**20  # of pictures of jobs that are not stored


class JobTable:
    """Jobs by id and by request, for any thread.

    Args:
        places: how many jobs may wait or run.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self._lock = RLock()
        self._unfinished: dict[str, Job] = {}
        self._ended: OrderedDict[str, Job] = OrderedDict()
        self._of_request: dict[PictureRequest, tuple[Job, int]] = {}
        self._reserved = 0

    def reserve(self) -> bool:
        """Keep a place for a job that is being made, until `release`; whether there was one."""
        with self._lock:
            if self.full:
                return False
            self._reserved += 1
            return True

    def release(self) -> None:
        """Give back what `reserve` kept."""
        with self._lock:
            self._reserved -= 1

    def add(self, job: Job) -> None:
        """Count a job and its pictures among those that wait or run."""
        with self._lock:
            self._unfinished[job.id] = job
            for index, picture in job.pictures.items():
                if picture.request is not None:
                    self._of_request[picture.request] = job, index

    def drop(self, job: Job) -> None:
        """Let go of a job that could not be accepted after all."""
        with self._lock:
            self._unfinished.pop(job.id, None)
            for request in job.under_way:
                self._of_request.pop(request, None)

    def find(self, id: str) -> Job | None:
        """The job of this id; None if it is not in memory."""
        with self._lock:
            return self._unfinished.get(id) or self._ended.get(id)

    def of_request(self, request: PictureRequest) -> tuple[Job, int] | None:
        """The job that a request is for, and the index of its picture; None once the picture has ended."""
        with self._lock:
            return self._of_request.get(request)

    def end_picture(self, job: Job, index: int) -> bool:
        """Note that a picture is finished, failed or cancelled; whether it was the job's last."""
        with self._lock, job.lock:
            picture = job.pictures[index]
            if picture.request is not None:
                self._of_request.pop(picture.request, None)
                picture.request = None
            return all(one.request is None for one in job.pictures.values())

    def end(self, job: Job) -> None:
        """Count a job among those that have ended, and let go of the oldest of them."""
        with self._lock:
            self._unfinished.pop(job.id, None)
            self._ended[job.id] = job
            held = sum(_bytes(one) for one in self._ended.values())
            while len(self._ended) > ENDED_JOBS or (held > ENDED_BYTES and len(self._ended) > 1):
                held -= _bytes(self._ended.popitem(last=False)[1])

    @property
    def full(self) -> bool:
        """Whether there is no place for another job."""
        with self._lock:
            return len(self._unfinished) + self._reserved >= self.places

    def forget(self, id: str) -> None:
        """Let go of a job that has ended."""
        with self._lock:
            self._ended.pop(id, None)

    def is_unfinished(self, job: Job) -> bool:
        """Whether a job waits or runs."""
        with self._lock:
            return job.id in self._unfinished

    @property
    def unfinished(self) -> list[Job]:
        """The jobs that wait or run, the oldest first."""
        with self._lock:
            return list(self._unfinished.values())

    @property
    def requests(self) -> list[PictureRequest]:
        """Requests of all pictures that have not ended."""
        with self._lock:
            return list(self._of_request)

    def position(self, job: Job, requests: Iterable[PictureRequest]) -> int:
        """How many jobs go before this one, where the engine takes requests in this order."""
        before: set[str] = set()
        with self._lock:
            for request in requests:
                found = self._of_request.get(request)
                if found is not None and found[0] is job:
                    break
                if found is not None:
                    before.add(found[0].id)
        return len(before)


def _bytes(job: Job) -> int:
    return sum(map(len, job.data.values()))

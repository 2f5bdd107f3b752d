"""Signs of life: every rank counts up in the store, and one whose count stands still is named lost by the others."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

EVERY = 1.0  # seconds from one sign to the next
PATIENCE = 12.0  # seconds without a sign after which a rank is lost
LEFT = "left"


class RankLost(RuntimeError):
    """A rank has failed or is gone; the run ends. The message names it and says why."""


class Heartbeats:
    """The signs of all ranks, given and watched by a thread of its own.

    Args:
        store: A client of the store that nobody else uses: a client that waits for a key keeps all others waiting.
        rank: This rank.
        size: Number of ranks.
        patience: Seconds without a sign after which a rank is lost.
        every: Seconds from one sign to the next.

    Attributes:
        failure: What the run has failed from; None as long as all are well.
        left: Set once this rank has left.
        on_failure: Called once by a thread of its own when the run has failed.
    """

    def __init__(self, store: Any, rank: int, size: int, patience: float = PATIENCE, every: float = EVERY) -> None:
        self.failure: str | None = None
        self.left = threading.Event()
        self.on_failure: Callable[[], None] = lambda: None
        self._store, self._rank, self._size = store, rank, size
        self._patience, self._every = patience, every
        self._failed = threading.Event()
        self._lock = threading.Lock()  # of the store's client
        store.set(f"who/{rank}", f"process {os.getpid()} on {socket.gethostname()}")
        store.set(f"sign/{rank}", "0")
        self._thread = threading.Thread(target=self._watch, name="heartbeats", daemon=True)
        self._thread.start()

    def report(self, failure: str) -> str:
        """Tell all ranks that the run has failed, from this or from what was told before it.

        Returns:
            What it has failed from.
        """
        try:
            with self._lock:
                first = self._store.compare_set("failure", "", failure).decode()
        except Exception:  # the store went with the rank that kept it
            first = failure
        self._learn(first or failure)
        assert self.failure is not None
        return self.failure

    def wait_for_failure(self, seconds: float | None = None) -> str | None:
        """What the run has failed from, once that is known; None if nothing is by then.

        Args:
            seconds: The longest to wait; None for as long as it takes to find a lost rank.
        """
        self._failed.wait(self._patience + 5 * self._every if seconds is None else seconds)
        return self.failure

    def leave(self) -> None:
        """Stop giving signs; nobody misses this rank.

        Rank 0, which may keep the store, stays a little where the run has failed, until the others know from what.
        """
        self.left.set()
        self._thread.join(2 * self._every)
        until = monotonic() + 4 * self._every
        try:
            with self._lock:
                while self.failure is not None and self._rank == 0 and monotonic() < until:
                    if self._store.add("told", 0) >= self._size - 2:  # all but this one and the one that is gone
                        break
                    sleep(0.1)
                self._store.set(f"sign/{self._rank}", LEFT)
        except Exception:  # the rank that keeps the store has left before
            pass

    def _watch(self) -> None:
        others = [rank for rank in range(self._size) if rank != self._rank]
        seen: dict[int, tuple[bytes, float]] = {}
        count, before = 0, monotonic()
        while not self.left.wait(self._every) and self.failure is None:
            count += 1
            try:
                with self._lock:
                    self._store.set(f"sign/{self._rank}", str(count))
                    signs = self._store.multi_get([f"sign/{rank}" for rank in others])
                    told = self._store.get("failure").decode() if self._store.check(["failure"]) else ""
            except Exception as error:
                if not self.left.is_set():
                    line = str(error).splitlines()[0] if str(error) else type(error).__name__
                    self._fail(f"rank 0, or the process that keeps the store, is gone ({line}).")
                return
            now = monotonic()
            late, before = now - before > self._patience / 2, now
            for rank, sign in zip(others, signs, strict=True):
                known = seen.get(rank)
                if known is None or known[0] != sign or late:  # late: this process itself was kept from looking
                    seen[rank] = sign, now
                elif sign != LEFT.encode() and now - known[1] > self._patience and not told:
                    told = self.report(self._gone(rank))
            if told:
                self._learn(told)

    def _gone(self, rank: int) -> str:
        try:
            with self._lock:
                who = self._store.get(f"who/{rank}").decode()
        except Exception:
            who = "unknown process"
        return f"rank {rank} ({who}) is gone: no sign of it for {self._patience:g} s."

    def _learn(self, failure: str) -> None:
        """Know of a failure that is in the store, and say so there."""
        self._fail(failure)
        if self._rank:
            with suppress(Exception), self._lock:
                self._store.add("told", 1)

    def _fail(self, failure: str) -> None:
        if self.failure is None:
            self.failure = failure
            self._failed.set()
            threading.Thread(target=lambda: self.on_failure(), name="failure", daemon=True).start()

"""Shares of one input for several processes or machines, and the locks that keep two runs out of each other's way.

A picture belongs to a share by its content address, so equal rows belong to the same one, and no two shares draw the
same picture. Runs that part the input into other numbers of shares would, so they may not be at work at once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..files import InUseError, lock

MOST = 100_000  # shares
WAIT = 5.0  # seconds for a run of the same number of shares that begins just now
_LOCK = re.compile(r"\.lock(?P<share>-\d+-of-\d+)?")


@dataclass(frozen=True)
class Share:
    """One of `count` equal parts of the pictures.

    Attributes:
        number: Which one, from 1.
        count: How many there are.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def of(cls, text: str) -> Share:
        """The share that a text such as "2/8" means.

        Raises:
            ValueError: if it means none.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
        share = cls(*map(int, found.groups())) if found else cls(0)
        if not 1 <= share.number <= share.count <= MOST:
            raise ValueError(f"--shard {text!r} is no share: give NUMBER/COUNT, such as 2/8 for the second of eight.")
        return share

    @property
    def suffix(self) -> str:
        """What the names of its files have at their end."""
        return "" if self.count == 1 else f"-{self.number}-of-{self.count}"

    def takes(self, address: str) -> bool:
        """Whether the picture of this address is one of the share's."""
        return int(address[:16], 16) % self.count == self.number - 1

    def takes_line(self, line: int) -> bool:
        """Whether a row that has no picture, and so no address, is the share's to tell of."""
        return line % self.count == self.number - 1


@contextmanager
def taken(place: Path, share: Share) -> Iterator[None]:
    """Hold a share of a place, which one run has at a time.

    Raises:
        InUseError: saying which process holds it.
    """
    with lock(place / f".lock{share.suffix}", f"--out {place}"):
        yield


@contextmanager
def alone(place: Path, share: Share) -> Iterator[None]:
    """Hold the shares of all other numbers of shares that the place was ever filled by, to take over what they left.

    Raises:
        InUseError: saying which process holds one of them.
    """
    with ExitStack() as others:
        for name in sorted(path.name for path in place.iterdir() if _LOCK.fullmatch(path.name)):
            if _count(name) != share.count:
                held = f"--out {place} ({name.removeprefix('.lock')[1:] or 'undivided'})"
                _wait_for(others, place / name, held)
        yield


def _count(name: str) -> int:
    return int(name.rpartition("-of-")[2]) if "-of-" in name else 1


def _wait_for(others: ExitStack, path: Path, what: str) -> None:
    """Take the lock of an earlier run; its siblings of now hold it for a moment, when they begin."""
    until = time.monotonic() + WAIT
    while True:
        try:
            others.enter_context(lock(path, what))
            return
        except InUseError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)

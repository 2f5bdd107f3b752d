"""What is there already: addresses of pictures, more of them than memory may hold, and a file with a line for each."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TAIL = 2**16  # bytes that are looked through at a time for the last line's end


class Addresses:
    """A set of addresses in a temporary file of the system's, which goes with the process."""

    def __init__(self) -> None:
        self._table = sqlite3.connect("", isolation_level=None)
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("CREATE TABLE addresses (address BLOB PRIMARY KEY) WITHOUT ROWID")

    def __contains__(self, address: str) -> bool:
        found = self._table.execute("SELECT 1 FROM addresses WHERE address = ?", (bytes.fromhex(address),))
        return found.fetchone() is not None

    def add(self, address: str) -> None:
        """Add an address, which may be there."""
        self._table.execute("INSERT OR IGNORE INTO addresses VALUES (?)", (bytes.fromhex(address),))

    def read(self, path: Path) -> None:
        """Add the addresses of a file of lines."""
        self._table.execute("BEGIN")
        for line in read_lines(path):
            self.add(line["address"])
        self._table.execute("COMMIT")


class Index:
    """A file of JSON with a line for each picture; a line that was cut short is taken off when it is opened."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self._file.truncate(whole_lines(path))

    def add(self, line: Mapping[str, Any]) -> None:
        """Write a line, and have it on the disk."""
        self._file.write(to_line(line))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def to_line(line: Mapping[str, Any]) -> bytes:
    """A line of JSON."""
    return (json.dumps(line, ensure_ascii=False) + "\n").encode()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of JSON, but for one that is cut short.

    Raises:
        ValueError: naming the line that is none of ours.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                found = json.loads(line)
                bytes.fromhex(found["address"])
            except (KeyError, TypeError, ValueError):
                raise ValueError(
                    f"{path}, line {number}, is no line of an index: mend it, or take the file away."
                ) from None
            yield found


def whole_lines(path: Path) -> int:
    """Bytes of a file up to the end of its last whole line."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - TAIL)
            file.seek(start)
            if (at := file.read(end - start).rfind(b"\n")) >= 0:
                return start + at + 1
            end = start
    return 0

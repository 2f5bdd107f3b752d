"""The shard that is being filled: a tar file that grows by whole pictures, and of which nothing is lost when cut short.

Each picture is two members after one another, as WebDataset has them: `ADDRESS.png` and `ADDRESS.json`. The second has
the length and digest of the first, so a picture counts once both are there as they were written.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)  # of an archive


@dataclass(frozen=True)
class Sample:
    """A picture in a shard.

    Attributes:
        name: Of the picture's file: its address and suffix.
        data: The file.
        about: What the index says of it.
    """

    name: str
    data: bytes
    about: dict[str, Any]


class OpenShard:
    """A tar file at `path` that pictures are added to; what is there already stays, but for a last one cut short."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.addresses: list[str] = []
        self._file = path.open("r+b" if path.exists() else "x+b")
        end = 0
        for sample, after in samples(self._file):
            self.addresses.append(sample.about["address"])
            end = after
        self._file.truncate(end)
        self._file.seek(end)

    def __len__(self) -> int:
        return len(self.addresses)

    def add(self, sample: Sample) -> None:
        """Add a picture, and have it on the disk."""
        digest = hashlib.sha256(sample.data).hexdigest()
        about = json.dumps({**sample.about, "sha256": digest}, ensure_ascii=False).encode()
        stem = sample.name.partition(".")[0]
        self._file.write(_member(sample.name, sample.data) + _member(f"{stem}.json", about))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.addresses.append(sample.about["address"])

    def finish(self) -> None:
        """Write the archive's end, and close it."""
        self._file.write(END)
        self._file.write(bytes(-self._file.tell() % tarfile.RECORDSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Close it as it is; opened again, it goes on."""
        self._file.close()


def samples(file: IO[bytes]) -> Iterator[tuple[Sample, int]]:
    """The whole pictures of a shard, from its beginning, and the bytes up to the end of each."""
    file.seek(0)
    while (picture := _read(file)) and (text := _read(file)):
        (name, data), (_, about) = picture, text
        try:
            found = json.loads(about)
            whole = found.pop("sha256") == hashlib.sha256(data).hexdigest()
        except (AttributeError, KeyError, ValueError):
            return
        if not whole:
            return
        yield Sample(name, data, found), file.tell()


def _member(name: str, data: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)


def _read(file: IO[bytes]) -> tuple[str, bytes] | None:
    """Name and bytes of the next member; None at the end, or at what is no whole member."""
    header = file.read(BLOCK)
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError):
        return None
    data = file.read(found.size + -found.size % BLOCK)
    return (found.name, data[: found.size]) if len(data) == found.size + -found.size % BLOCK else None


def lines_of(path: Path, file_name: str) -> Iterator[Mapping[str, Any]]:
    """What an index says of the pictures of a shard that is to be called `file_name`."""
    with path.open("rb") as file:
        for sample, _ in samples(file):
            yield {"address": sample.about["address"], "file": file_name, "member": sample.name, **sample.about}

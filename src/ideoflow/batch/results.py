"""Where pictures go: a folder of files, or shards of many in one file (WebDataset, Parquet). Each is there once.

A picture counts once it is whole under its own name; what says so is the results themselves, so that a run that was
stopped anywhere goes on with the next picture. Nothing else is kept of a run.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from ..files import in_place, sync, write_bytes
from .index import Addresses, Index, to_line
from .open_shard import OpenShard, Sample, lines_of
from .parquet import write_parquet
from .shares import Share

Kind = Literal["folder", "webdataset", "parquet"]
KINDS: tuple[str, ...] = get_args(Kind)
SUFFIX = {"webdataset": ".tar", "parquet": ".parquet"}
PICTURES = "pictures"  # the folder of pictures, and what the names of shards begin with
SPREAD = 3  # digits of an address that name a folder: of a million pictures, some 250 are in each
_OPEN = re.compile(r"\.open(-\d+-of-\d+)?\.tar")


class Results(Protocol):
    """Where pictures go."""

    def has(self, address: str, about: Mapping[str, Any]) -> bool:
        """Whether a picture is there, and so in the index, for which `about` is what it says."""

    def add(self, address: str, data: bytes, about: Mapping[str, Any]) -> None:
        """Keep a picture's file, whole and on the disk when this returns."""

    def close(self, whole: bool) -> None:
        """Let go of files; `whole`: the input is at its end, so that the last shard is as full as it gets."""


def check_kind(place: Path, kind: Kind) -> None:
    """See that a place has no results of another kind, beside which pictures would be there twice.

    Raises:
        ValueError: naming what is there.
    """
    if not place.is_dir():
        return
    found: list[str] = ["folder"] if (place / PICTURES).is_dir() else []
    found += [name for name, suffix in SUFFIX.items() if any(place.glob(f"{PICTURES}-*{suffix}"))]
    if found and found != [kind]:
        raise ValueError(f"--out {place} has results of --as {found[0]}: go on with that, or name another place.")


def open_results(place: Path, kind: Kind, share: Share, suffix: str, each: int) -> Results:
    """Results in a place, which the caller has to itself.

    Args:
        place: The folder.
        kind: What they are.
        share: Which of the pictures come here.
        suffix: Of picture files.
        each: Pictures of a shard.
    """
    if kind == "folder":
        return FolderResults(place, share, suffix)
    return ShardResults(place, kind, share, suffix, each)


class FolderResults:
    """Pictures as files of their own, `pictures/ab1/ab12....png`, and `index.jsonl`."""

    def __init__(self, place: Path, share: Share, suffix: str) -> None:
        self._place, self._suffix = place, suffix
        (place / PICTURES).mkdir(parents=True, exist_ok=True)
        self._index = Index(place / f"index{share.suffix}.jsonl")
        self._listed = Addresses()
        for path in sorted(place.glob("index*.jsonl")):
            self._listed.read(path)

    def has(self, address: str, about: Mapping[str, Any]) -> bool:
        """As `Results` says."""
        if not (self._place / self._file(address)).exists():
            return False
        self._list(address, about)  # a run may have been stopped between the two
        return True

    def add(self, address: str, data: bytes, about: Mapping[str, Any]) -> None:
        """As `Results` says."""
        write_bytes(self._place / self._file(address), data)
        self._list(address, about)

    def close(self, whole: bool) -> None:
        """As `Results` says."""
        self._index.close()

    def _file(self, address: str) -> str:
        return f"{PICTURES}/{address[:SPREAD]}/{address}{self._suffix}"

    def _list(self, address: str, about: Mapping[str, Any]) -> None:
        if address not in self._listed:
            self._index.add({"address": address, "file": self._file(address), **about})
            self._listed.add(address)


class ShardResults:
    """Pictures as members of files of many, `pictures-00000.tar` or `.parquet`, each with its index beside it.

    The index is written before the shard is given its name, so a shard that is there has one.
    """

    def __init__(self, place: Path, kind: Kind, share: Share, suffix: str, each: int) -> None:
        self._place, self._kind, self._suffix, self._each = place, kind, suffix, each
        self._share = share
        self._there = Addresses()
        place.mkdir(parents=True, exist_ok=True)
        for path in sorted(place.glob(f"{PICTURES}-*{SUFFIX[kind]}")):
            index = path.with_suffix(".jsonl")
            if not index.exists():
                raise ValueError(f"{path} has lost its index {index.name}: bring it back, or take the shard away.")
            self._there.read(index)
        self._path = place / f".open{share.suffix}.tar"
        for path in sorted(place.iterdir()):
            found = _OPEN.fullmatch(path.name)
            if found and _count(found[1]) != share.count:  # left by a run of another number of shares
                self._seal(self._opened(path))
        self._open = self._opened(self._path)
        for address in self._open.addresses:
            self._there.add(address)

    def has(self, address: str, about: Mapping[str, Any]) -> bool:
        """As `Results` says."""
        return address in self._there

    def add(self, address: str, data: bytes, about: Mapping[str, Any]) -> None:
        """As `Results` says."""
        self._open.add(Sample(f"{address}{self._suffix}", data, {"address": address, **about}))
        self._there.add(address)
        if len(self._open) >= self._each:
            self._seal(self._open)
            self._open = OpenShard(self._path)

    def close(self, whole: bool) -> None:
        """As `Results` says."""
        if whole:
            self._seal(self._open)
        else:
            self._open.close()

    def _opened(self, path: Path) -> OpenShard:
        """A shard that is being filled, new where the one that is there was sealed, and not taken away any more."""
        shard = OpenShard(path)
        if shard.addresses and shard.addresses[0] in self._there:
            shard.close()
            path.unlink()
            shard = OpenShard(path)
        return shard

    def _seal(self, shard: OpenShard) -> None:
        """Give a shard its name, or take it away if it is empty."""
        if not len(shard):
            shard.close()
            shard.path.unlink()
            return
        target = self._free()
        shard.finish()
        with in_place(target.with_suffix(".jsonl")) as temporary, temporary.open("wb") as index:
            index.writelines(map(to_line, lines_of(shard.path, target.name)))
        if self._kind == "parquet":
            with in_place(target, overwrite=False) as temporary:
                write_parquet(shard.path, temporary)
            shard.path.unlink()
        else:
            os.rename(shard.path, target)
            sync(self._place)
        for address in shard.addresses:
            self._there.add(address)

    def _free(self) -> Path:
        """The first name that no shard has."""
        for number in itertools.count():
            path = self._place / f"{PICTURES}{self._share.suffix}-{number:05}{SUFFIX[self._kind]}"
            if not path.exists():
                return path
        raise AssertionError


def _count(suffix: str | None) -> int:
    return int(suffix.rpartition("-of-")[2]) if suffix else 1

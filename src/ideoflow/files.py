"""Files read with care, and files and folders written whole or not at all: under another name, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # what file systems without hard links answer
OF_TEMPORARIES = 48  # bytes by which the names of temporary files are longer than those of what they become

# What a folder that several machines share tells of who wrote: process numbers mean something on their own alone.
MACHINE = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
ABANDONED = 24 * 3600  # seconds after which what another machine left half-written is removed

_UMASK = os.umask(0o077)
os.umask(_UMASK)
_TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.(?P<process>\d+)-\d+(-(?P<machine>[0-9a-f]{8}))?\.(?P<kind>partial|replaced)", re.S
)
_numbers = count()
_under_way: set[Path] = set()  # temporaries of this process, of any thread


class InUseError(ValueError):
    """Somebody else holds the lock."""


def check_writable(path: Path, option: str) -> None:
    """See that a file can be written, before any work is done for it; it is not made.

    Args:
        path: The file, which need not exist, nor its folder.
        option: What the user gave it by, for the message: "--out", or "`path`".

    Raises:
        ValueError: naming the option and the path, if it cannot.
    """
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: name a file.")
    if path.exists():
        if not os.access(path, os.W_OK):
            raise ValueError(f"{option} {path}: there is no permission to write it.")
        if not path.is_file():
            return  # a device or a pipe is written to as it stands
    check_place(path, option)


def check_place(path: Path, option: str) -> None:
    """See that a file or a folder can be put where it is named, as `check_writable` does; what is there may be either.

    Raises:
        ValueError: naming the option and the path, if it cannot.
    """
    try:
        folder = resolved(path).parent
    except OSError as error:
        raise ValueError(f"{option} {path}: {error.strerror}.") from None
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise ValueError(f"{option} {path}: {folder} is a file, not a folder.")
    if len(os.fsencode(path.name)) > os.pathconf(folder, "PC_NAME_MAX") - OF_TEMPORARIES:
        raise ValueError(f"{option} {path}: the name is too long for files in {folder}.")
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # asking for permissions tells too little: root has them all
            file.write(bytes(4096))
    except OSError as error:
        raise ValueError(f"{option} {path}: nothing can be written into {folder} ({error.strerror}).") from None


def resolved(path: Path) -> Path:
    """The path with all links followed.

    Raises:
        OSError: a link that leads to itself, which pathlib has a RuntimeError for.
    """
    try:
        return path.resolve()
    except RuntimeError:
        raise OSError(errno.ELOOP, "it is a link that leads to itself", str(path)) from None


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8 with plain line ends, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write the whole file or nothing, making its folder; a link stays a link, and a file keeps its permissions.

    A device or a pipe is written to as it stands: a file moved into its place would destroy it, `/dev/null` too.

    Raises:
        OSError: by the name that the user knows, not by the temporary one.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(data)
        return
    target = resolved(path)
    with in_place(target, shown=path) as temporary:
        temporary.write_bytes(data)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all, making its folder.

    Raises:
        OSError: if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with in_place(path) as temporary:
            save_file(whole, temporary, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:  # a full disk, in its own words
        raise OSError(f"{path} cannot be written: {error}") from None


def read_regular(path: Path, most: int) -> bytes:
    """The bytes of a regular file from anyone: a pipe is not waited for, a device not opened, the memory not filled.

    Args:
        path: The file.
        most: Bytes that it may have.

    Raises:
        ValueError: if it is no regular file or has more bytes; the message goes on where a name stands.
        OSError: if it cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("is no regular file.")
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)  # somebody may have put another file there since
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is no regular file.")
        if status.st_size > most:
            raise ValueError(f"has {_bytes(status.st_size)}, where {_bytes(most)} are the most.")
        return file.read(most)


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


@contextmanager
def in_place(destination: Path, overwrite: bool = True, shown: Path | None = None) -> Iterator[Path]:
    """Give a path beside `destination` to write a file or a folder to, and rename it to `destination` at the end.

    Whatever goes wrong, `destination` is what it was, or the new one; what is half-written is removed, at the latest by
    the next call. Where an old folder is replaced, it is renamed first: stopped between the two renames, it is found
    and put back by the next call. Without `overwrite`, a destination that appears during the work is kept as well.

    Args:
        destination: The file or folder; folders on its way are made.
        overwrite: Whether it may replace what is there.
        shown: The name for errors, where the user knows the destination by another.

    Raises:
        FileExistsError: if `destination` exists and may not be replaced.
        OSError: if it cannot be written; by its own name, not by the temporary one.
    """
    shown = shown or destination
    parent = destination.parent
    if not overwrite and os.path.lexists(destination):
        raise _exists(shown)
    try:
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, "its folder is a file", str(shown)) from None
        with temporary_beside(destination) as temporary:
            yield temporary
            _settle(temporary, destination, overwrite)
    except OSError as error:
        # Errors about other files, such as a source that cannot be read, keep their own name.
        if error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(parent):
            raise type(error)(error.errno, error.strerror or str(error), str(shown)) from error
        raise


@contextmanager
def temporary_beside(destination: Path) -> Iterator[Path]:
    """Give a free path beside `destination`; what is left there is removed, at the latest by the next call."""
    temporary = destination.parent / f".{destination.name}.{os.getpid()}-{next(_numbers)}-{MACHINE}.partial"
    clean(destination)
    _under_way.add(temporary)
    try:
        yield temporary
    finally:
        _under_way.discard(temporary)
        if destination.parent.is_dir():
            clean(destination)


def _settle(temporary: Path, destination: Path, overwrite: bool) -> None:
    """Bring what was written to the disk and give it its name, and a file the permissions of the one before it."""
    if not temporary.is_dir() and not temporary.is_symlink():
        before = destination.stat().st_mode if destination.is_file() else 0o666 & ~_UMASK
        temporary.chmod(stat.S_IMODE(before))  # some writers make files for their owner alone
    sync_all(temporary)
    if temporary.is_dir():
        old = temporary.with_suffix(".replaced")
        if overwrite and destination.is_dir():
            os.rename(destination, old)
        try:
            os.rename(temporary, destination)  # fails if a folder that is not empty has appeared
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise _exists(destination) from None
            raise
        _remove(old)
    elif overwrite:
        os.replace(temporary, destination)
    else:
        try:
            os.link(temporary, destination)  # fails if somebody was faster
        except FileExistsError:
            raise _exists(destination) from None
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            os.rename(temporary, destination)
    sync(destination.parent)


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "exists already", str(path))


def meant_for(name: str) -> str | None:
    """The name that a temporary file or folder was to be given, from its own; None if that is no temporary's."""
    match = _TEMPORARY.fullmatch(name)
    return match and match["name"]


def clean(destination: Path) -> None:
    """Remove what calls for `destination` left half-written, and put back what one stopped while replacing it.

    What a process of this machine writes is its own while it runs; what one of another machine writes, for a day.
    """
    for path in list(destination.parent.iterdir()):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or match["name"] != destination.name or path.with_suffix(".partial") in _under_way:
            continue
        try:
            here = match["machine"] == MACHINE
            if _is_anothers(int(match["process"])) if here else time.time() - _last_change(path) < ABANDONED:
                continue
            if match["kind"] == "replaced" and not destination.exists():
                os.rename(path, destination)
            else:
                _remove(path)
        except FileNotFoundError:
            continue  # its owner was faster


def _last_change(path: Path) -> float:
    """When a file, or anything in a folder, was last written or renamed, in seconds as `time.time` counts them."""
    every = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
    found = [one.lstat() for one in every]
    return max(max(one.st_mtime, one.st_ctime) for one in found)


def sync_all(path: Path) -> None:
    """Have a file on the disk, or a folder with all that is in it."""
    for one in (*path.rglob("*"), path) if path.is_dir() else (path,):
        sync(one)


def sync(path: Path) -> None:
    """Have a file's bytes, or the names in a folder, on the disk."""
    with suppress(PermissionError):  # Windows opens no folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file: one process at a time, let go when the process ends, however it does.

    Args:
        path: The lock's file; its folder is made. It stays, and says who held it last.
        what: What is being locked, for the message: "the run runs/heart".

    Raises:
        InUseError: saying which process, on which machine, holds it.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(f"{what} is in use by {_holder(handle)}: wait for it, or name another place.") from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"process": os.getpid(), "machine": socket.gethostname()}).encode(), 0)
        yield
    finally:
        os.close(handle)  # which lets go of the lock


def _holder(handle: int) -> str:
    try:
        held = json.loads(os.pread(handle, 4096, 0))
        return f"process {int(held['process'])} on {held['machine']!s}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _is_anothers(process: int) -> bool:
    """Whether another process of that number runs, whose files these may be."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

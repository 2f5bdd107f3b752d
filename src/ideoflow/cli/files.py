"""Text files that commands write: whole or not at all, and not refused only after the work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def prepare(option: str, path: Path) -> None:
    """See that a file can be written, and make its folder.

    Raises:
        ValueError: naming the option, if it cannot.
    """
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: name a file.")
    folder = path.resolve().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{option} {path}: its folder cannot be made: {error.strerror}.") from None
    if not os.access(path if _stands(path) else folder, os.W_OK):
        raise ValueError(f"{option} {path}: there is no permission to write it.")


def write(path: Path, text: str) -> None:
    """Write the whole file or nothing, making its folder; a link stays a link, and a file keeps its permissions.

    A device or a pipe is written to as it stands: a file moved into its place would destroy it, `/dev/null` too.
    """
    if _stands(path):
        path.write_text(text, encoding="utf-8", newline="\n")
        return
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="\n")
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # by the name that the user knows
    finally:
        temporary.unlink(missing_ok=True)


def _stands(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()

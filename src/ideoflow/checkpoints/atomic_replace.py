"""Putting checkpoints in their places, whole or not at all, without losing anything but the checkpoints before them."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .. import files
from ..checks import printable
from ..files import resolved, sync, sync_all, temporary_beside
from .errors import UNFINISHED, CheckpointError, some

LAST = ("config.json", "model_index.json")  # what readers look for first
# Weights of one model and variant, in one file or several: those of a save before this one would be read with it.
_WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model)"
    r"(?P<variant>(?:\.(?!safetensors|bin)[^.]+?)?)(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
    r"|(?P<index_stem>diffusion_pytorch_model|model)\.(?:safetensors|bin)\.index(?P<index_variant>(?:\.[^.]+)?)\.json"
)


@contextmanager
def in_place(destination: Path, overwrite: bool) -> Iterator[Path]:
    """Give a path beside `destination` to write to, as `files.in_place` does, and replace nothing but a checkpoint.

    What is there is looked at before the work and again before it is replaced: a folder that holds more than a
    checkpoint is kept, and so is what somebody else has put there meanwhile.

    Raises:
        CheckpointError: if `destination` exists and may not be replaced, or cannot be written.
    """
    with _told(destination):
        try:
            with files.in_place(destination, overwrite) as temporary:
                before = _identity(destination)
                if overwrite:
                    _check_replaceable(destination)
                yield temporary
                if overwrite:
                    if _identity(destination) != before:
                        raise CheckpointError(f"{destination} was written by somebody else meanwhile, and is kept.")
                    _check_replaceable(destination)
        except FileExistsError as error:
            raise CheckpointError(
                f"{destination} exists: name another destination, or allow it to be replaced (--overwrite)."
            ) from error


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file or folder of that name it is; None where there is none."""
    if not os.path.lexists(path):
        return None
    found = path.lstat()
    return found.st_dev, found.st_ino


# What files of models are called. Beside them, and not without, folders have notes and pictures for readers.
_MODEL = re.compile(
    r"(diffusion_pytorch_model|model)(\.[^.]+)?(-\d+-of-\d+)?\.safetensors"
    r"|(diffusion_pytorch_model|model)\.safetensors\.index(\.[^.]+)?\.json"
    r"|config\.json|generation_config\.json|model_index\.json|scheduler_config\.json|(video_)?preprocessor_config\.json"
    r"|(tokenizer|tokenizer_config|vocab|added_tokens|special_tokens_map)\.json|merges\.txt|chat_template\.(jinja|json)"
)
_NOTES = re.compile(
    r"README(\..+)?|LICEN[CS]E(\..+)?|NOTICE(\..+)?|\.gitattributes|.+\.svg|step_cache\.json", re.IGNORECASE
)


def _check_replaceable(destination: Path) -> None:
    """Raise where a folder holds anything else than a checkpoint."""
    if destination.is_symlink() or not destination.is_dir():
        return
    names = [(Path(folder) / name) for folder, _, found in os.walk(destination) for name in found]
    others = [path for path in names if not _MODEL.fullmatch(path.name) and not _NOTES.fullmatch(path.name)]
    if names and not any(_MODEL.fullmatch(path.name) for path in names):
        others = names
    if others:
        shown = some([printable(path.relative_to(destination)) for path in sorted(others)], 4)
        raise CheckpointError(
            f"{destination} holds more than a checkpoint ({shown}), and is not replaced: name another destination, or"
            " remove it yourself."
        )


@contextmanager
def _told(destination: object) -> Iterator[None]:
    """Say of what cannot be written which place it is, and why."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).removeprefix("Error while serializing: ")
        raise CheckpointError(f"{destination} cannot be written: {reason}. Nothing was changed.") from error


@contextmanager
def into_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write a folder to, and put what was written into `folder` at the end, all of it or nothing.

    A new folder gets its name in one step, and so does one that replaces an earlier save. A folder that holds other
    files too keeps them: the new files take their places one after another, and until all have, no reader takes the
    folder's configurations. Weights of an earlier save of the same variant go, since they would be read with the new
    ones.

    Raises:
        CheckpointError: a folder that cannot be written; it is what it was, or says that it is unfinished.
    """
    with _told(folder):
        place = resolved(Path(folder).expanduser())  # a link stays a link
        _check_writable(place)
        if not place.exists():
            with files.in_place(place, overwrite=False) as new:
                new.mkdir()
                yield new
            return
        stays = _has_to_stay(place)
        with temporary_beside(place / "saved" if stays else place) as new:
            new.mkdir()
            yield new
            sync_all(new)
            if stays or _others(place, new):
                _merge(new, place)
                return
            shutil.copymode(place, new)
            with files.in_place(place) as placed:
                os.rename(new, placed)


def _check_writable(place: Path) -> None:
    """Raise an OSError unless a folder, or the nearest one above it that is there, can be written."""
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{place} is a file, not a folder")
    tempfile.TemporaryFile(dir=place).close()  # asking for permissions tells too little: root has all of them


def _has_to_stay(folder: Path) -> bool:
    """Whether a folder cannot be replaced by another one of its name."""
    here = Path.cwd()
    return (
        here == folder
        or folder in here.parents
        or os.path.ismount(folder)
        or not os.access(folder.parent, os.W_OK | os.X_OK)
    )


def _files(folder: Path) -> list[Path]:
    """What is in a folder and below it, links as they are, relative to it."""
    found = []
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        found += [(Path(parent) / name).relative_to(folder) for name in (*names, *links)]
    return found


def _others(folder: Path, new: Path) -> bool:
    """Whether a folder holds anything else than what a new one replaces."""
    replaced = {*_files(new), *_stale(folder, new)}
    return any(one not in replaced for one in _files(folder))


def _stale(folder: Path, new: Path) -> list[Path]:
    """Weights in a folder that were saved before, of models and variants that the new one has in other files."""
    written = _files(new)
    kinds = {(one.parent, kind) for one in written if (kind := _kind(one.name))}
    return [one for one in _files(folder) if one not in written and (one.parent, _kind(one.name)) in kinds]


def _kind(name: str) -> tuple[str, str] | None:
    """Stem and variant of a file of weights."""
    match = _WEIGHTS.fullmatch(name)
    if match is None:
        return None
    return (match["stem"] or match["index_stem"], match["variant"] or match["index_variant"] or "")


def _merge(new: Path, folder: Path) -> None:
    """Move the files of a new folder to their places in one that stays.

    Cut short, the folder has configurations that no reader takes: its weights may be of two models.
    """
    stale = _stale(folder, new)
    written = sorted(_files(new), key=lambda one: (one.name in LAST, -len(one.parts)))
    for file in written:  # all is seen before anything is moved
        if (folder / file).is_dir():
            raise IsADirectoryError(errno.EISDIR, f"{folder / file} is a folder, not a file")
        _check_writable((folder / file).parent)
    last = [file for file in written if file.name in LAST]
    try:
        for file in reversed(last):
            files.write_text(folder / file, UNFINISHED)
        _move(new, folder, written, stale)
    except KeyboardInterrupt:  # what is left takes moments
        _move(new, folder, written, stale)
        raise
    except OSError as error:
        raise CheckpointError(f"{folder}: {UNFINISHED.strip()} ({error.strerror or error})") from error


def _move(new: Path, folder: Path, written: list[Path], stale: list[Path]) -> None:
    """Move what is not moved yet, the configurations when all else is on the disk."""
    for step in (False, True):
        here = [file for file in written if (file.name in LAST) == step]
        for file in here:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(new / file):
                os.replace(new / file, folder / file)
        for file in stale:
            (folder / file).unlink(missing_ok=True)
        for parent in {(folder / file).parent for file in here}:
            sync(parent)

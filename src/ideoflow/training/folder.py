"""A folder of pictures: which files are pictures, where their captions are, and what is said about every other file."""

from __future__ import annotations

import errno
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ..captions import Caption, CaptionError
from ..captions.reading import find
from ..captions.schema import encodes
from ..checks import printable
from ..files import read_regular
from .image_reading import MOST_BYTES
from .survey import CAPTION_COLUMNS, Found, Remark, Survey, UnusableError

ENDINGS = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".tga", ".ico", ".avif", ".jp2", ".j2k", ".jpf", ".jpx",
)  # fmt: skip
UNREAD = {
    ".heic": "HEIC", ".heif": "HEIF", ".jxl": "JPEG XL", ".svg": "SVG", ".eps": "PostScript", ".pdf": "PDF",
    ".psd": "Photoshop", ".xcf": "GIMP", ".exr": "OpenEXR", ".hdr": "Radiance", ".dng": "raw", ".cr2": "raw",
    ".cr3": "raw", ".nef": "raw", ".arw": "raw", ".orf": "raw", ".rw2": "raw", ".raf": "raw", ".mp4": "video",
    ".mov": "video", ".webm": "video",
}  # fmt: skip
SIDECARS = (".json", ".txt", ".caption")  # in the order in which they are taken
METADATA = "metadata.jsonl"
FILE_COLUMNS = ("file_name", "image_path", "image", "file", "filename", "path", "img_path", "image_file")
MOST_CAPTION = 4 * 2**20  # bytes of a caption's file, or of a line
MOST_LIST = 1 * 2**30  # bytes of `metadata.jsonl`


@dataclass(frozen=True)
class Folder:
    """A folder that is looked through.

    Attributes:
        root: the folder's path.
        follow_links: whether what links lead to outside of it is read.
        survey: the survey that is told of what is left out.
    """

    root: Path
    follow_links: bool
    survey: Survey

    def pictures(self, caption_column: str | None) -> list[Found]:
        """The pictures with where their captions are. Everything else is skipped or ignored in the survey."""
        files = {path.relative_to(self.root).as_posix(): path for path in sorted(self._files())}
        listed = self._listed(files, caption_column)
        beside = {(path.parent, path.stem, path.suffix.lower()): name for name, path in reversed(files.items())}
        found = []
        for name, path in files.items():
            if path.suffix.lower() not in ENDINGS or not self._is_regular(name, path):
                continue
            captions = [
                files[beside[path.parent, stem, ending]]
                for ending in SIDECARS
                for stem in (path.stem, path.name)
                if (path.parent, stem, ending) in beside
            ]
            if name in listed:
                caption = partial(_given, listed.pop(name), captions)
            else:
                caption = partial(_beside, path, captions)
            found.append(Found(name, partial(read_regular, path, MOST_BYTES), caption))
        for name in listed:
            if name not in files:
                self._skip(name, f"is listed in {METADATA}, but there is no such image in the folder.")
        pictures = {(path.parent, part) for path in files.values() if path.suffix.lower() in ENDINGS
                    for part in (path.stem, path.name)}  # fmt: skip
        for name, path in files.items():
            if path.suffix.lower() not in ENDINGS and name != METADATA:
                self._leave(name, path, (path.parent, path.stem) in pictures)
        return found

    def _leave(self, name: str, path: Path, belongs: bool) -> None:
        """Say why a file that is no picture is not looked at, unless it may be read as a picture's caption."""
        ending = path.suffix.lower()
        if ending in UNREAD:
            self._skip(
                name, f"is a file of the kind {UNREAD[ending]}, which is not read: save it as PNG, JPEG or WebP."
            )
        elif ending in SIDECARS and not belongs:
            self._ignore(name, "no picture has this name")
        elif path.name.lower() == METADATA:
            self._ignore(name, f"only {METADATA}, by this very name at the top of the folder, is read")
        elif path.stem.lower() == "metadata":
            self._ignore(name, f"it is not read: list captions in {METADATA}")
        elif ending not in SIDECARS:
            self._ignore(name, "it is neither a picture nor a caption")

    def _files(self) -> Iterator[Path]:
        """Every file and whatever else has an image's name; links to folders are followed, loops are not."""
        seen: set[str] = set()
        for folder, inner, names in os.walk(self.root, followlinks=True, onerror=self._unreadable):
            name, real = Path(folder).relative_to(self.root).as_posix(), os.path.realpath(folder)
            if real in seen or not self._may_enter(name, real):
                if real in seen:
                    self._skip(name, "is a link to a folder that was already looked at.")
                inner[:] = []
                continue
            seen.add(real)
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            for entry in [*names, *(entry for entry in inner if entry.lower().endswith(ENDINGS))]:
                path = Path(folder) / entry
                if entry.startswith(".") or not self._may_read(path):
                    continue
                yield path

    def _may_enter(self, name: str, real: str) -> bool:
        if not encodes(name):
            self._skip(name, "is a folder whose name is not UTF-8: rename it.")
        elif self._leads_out(real):
            self._skip(name, "is a link out of the folder: allow such links with `follow_links`, or copy it.")
        else:
            return True
        return False

    def _may_read(self, path: Path) -> bool:
        name = path.relative_to(self.root).as_posix()
        if not encodes(name):
            self._skip(name, "has a name that is not UTF-8: rename it.")
        elif path.is_symlink() and path.exists() and self._leads_out(os.path.realpath(path)):
            self._skip(name, "is a link out of the folder: allow such links with `follow_links`, or copy the file.")
        else:
            return True
        return False

    @cached_property
    def _real(self) -> Path:
        return self.root.resolve()

    def _leads_out(self, real: str) -> bool:
        return not (self.follow_links or Path(real).is_relative_to(self._real))

    def _is_regular(self, name: str, path: Path) -> bool:
        if path.is_file():
            return True
        what = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "leads nowhere"
        self._skip(name, f"{what}, not an image.")
        return False

    def _unreadable(self, error: OSError) -> None:
        name = os.path.relpath(error.filename or self.root, self.root)
        loop = error.errno == errno.ELOOP
        self._skip(name, "is a link that leads to itself." if loop else f"cannot be listed ({error.strerror}).")

    def _skip(self, name: str, why: str) -> None:
        self.survey.skipped.append(Remark(printable(name), why))

    def _ignore(self, name: str, why: str) -> None:
        self.survey.ignored.append(Remark(printable(name), why))

    def _listed(self, files: dict[str, Path], caption_column: str | None) -> dict[str, Any]:
        """Captions by image name from `metadata.jsonl`; empty without one."""
        if METADATA not in files:
            return {}
        names = {unicodedata.normalize("NFC", name): name for name in files}
        listed: dict[str, Any] = {}
        for number, line in enumerate(self._lines(files[METADATA]), 1):
            where = f"{METADATA}, line {number}"
            if not line.strip():
                continue
            try:
                name, caption = self._entry(line, names, caption_column)
            except UnusableError as error:
                self._skip(where, str(error))
                continue
            if name in listed:
                self._skip(where, f"{name} is listed a second time; the first line counts.")
            else:
                listed[name] = caption
        return listed

    def _lines(self, path: Path) -> Iterator[bytes]:
        """Lines of a file, which end at line feeds alone: other marks of line ends may stand in a caption."""
        try:
            content = read_regular(path, MOST_LIST)
        except (OSError, ValueError) as error:
            self._skip(METADATA, f"cannot be read ({str(error).rstrip('.')}).")
            return
        yield from content.removeprefix(b"\xef\xbb\xbf").split(b"\n")

    def _entry(self, line: bytes, names: dict[str, str], caption_column: str | None) -> tuple[str, Any]:
        """The image's name and the caption of a line."""
        try:
            entry = json.loads(line.decode())
        except UnicodeDecodeError:
            raise UnusableError("is not UTF-8.") from None
        except (ValueError, RecursionError) as error:
            raise UnusableError(f"is not JSON ({_reason(error)}).") from None
        columns = [c for c in FILE_COLUMNS if isinstance(entry, dict) and isinstance(entry.get(c), str) and entry[c]]
        if not columns:
            raise UnusableError(f"has no `file_name` (nor {', '.join(FILE_COLUMNS[1:])}).")
        name = self._inside(entry[columns[0]], names)
        column = caption_column or next((c for c in CAPTION_COLUMNS if c in entry), "")
        return name, entry.get(column, "")

    def _inside(self, name: str, names: dict[str, str]) -> str:
        """A listed name relative to the folder, as the folder spells it, where it has such a file."""
        for spelled in (name, name.replace("\\", "/")):
            inside = os.path.normpath(spelled)
            if os.path.isabs(inside):
                inside = os.path.relpath(inside, os.path.abspath(self.root))
            inside = unicodedata.normalize("NFC", Path(inside).as_posix())
            if inside in names:
                return names[inside]
        if inside.split("/")[0] == ".." or re.match("[A-Za-z]:", inside):
            raise UnusableError(f"{name} lies outside of the folder.")
        return inside


def _given(caption: Any, beside: list[Path]) -> tuple[Any, list[str]]:
    """A caption from `metadata.jsonl`."""
    return caption, [f"{METADATA} has its caption; what is beside it is not read."] if beside else []


def _beside(picture: Path, files: list[Path]) -> tuple[Any, list[str]]:
    """The caption in the first file beside a picture that holds one, and what is to be said about the others."""
    refused: list[tuple[Path, str]] = []
    for path in files:
        try:
            caption = _read_caption(path)
        except UnusableError as error:
            refused.append((path, str(error)))
            continue
        notes = [f"its {_ending(other)} file is no caption; its {_ending(path)} file is taken." for other, _ in refused]
        unread = files[len(refused) + 1 :]
        notes += [
            f"its {_ending(path)} file is the caption; its {_ending(other)} file is not read." for other in unread
        ]
        return caption, notes
    if refused:
        path, why = refused[0]
        raise UnusableError(f"its caption {path.name} {why}")
    names = " or ".join(picture.stem + ending for ending in SIDECARS[:2])
    raise UnusableError(f"has no caption: put one into {names} beside it.")


def _ending(path: Path) -> str:
    return path.suffix.lower()


def _read_caption(path: Path) -> Any:
    """The caption in a file, text or the data of one.

    Raises:
        UnusableError: if it holds none; the message goes on where the file's name stands.
    """
    try:
        text = read_regular(path, MOST_CAPTION).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnusableError("is not UTF-8: save it as UTF-8.") from None
    except OSError as error:
        raise UnusableError(f"cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise UnusableError(str(error)) from None
    if not text.strip():
        raise UnusableError("is empty: say what the picture shows.")
    return _json(text) if _ending(path) == ".json" else text


def _json(text: str) -> str:
    """The text of a `.json` file if it holds a caption; it may also be what a downloader wrote about a picture."""
    try:
        found = find(text, "it")
    except CaptionError as error:
        raise UnusableError(f"cannot be read: {error}") from None
    if found is None:
        raise UnusableError("is not JSON but plain text, which belongs into a .txt file.")
    if not found.data:
        raise UnusableError("is empty: say what the picture shows.")
    if not Caption.of_found(found).is_one():
        raise UnusableError(f"is no caption: it has none of {', '.join(Caption.model_fields)}.")
    return text


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error) if isinstance(error, json.JSONDecodeError) else "a number in it is too long"

"""What a run is trained on: every picture with its caption, and a report of everything that cannot be used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..captions import Caption, CaptionError
from .images import ImageError, read

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2")
SIDECARS = (".json", ".txt")  # in the order in which they are taken
METADATA = "metadata.jsonl"
CAPTION_COLUMNS = ("text", "caption", "prompt", "description")

Progress = Callable[[int, int], None]
Read = Callable[[], bytes]


@dataclass(frozen=True)
class Example:
    """One picture with its caption.

    Attributes:
        name: where it is, relative to the source.
        caption: the line that the text encoder reads.
        size: (width, height) in pixels after resizing, multiples of 16.
        digest: sha256 of the image file's bytes.
        options: how it is read: `pixels`, `crop`, `convert`.
    """

    name: str
    caption: str
    size: tuple[int, int]
    digest: str
    options: dict[str, Any]
    _read: Read = field(repr=False, compare=False)

    def open(self) -> Image.Image:
        """The picture, RGB, of `size`."""
        return read(self._read(), **self.options)


@dataclass(frozen=True)
class Remark:
    """What is to be said about one example: why it is skipped, or what was done to its caption."""

    name: str
    text: str


@dataclass
class Survey:
    """What was found in a source.

    Attributes:
        source: what was looked at.
        examples: what can be trained on, in the order of their names.
        skipped: what cannot, and why.
        notes: captions that were repaired, or that keep breaches of the schema.
    """

    source: str
    examples: list[Example] = field(default_factory=list)
    skipped: list[Remark] = field(default_factory=list)
    notes: list[Remark] = field(default_factory=list)

    def report(self) -> str:
        """For people: how many examples there are, and one line for everything that is skipped or noteworthy."""
        lines = [f"{self.source}: {_count(len(self.examples), 'example')}, {len(self.skipped)} skipped"]
        lines += [f"skipped {remark.name}: {remark.text}" for remark in self.skipped]
        together: dict[str, list[str]] = {}
        for note in self.notes:
            together.setdefault(note.text, []).append(note.name)
        for text, names in together.items():
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            lines.append(f"note on {some if len(names) == 1 else f'{len(names)} examples ({some})'}: {text}")
        return "\n".join(lines)


class _Unusable(ValueError):
    """Why an example cannot be used."""


@dataclass(frozen=True)
class _Found:
    """A picture that was found, before it is looked at."""

    name: str
    read: Read
    caption: Callable[[], Any]  # a string, or the data of a caption; raises _Unusable


def scan(
    source: Any,
    *,
    pixels: int = 1024 * 1024,
    crop: bool = False,
    convert: bool = False,
    image_column: str = "image",
    caption_column: str | None = None,
    on_progress: Progress | None = None,
) -> Survey:
    """Look at every picture and caption of a source; nothing in it stops the scan.

    Args:
        source: A folder of images, each with a caption beside it (`.json` or `.txt`) or listed in `metadata.jsonl`; a
            `datasets.Dataset`, a folder that one was saved to, or the name of one on the hub (its split `train`).
        pixels: Budget of a picture.
        crop: Cut pictures to the target's proportions instead of stretching them by a few pixels.
        convert: Take pictures of other colour models or 16 bits too.
        image_column: Of a dataset.
        caption_column: Of a dataset or of `metadata.jsonl`; the first of `CAPTION_COLUMNS` that there is when absent.
        on_progress: Called with how many pictures were looked at, and how many there are.

    Raises:
        ValueError: a source that is neither a folder nor a dataset, or columns that it does not have.
    """
    survey = Survey(str(source) if isinstance(source, str | os.PathLike) else "dataset")
    if isinstance(source, str | os.PathLike) and Path(source).is_dir() and not (Path(source) / "state.json").exists():
        found = _folder(Path(source), caption_column, survey)
    else:
        found = _dataset(source, image_column, caption_column)
    options = {"pixels": pixels, "crop": crop, "convert": convert}
    for number, candidate in enumerate(found, 1):
        try:
            survey.examples.append(_example(candidate, options, survey))
        except _Unusable as error:
            survey.skipped.append(Remark(candidate.name, str(error)))
        if on_progress is not None:
            on_progress(number, len(found))
    survey.examples.sort(key=lambda example: example.name)
    survey.skipped.sort(key=lambda remark: remark.name)
    survey.notes.sort(key=lambda remark: remark.name)
    return survey


def _example(found: _Found, options: dict[str, Any], survey: Survey) -> Example:
    try:
        data = found.read()
        image = read(data, **options)
    except ImageError as error:
        raise _Unusable(str(error)) from None
    except OSError as error:
        raise _Unusable(f"cannot be read ({error.strerror or error}).") from None
    line, notes = _line(found.caption())
    survey.notes += [Remark(found.name, note) for note in notes]
    return Example(found.name, line, image.size, hashlib.sha256(data).hexdigest(), options, found.read)


def _line(caption: Any) -> tuple[str, list[str]]:
    """The line to train on, and what was repaired or stays wrong in it."""
    if not caption or (isinstance(caption, str) and not caption.strip()):
        raise _Unusable("has an empty caption: say what the picture shows.")
    if isinstance(caption, str) and not caption.lstrip().startswith("{"):
        return " ".join(caption.split()), ["the caption is plain text; the model was trained on JSON captions."]
    try:
        given = Caption.parse(caption)
    except (CaptionError, ValueError, TypeError, RecursionError) as error:
        raise _Unusable(f"has a caption that cannot be used: {error}") from None
    repaired = given.repair()
    notes = [] if repaired.line() == given.line() else ["the caption was repaired."]
    notes += [f"the caption breaks the schema at {breach}" for breach in repaired.check()]
    return repaired.line(), notes


def _folder(root: Path, caption_column: str | None, survey: Survey) -> list[_Found]:
    listed = _metadata(root, caption_column, survey)
    found: list[_Found] = []
    for path in sorted(_files(root, survey)):
        name = path.relative_to(root).as_posix()
        if path.suffix.lower() not in ENDINGS:
            continue
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "leads nowhere" if path.is_symlink() else "is no regular file"
            survey.skipped.append(Remark(name, f"{what}, not an image."))
        elif name in listed:
            found.append(_Found(name, path.read_bytes, partial(_given, listed.pop(name))))
        else:
            found.append(_Found(name, path.read_bytes, partial(_sidecar, path)))
    for name in listed:
        survey.skipped.append(Remark(name, f"is listed in {METADATA}, but there is no such image in the folder."))
    return found


def _files(root: Path, survey: Survey) -> Iterator[Path]:
    """Every file and whatever else has an image's name below `root`; links to folders are followed, loops are not."""
    seen: set[str] = set()
    for folder, inner, names in os.walk(root, followlinks=True, onerror=lambda error: _unreadable(error, root, survey)):
        real = os.path.realpath(folder)
        if real in seen:
            inner[:] = []
            name = Path(folder).relative_to(root).as_posix()
            survey.skipped.append(Remark(name, "is a link to a folder that was already looked at."))
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in [*names, *(name for name in inner if name.lower().endswith(ENDINGS))]:
            if not name.startswith("."):
                yield Path(folder) / name


def _unreadable(error: OSError, root: Path, survey: Survey) -> None:
    name = os.path.relpath(error.filename or root, root)
    survey.skipped.append(Remark(name, f"cannot be listed ({error.strerror})."))


def _given(caption: Any) -> Any:
    return caption


def _sidecar(image: Path) -> Any:
    """The caption in the file beside an image."""
    for path in (image.with_suffix(ending) for ending in SIDECARS):
        if not (path.exists() or path.is_symlink()):
            continue
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise _Unusable(f"its caption {path.name} is not UTF-8: save it as UTF-8.") from None
        except OSError as error:
            raise _Unusable(f"its caption {path.name} cannot be read ({error.strerror}).") from None
        return _json(text, path.name) if path.suffix == ".json" and text.strip() else text
    raise _Unusable(f"has no caption: put one into {image.stem}.json or {image.stem}.txt beside it.")


def _json(text: str, name: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise _Unusable(f"its caption {name} is not JSON ({error}).") from None
    if not isinstance(data, dict):
        raise _Unusable(f"its caption {name} is a JSON {type(data).__name__}, not an object in braces.")
    return data


def _metadata(root: Path, caption_column: str | None, survey: Survey) -> dict[str, Any]:
    """Captions by image name from `metadata.jsonl`; empty without one."""
    path = root / METADATA
    if not path.is_file():
        return {}
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} cannot be read as UTF-8 ({error}).") from None
    listed: dict[str, Any] = {}
    for number, line in enumerate(lines, 1):
        where = f"{METADATA}, line {number}"
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            survey.skipped.append(Remark(where, f"is not JSON ({error})."))
            continue
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            survey.skipped.append(Remark(where, "has no `file_name`."))
            continue
        column = caption_column or next((c for c in CAPTION_COLUMNS if c in entry), "")
        inside = os.path.normpath(name)
        if os.path.isabs(inside) or inside.startswith(".."):
            survey.skipped.append(Remark(where, f"{name} lies outside of the folder."))
        elif column not in entry:
            listed[Path(inside).as_posix()] = ""
        elif Path(inside).as_posix() in listed:
            survey.skipped.append(Remark(where, f"{name} is listed a second time; the first line counts."))
        else:
            listed[Path(inside).as_posix()] = entry[column]
    return listed


def _dataset(source: Any, image_column: str, caption_column: str | None) -> list[_Found]:
    if isinstance(source, str | os.PathLike) and not Path(source).is_dir():
        name = str(source)
        if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
            raise ValueError(f"`data` {name}: there is no such folder.")
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"`data` {source}: there is no such folder, and for a dataset `pip install datasets` is needed."
        ) from None
    if isinstance(source, str | os.PathLike):
        try:
            saved = Path(source).is_dir()
            source = (
                datasets.load_from_disk(str(source)) if saved else datasets.load_dataset(str(source), split="train")
            )
        except Exception as error:
            raise ValueError(f"`data` {source}: no such folder, and no dataset can be loaded ({error}).") from None
    if isinstance(source, dict):
        source = source["train"] if "train" in source else next(iter(source.values()))
    columns = source.column_names
    chosen = caption_column or next((c for c in CAPTION_COLUMNS if c in columns), None)
    for name, wanted in (("image_column", image_column), ("caption_column", chosen)):
        if wanted not in columns:
            raise ValueError(f"`{name}` is {wanted!r}; the dataset has the columns {', '.join(columns)}.")
    rows = source.cast_column(image_column, datasets.Image(decode=False))
    digits = len(str(len(rows)))

    def found(index: int) -> _Found:
        def data() -> bytes:
            cell = rows[index][image_column]
            if cell is None:
                raise ImageError("has no image.")
            return cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"]).read_bytes()

        return _Found(f"row {index:0{digits}}", data, lambda: rows[index][chosen])

    return [found(index) for index in range(len(rows))]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

"""What a run is trained on: every picture with its caption, and a report of everything that cannot be used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .columns import found_in_table
from .folder import Folder
from .image_reading import read
from .lines import line_of
from .survey import Example, Found, Remark, Survey, UnusableError

Progress = Callable[[int, int], None]


def scan(
    source: Any,
    *,
    pixels: int = 1024 * 1024,
    crop: bool = False,
    convert: bool = False,
    follow_links: bool = False,
    wrap: bool = True,
    image_column: str = "image",
    caption_column: str | None = None,
    on_progress: Progress | None = None,
    option: str = "data",
) -> Survey:
    """Look at every picture and caption of a source; nothing in it stops the scan.

    Args:
        source: A folder of images, each with a caption beside it (`.json`, `.txt` or `.caption`) or listed in
            `metadata.jsonl`; a `datasets.Dataset`, a folder that one was saved to, or the name of one on the hub (its
            split `train`).
        pixels: Budget of a picture.
        crop: Cut pictures to the target's proportions instead of stretching them by a few pixels.
        convert: Take pictures of other colour models or more than 8 bits a channel too.
        follow_links: Read what links lead to outside of the folder, too.
        wrap: Put captions in plain text into a minimal JSON caption, as `ideoflow generate` does.
        image_column: A dataset's column of pictures.
        caption_column: The column of captions, of a dataset or of `metadata.jsonl`; when absent, the first of
            `CAPTION_COLUMNS` that there is.
        on_progress: Called with how many pictures were looked at, and how many there are.
        option: What the source was given by, for errors.

    Raises:
        ValueError: a source that is neither a folder nor a dataset, or columns that it does not have.
    """
    survey = Survey(str(source) if isinstance(source, str | os.PathLike) else "dataset")
    if isinstance(source, str | os.PathLike) and Path(source).is_dir() and not (Path(source) / "state.json").exists():
        found = Folder(Path(source).absolute(), follow_links, survey).pictures(caption_column)
    else:
        found = found_in_table(source, image_column, caption_column, option)
    options = {"pixels": pixels, "crop": crop, "convert": convert}
    for number, candidate in enumerate(found, 1):
        try:
            survey.examples.append(_example(candidate, options, wrap, survey))
        except UnusableError as error:
            survey.skipped.append(Remark(candidate.name, str(error)))
        if on_progress is not None:
            on_progress(number, len(found))
    survey.sort()
    return survey


def _example(found: Found, options: dict[str, Any], wrap: bool, survey: Survey) -> Example:
    """Look at a picture and its caption, and note what is to be said about the caption."""
    try:
        data = found.read()
        image = read(data, **options)
    except OSError as error:
        raise UnusableError(f"cannot be read ({error.strerror or error}).") from None
    except ValueError as error:  # why, for people
        raise UnusableError(str(error)) from None
    caption, remarks = found.caption()
    line, notes = line_of(caption, wrap)
    survey.notes += [Remark(found.name, note) for note in (*remarks, *notes)]
    return Example(found.name, line, image.size, hashlib.sha256(data).hexdigest(), options, found.read)

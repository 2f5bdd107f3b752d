"""Picture files: written whole or not at all, with the settings that they were drawn with; and those read back.

The settings are JSON. A PNG has them under the key `ideoflow` in an iTXt chunk, which is UTF-8; JPEG and WebP have them
as EXIF's UserComment, in ASCII. Image tools leave either alone, or drop it.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import files
from .checks import printable
from .images import ImageError, open_image, plain_errors
from .provenance import KEY, from_text

if TYPE_CHECKING:
    from PIL import Image

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # what is written, by suffix
# JPEG as near to the pixels as is usual; WebP keeps every pixel, as PNG does, in a smaller file.
_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "WEBP": {"lossless": True, "exact": True},
}
_EXIF, _USER_COMMENT, _ASCII = 0x8769, 0x9286, b"ASCII\0\0\0"
_MOST_EXIF = 65_000  # bytes of a JPEG's segment
STALE = 3600  # seconds after which nobody writes at a temporary file any more


def save_image(
    image: Image.Image, path: str | os.PathLike[str], *, settings: bool = True, overwrite: bool = True
) -> Path:
    """Write a picture with the settings that it was drawn with, from which `ideoflow generate FILE` makes it again.

    A pipeline's pictures carry them as `image.info["ideoflow"]`; Pillow's own `save` leaves them out. The file is there
    whole or not at all.

    Args:
        image: A picture of a pipeline. One without settings is written without.
        path: The file, of type `.png`, `.jpg`, `.jpeg` or `.webp`. PNG and WebP keep every pixel; JPEG has quality 95.
        settings: Whether to write them. They hold the caption, and the paths of model and adapters.
        overwrite: Replace a file of that name; False to take the first free name of `NAME.png`, `NAME-1.png`, ...

    Returns:
        The path that was written.

    Raises:
        TypeError: what is no picture, such as the list of all pictures of a call.
        ValueError: a file type that is not written, or settings that are too long for a JPEG.
        OSError: if it cannot be written.
    """
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise TypeError(f"`image` is a {type(image).__name__}: give one picture, such as `images[0]`.")
    path = Path(path)
    form = format_of(path)
    text = image.info.get(KEY) if settings else None
    data = encode_image(image, form, text if isinstance(text, str) else None)
    _sweep(path)
    if overwrite:
        files.write_bytes(path, data)
        return path
    free, number = path, 0
    while True:
        try:
            with files.in_place(free, overwrite=False) as temporary:
                temporary.write_bytes(data)
            return free
        except FileExistsError:  # also where another process was faster
            number += 1
            free = path.with_stem(f"{path.stem}-{number}")


def encode_image(image: Image.Image, form: str, text: str | None, quality: int | None = None) -> bytes:
    """The bytes of a picture's file, as `save_image` writes them.

    Args:
        image: The picture.
        form: Pillow's name of the format, one of those of `FORMATS`.
        text: Settings to keep in it, as `provenance.to_text` gives them.
        quality: Quality of a JPEG or WebP, 0 to 100; None for 95, and for WebP that keeps every pixel.

    Raises:
        ValueError: settings that are too long for a JPEG.
    """
    from PIL.Image import Exif
    from PIL.PngImagePlugin import PngInfo

    options = dict(_OPTIONS[form])
    if quality is not None and form == "JPEG":
        options["quality"] = max(quality, 1)  # which 0 is not to Pillow
    elif quality is not None and form == "WEBP":
        options = {"quality": quality, "lossless": quality == 100, "exact": True}
    if text is not None and form == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt(KEY, text, lang="", tkey="")
    elif text is not None:
        exif = Exif()
        exif.get_ifd(_EXIF)[_USER_COMMENT] = _ASCII + json.dumps(json.loads(text)).encode("ascii")
        if form == "JPEG" and len(exif.tobytes()) > _MOST_EXIF:
            raise ValueError("the settings are too long for a JPEG: write a PNG or WebP, or leave them out.")
        options["exif"] = exif
    encoded = BytesIO()
    image.save(encoded, format=form, **options)
    return encoded.getvalue()


def format_of(path: Path) -> str:
    """Pillow's name of the format that a file's suffix stands for.

    Raises:
        ValueError: if pictures are not written in it.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{printable(path)}: pictures are written as {', '.join(FORMATS)} files.")
    return FORMATS[path.suffix.lower()]


def _sweep(path: Path) -> None:
    """Remove what stopped processes left half-written beside a picture, under whatever name."""
    pattern = re.compile(
        rf"\.(.+({'|'.join(map(re.escape, FORMATS))}))\.\d+-\d+(-[0-9a-f]{{8}})?\.partial", re.IGNORECASE
    )
    with suppress(OSError):
        for other in list(path.parent.iterdir()):
            if (match := pattern.fullmatch(other.name)) and time.time() - other.stat().st_mtime > STALE:
                files.clean(path.with_name(match[1]))


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings that a picture's file carries: what it says, of the right kinds, and nothing that may be trusted.

    Anyone can write into a picture. Whoever opens a model or an adapter because these settings name it asks first.

    Returns:
        `caption`, `width`, `height`, `seed`, `model`, `model_digest`, `base`, `base_digest`, `loras` (a list of
        `path`, `scale` and `digest`), `dtype`, `device`, `preset`, `steps`, `guidance`, `quantize`, `together` (the
        pictures of the call), `unrepeatable` (why it cannot be made again), `ideoflow` and `torch` (versions); None for
        what the file does not say.

    Raises:
        ValueError: if the file is no picture, or carries no settings of ideoflow.
        OSError: if it cannot be read.
    """
    name = printable(path)
    try:
        with open_image(path) as image, plain_errors():
            image.load()  # text chunks may follow the pixels
            text = _kept(image)
    except ImageError as error:
        raise ValueError(f"{name} {error}") from None
    if text is None:
        raise ValueError(
            f"{name} carries no ideoflow settings: it was made by another program, written without them"
            " (--no-metadata), or with Pillow's own `save` (`ideoflow.save_image` keeps them)."
        )
    try:
        return from_text(text)
    except ValueError as error:
        raise ValueError(f"{name} carries ideoflow settings that cannot be read ({error}).") from None


def _kept(image: Image.Image) -> str | None:
    if image.format == "PNG":
        text = image.info.get(KEY)
        return str(text) if text is not None else None
    comment = image.getexif().get_ifd(_EXIF).get(_USER_COMMENT)
    if not isinstance(comment, bytes) or not comment.startswith(_ASCII):
        return None
    text = comment.removeprefix(_ASCII).decode("ascii", "replace")
    return text if f'"{KEY}": "' in text else None

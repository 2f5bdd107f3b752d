"""Picture files from outside: opened by an explicit list of formats, with one clear error for whatever is wrong."""

from __future__ import annotations

import io
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

# Formats whose readers are Pillow's own. Left out on purpose: EPS, whose reader starts Ghostscript, WMF and the formats
# that Pillow only hands on to other programs, and rare ones that nobody sends.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "ICO", "AVIF", "JPEG2000")
MOST_BYTES = 2 * 10**9  # of a file, which is read whole
MOST_PIXELS = 178_000_000  # Pillow refuses files that unpack to more than 178,956,970

# What Pillow's readers trip over in damaged files.
DAMAGE = (
    SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, AttributeError, AssertionError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip
logging.getLogger("PIL").addHandler(logging.NullHandler())  # or some of them write to standard error as well


class ImageError(ValueError):
    """A picture that cannot be used; the message says why and what would help."""


def open_image(source: str | os.PathLike[str] | bytes) -> Image.Image:
    """Open a picture. Its pixels are read when they are first asked for, within `plain_errors`.

    Args:
        source: A file, or the bytes of one.

    Raises:
        ImageError: if it is empty, no regular file, no picture of `FORMATS`, or damaged where the reader looks first.
        OSError: if the file cannot be read.
    """
    from PIL import Image

    if not isinstance(source, bytes):
        path = Path(source)
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise ImageError("is no file of a picture.")
        if path.exists() and path.stat().st_size > MOST_BYTES:
            raise ImageError(f"has more than {MOST_BYTES // 10**9} GB: make it smaller.")
        source = path.read_bytes()
    if not source:
        raise ImageError("is empty: the file has zero bytes.")
    with plain_errors():
        return Image.open(io.BytesIO(source), formats=FORMATS)


def upright(image: Image.Image) -> Image.Image:
    """The picture as its EXIF tags say that it is held."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # whatever is wrong with the tags, the pixels are whole
        return image


def flattened(image: Image.Image) -> Image.Image:
    """The picture as 8-bit RGB; transparency is laid on white, and 16-bit grey is cut to 8 bits."""
    from PIL import Image

    if image.mode.startswith("I"):
        image = image.point(lambda value: value / 257).convert("L")
    if has_alpha(image):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def has_alpha(image: Image.Image) -> bool:
    """Whether the picture may be transparent anywhere."""
    return "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa")


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn whatever Pillow's readers raise into an `ImageError`, and leave out their warnings."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("is not a picture of a kind that is read here: save it as PNG, JPEG or WebP.") from None
    except Image.DecompressionBombError:
        raise ImageError(f"unpacks to more than {MOST_PIXELS // 10**6} million pixels: make it smaller.") from None
    except MemoryError:
        raise ImageError("does not fit into memory: make it smaller.") from None
    except OSError as error:
        raise ImageError(f"cannot be read ({_reason(error)}): it may be cut off or damaged.") from None
    except DAMAGE as error:
        raise ImageError(f"is damaged ({_reason(error)}).") from None


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__).rstrip(".")

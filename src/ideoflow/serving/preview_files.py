"""Previews and thumbnails as files for clients, made when somebody looks: most previews are replaced unseen."""

from __future__ import annotations

import base64
import io

from PIL import Image

from ..images import open_image

QUALITY = 80  # of JPEG


def preview_base64(preview: Image.Image, form: str = "jpeg") -> str:
    """A preview's file of this format in base64."""
    encoded = io.BytesIO()
    preview.convert("RGB").save(encoded, format=form.upper(), **({"quality": QUALITY} if form == "jpeg" else {}))
    return base64.b64encode(encoded.getvalue()).decode("ascii")


def data_url(preview: Image.Image) -> str:
    """A preview as a `data:` URL of a JPEG."""
    return f"data:image/jpeg;base64,{preview_base64(preview)}"


def thumbnail(picture: bytes, side: int) -> bytes:
    """A picture's file made smaller, as a JPEG.

    Args:
        picture: the file of a picture that was drawn here.
        side: the most pixels of the longer side; smaller pictures keep their size.
    """
    small = io.BytesIO()
    with open_image(picture) as image:
        image.draft("RGB", (side, side))
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.convert("RGB").save(small, format="JPEG", quality=QUALITY)
    return small.getvalue()

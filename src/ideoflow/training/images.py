"""One picture from a file as training needs it: RGB, upright, sides multiples of 16 within a pixel budget."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageOps

from ..images import MOST_PIXELS, ImageError, open_image, plain_errors

MULTIPLE = 16  # pixels of a token's side
SMALLEST = 16  # pixels of the shorter side that can be used at all
WIDEST = 6.0  # longer over shorter side that the model knows

PLAIN = ("1", "L", "P", "RGB", "LA", "PA", "RGBA", "La", "RGBa")  # 8 bits or fewer of grey, a palette or RGB
CONVERTIBLE = ("CMYK", "YCbCr", "LAB", "HSV", "I;16", "I;16B", "I;16L", "I;16N", "I")


def target_size(width: int, height: int, pixels: int) -> tuple[int, int]:
    """The size of at most `pixels` pixels, sides multiples of 16, that is nearest to the picture's shape and size.

    Nothing is made larger than its nearest multiple of 16.

    Raises:
        ValueError: a budget that does not hold one token.
    """
    if pixels < MULTIPLE**2:
        raise ValueError(f"`pixels` is {pixels}; it is at least {MULTIPLE**2}, one token.")
    scale = min(1.0, math.sqrt(pixels / (width * height)))
    wide, tall = width * scale / MULTIPLE, height * scale / MULTIPLE
    options = [
        (w, h)
        for w in {max(1, math.floor(wide)), max(1, math.ceil(wide))}
        for h in {max(1, math.floor(tall)), max(1, math.ceil(tall))}
        if w * h * MULTIPLE**2 <= pixels
    ]
    if not options:  # one side is a single token: the other takes what is left
        most = pixels // MULTIPLE**2
        options = [(min(most, max(1, round(wide))), 1) if wide > tall else (1, min(most, max(1, round(tall))))]
    w, h = min(options, key=lambda o: (abs(math.log(o[0] / wide)) + abs(math.log(o[1] / tall)), o))
    return w * MULTIPLE, h * MULTIPLE


def read(
    source: str | Path | bytes | Image.Image, pixels: int, crop: bool = False, convert: bool = False
) -> Image.Image:
    """Read, check, turn upright, flatten and resize a picture.

    Transparency is laid on white; of an animation the first picture is taken.

    Args:
        source: A file, its bytes, or a picture.
        pixels: Budget, as in `target_size`.
        crop: Cut the longer side to the target's proportions instead of stretching the picture by a few pixels.
        convert: Take pictures of other colour models or 16 bits too, plainly converted to 8-bit RGB.

    Returns:
        An RGB picture of `target_size`.

    Raises:
        ImageError: the picture cannot be used; nothing else is raised for a bad file.
    """
    with plain_errors():
        image = source if isinstance(source, Image.Image) else open_image(source)
        _check(image, convert)
        image.load()
        return _resize(_flatten(_upright(image)), pixels, crop)


def _check(image: Image.Image, convert: bool) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ImageError(_too_many_pixels())
    if min(width, height) < SMALLEST:
        raise ImageError(f"has {width} x {height} pixels: the shorter side needs at least {SMALLEST}.")
    if max(width, height) > WIDEST * min(width, height):
        raise ImageError(f"has {width} x {height} pixels: the sides may differ by a factor of {WIDEST:g} at most.")
    deep = image.mode.startswith("I") or getattr(image, "tag_v2", {}).get(258, (8,))[0] == 16
    if image.mode in PLAIN and not deep:
        return
    if convert and (image.mode in CONVERTIBLE or image.mode in PLAIN):
        return
    what = "16 bits a channel" if deep else f"the colour model {image.mode}"
    advice = "" if image.mode == "F" else ", or set `convert` to have it done plainly"
    raise ImageError(f"has {what}: save it as 8-bit RGB, so that you see what is trained{advice}.")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # whatever is wrong with the tags, the pixels are whole
        return image


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = image.point(lambda value: value / 257).convert("L")
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _resize(image: Image.Image, pixels: int, crop: bool) -> Image.Image:
    size = target_size(*image.size, pixels)
    if crop:
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _too_many_pixels() -> str:
    return f"unpacks to more than {MOST_PIXELS // 10**6} million pixels: make it smaller."
